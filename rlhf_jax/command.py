"""The command line that commands on an experiment share: --config and its
overrides, and one message, no traceback, for what a person can mend."""

from collections.abc import Sequence
import re
import sys

from absl import flags
from ml_collections import config_flags

from rlhf_jax import distributed, usage


def config_flag() -> flags.FlagHolder:
  """Defines --config, an experiment's file."""
  return config_flags.DEFINE_config_file("config", None, usage.CONFIG_HELP)


def parse_flags(config: flags.FlagHolder, argv: Sequence[str]) -> list[str]:
  """absl's parser; no such experiment or key is one message as well.

  Args:
    config: as of `config_flag`.
    argv: with the program's name.
  """
  sys.argv = argv = [quote_round(arg) for arg in argv]  # absl reads both
  if wrong := usage.wrong_experiment(argv[1:]):
    distributed.refuse(wrong)
  try:
    rest = flags.FLAGS(argv)
    _ = config.value.name  # what is wrong with the file, raised on first use
    return rest
  except (AttributeError, KeyError) as error:
    cause: Exception = error
    while isinstance(cause.args[0], Exception):
      cause = cause.args[0]
    distributed.refuse(f"--config has no key {cause.args[0]}")
  except (OSError, ValueError) as error:
    distributed.refuse(str(error))
  except flags.Error as error:
    distributed.refuse(without_traceback(usage.explain(error)))


def quote_round(arg: str) -> str:
  """--config.collect@2.labeler=... and --config.inputs.rm@2=... as the library
  spells such keys: of the config itself with a dot, of a sub-tree without."""
  arg = re.sub(r"^(--?config\.)(\w+@\w+)(?=[.=]|$)", r"\1['\2']", arg)
  return re.sub(
      r"^(--?config(?:\.\w+)+)\.(\w+@\w+)(?=[.=]|$)", r"\1['\2']", arg)


def without_traceback(text: str) -> str:
  """What an experiment's file raised, and where, from the library's account."""
  places = re.findall(r'File "(.*)", line (\d+)', text)
  raised = re.findall(r"^ *(\w[\w.]*: .*)", text, re.MULTILINE)
  if not places:
    return text
  return f"{':'.join(places[-1])}: {raised[-1]}"
