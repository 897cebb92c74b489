"""What each command says of itself, and of a call that is wrong.

--help and --version are answered before a command imports anything heavy, and
experiments are listed: so sources are parsed here, and none is run.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import difflib
import functools
import pathlib
import re
import signal
import sys
import textwrap
from typing import Any, NoReturn

from absl import app
from absl import flags

import rlhf_jax
from rlhf_jax import exits

CONFIG_HELP = "The experiment's file, with :SIZE where it has sizes."
_HELP = {"--help", "-help", "--helpshort", "-h", "-?"}
_VERSION = {"--version", "-version"}
# Which several processes have: what is wrong they say once, when they have met.
_OF_SEVERAL = re.compile(
    "--?(coordinator|num_processes|process_id|distributed)(=|$)")
_WIDTH = 80


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag, as its definition in the source says.

  Attributes:
    name: without dashes.
    default: None where there is none, or where it is no literal.
    help: what it is.
  """

  name: str
  default: object
  help: str


def answer(doc: str, path: str) -> None:
  """Ends the program where the command line asks what it is, or has nothing in
  it that could be run.

  Args:
    doc: the docstring of the command.
    path: its source.
  """
  args = sys.argv[1:]
  args = args[:args.index("--")] if "--" in args else args
  if _VERSION & set(args):
    _say_and_end(f"rlhf_jax {rlhf_jax.__version__}")
  if _HELP & set(args):
    _say_and_end(help_of(doc, path))
  if takes_experiment(path) and not any(map(_OF_SEVERAL.match, args)):
    if message := wrong_experiment(args, _folder_of(path)):
      refuse(message)


def _say_and_end(text: str) -> NoReturn:
  # who reads may stop before the end, as head does
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  print(text, flush=True)
  sys.exit(0)


def run(
    main: Callable[[list[str]], None], *, required: Sequence[str] = (),
    flags_parser: Callable[[list[str]], list[str]] | None = None) -> None:
  """`app.run`, with one message and status 2 for a call that is wrong.

  Args:
    main: of the command; may raise app.UsageError.
    required: flags that must be given.
    flags_parser: in the place of `parse_flags`.
  """
  flags.mark_flags_as_required(required)
  app.run(functools.partial(_call, main),
          flags_parser=flags_parser or parse_flags)


def _call(main: Callable[[list[str]], None], argv: list[str]) -> None:
  try:
    main(argv)
  except app.UsageError as error:
    refuse(f"{error}; see --help")


def parse_flags(argv: Sequence[str]) -> list[str]:
  """absl's parser.

  Args:
    argv: with the program's name.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    refuse(explain(error))


def refuse(message: str) -> NoReturn:
  """Ends a program of one process."""
  print(f"error: {message}", file=sys.stderr, flush=True)
  sys.exit(exits.REFUSED)


def explain(error: flags.Error) -> str:
  """What is wrong with a flag, the one to use, and where more is said."""
  text = str(error)
  if missing := re.match(r"flag --(\S+)=None: Flag --\1 must have", text):
    name = missing[1]
    text = f"--{name}=... is missing: {flags.FLAGS[name].help}"
  return f"{text.removesuffix('.')}; see --help"


# -------------------------------------------------------------------- help


def help_of(doc: str, path: str) -> str:
  """The docstring, the experiments where one is to be named, and the flags."""
  found = list(flags_of(path))
  parts = [doc.strip()]
  if takes_experiment(path):
    parts.append(experiments_table(_folder_of(path)))
  if found:
    parts.append("flags:\n" + _table({
        f"--{flag.name}": flag.help if flag.default in (None, False, "", 0)
        else f"{flag.help.removesuffix('.')} [{flag.default}]"
        for flag in found}))
  return "\n\n".join(parts)


def flags_of(path: str) -> Iterator[Flag]:
  """The flags that a command defines."""
  for node in ast.parse(pathlib.Path(path).read_text("utf-8")).body:
    call = node.value if isinstance(node, (ast.Assign, ast.Expr)) else None
    if not isinstance(call, ast.Call) or not isinstance(
        call.func, ast.Attribute):
      continue
    if call.func.attr == "config_flag":
      yield Flag("config", None, CONFIG_HELP)
    if call.func.attr.startswith("DEFINE_"):
      name, default, *others = map(_literal, call.args)
      yield Flag(name, default, others[-1])


def _literal(node: ast.expr) -> Any:
  try:
    return ast.literal_eval(node)
  except ValueError:
    return None


def takes_experiment(path: str) -> bool:
  return any(flag.name == "config" for flag in flags_of(path))


def _table(rows: dict[str, str]) -> str:
  width = max(map(len, rows))
  indent = " " * (width + 4)
  return "\n".join(
      textwrap.fill(text, _WIDTH, initial_indent=f"  {name:{width}}  ",
                    subsequent_indent=indent, break_on_hyphens=False)
      for name, text in rows.items())


# -------------------------------------------------------------- experiments


def _folder_of(path: str) -> str:
  """Where what a command runs is found, from the repository's root."""
  is_study = pathlib.Path(path).stem == "study"
  return "experiments/studies" if is_study else "experiments"


def experiments(folder: str = "experiments") -> dict[str, str]:
  """The experiments here or, where there are none, beside the package.

  Returns:
    Path -> the first line of its docstring.
  """
  beside = pathlib.Path(__file__).resolve().parents[1] / folder
  for place in (pathlib.Path(folder), beside):
    if found := dict(_experiments_in(place)):
      return found
  return {}


def _experiments_in(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
  for path in sorted(folder.glob("*.py")):
    try:
      tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
      yield str(path), f"cannot be read: {error}"
      continue
    if any(getattr(node, "name", "") == "get_config" for node in tree.body):
      yield str(path), (ast.get_docstring(tree) or "").partition("\n")[0]


def experiments_table(folder: str = "experiments") -> str:
  found = experiments(folder)
  return f"{pathlib.Path(folder).name}:\n" + (_table(found) if found else (
      f"  none here: they are in the folder {folder}/ of the repository"))


def wrong_experiment(
    args: Sequence[str], folder: str = "experiments") -> str | None:
  """What is wrong with --config, None where its file is there.

  Args:
    args: the command line without the program's name.
    folder: of those that it may name.
  """
  if any(re.match("--?(help|only_check)", arg) for arg in args):
    return None  # absl's own
  given = [arg.partition("=")[2] if "=" in arg else "".join(args[i + 1:i + 2])
           for i, arg in enumerate(args) if re.match("--?config(=|$)", arg)]
  path = given[-1].partition(":")[0] if given else ""
  if path and pathlib.Path(path).is_file():
    return None
  if not path:
    message = "--config=... is missing: name an experiment"
  else:
    message = (f"--config={given[-1]}: there is no such file"
               f"{_nearest(path, folder)}")
  return f"{message}; --help has more\n\n{experiments_table(folder)}"


def _nearest(path: str, folder: str) -> str:
  names = {pathlib.Path(known).stem: known for known in experiments(folder)}
  near = difflib.get_close_matches(pathlib.Path(path).stem, names, 1)
  return f" (did you mean {names[near[0]]}?)" if near else ""
