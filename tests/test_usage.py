"""What commands say of themselves, and of a call that is wrong."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest

from experiments import common, ppo_ptx
from rlhf_jax import exits, usage
from tests import forked, processes

PACKAGE = processes.ROOT / "rlhf_jax"
COMMANDS = ("main", "plan", "sample", "compare", "report", "evaluate",
            "replay", "export", "screen", "study")
OTHERS = {
    "sample": r"--workdir=\.\.\. is missing: The run's folder",
    "compare": "name at least one folder of a finished run",
    "sample --workdir=x --num=many": r"flag --num=many: .*'many'",
    "sample --workdir=x hello": r"unexpected arguments: \['hello'\]",
    "main --config=experiments/ppo.py:mini --confg=2":
        r"Unknown command line flag 'confg'. Did you mean: config \?",
}
RUN = ("import runpy, sys; name = sys.argv.pop(1); "
       "runpy.run_module(name, run_name='__main__', alter_sys=True)")


def source_of(command):
  path = PACKAGE / command / "__main__.py"
  return path if path.exists() else PACKAGE / f"{command}.py"


def doc_of(command):
  return docstring(source_of(command))


def docstring(path):
  return ast.get_docstring(ast.parse(path.read_text()), clean=False).strip()


def call(*args, cwd=processes.ROOT):
  """Real processes, which import nothing heavy where they are to be quick."""
  return subprocess.run(
      [sys.executable, "-c", "import sys; sys.modules.update(jax=None);" + RUN,
       *args], cwd=cwd, text=True, capture_output=True, check=False,
      env=os.environ | {"PYTHONPATH": str(processes.ROOT)})


@pytest.fixture(name="calls", scope="module")
def _calls():
  """Command line -> what a call gives that gets as far as the flags."""
  lines = [*map(with_a_wrong_flag, COMMANDS), *OTHERS]
  process = forked.Process(
      "from tests import commands; commands.main()",
      json.dumps([line.split() for line in lines]),
      env=processes.environment(1))
  printed = process.communicate()[0]
  assert process.returncode == 0, printed
  return dict(zip(lines, json.loads(printed.splitlines()[-1]), strict=True))


def with_a_wrong_flag(command):
  config = {"main": "--config=experiments/ppo_ptx.py",
            "plan": "--config=experiments/ppo_ptx.py",
            "study": "--config=experiments/studies/behaviour.py"}
  return f"{command} --workdi=x {config.get(command, '')}"


def test_these_are_all_commands():
  found = {path for path in PACKAGE.rglob("*.py")
           if "usage.run(" in path.read_text() and path.stem != "usage"}
  assert found == set(map(source_of, COMMANDS))
  listed = docstring(PACKAGE / "__main__.py")
  assert set(re.findall(r"-m rlhf_jax\.(\w+) ", listed)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_without_jax(command, tmp_path):
  done = call(f"rlhf_jax.{command}", "--seed=3", "--help", cwd=tmp_path)
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith(doc_of(command))
  assert max(map(len, done.stdout.splitlines())) <= 80
  said = done.stdout.partition("\nflags:\n")[2]
  assert re.findall(r"^  --(\S+)", said, re.MULTILINE) == [
      flag.name for flag in usage.flags_of(source_of(command))]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_read_are_those_defined(command, calls):
  read = {flag.name: flag for flag in usage.flags_of(source_of(command))}
  defined = calls[with_a_wrong_flag(command)]["flags"]
  assert set(read) == set(defined)
  for name, (text, default) in defined.items():
    assert read[name].help and text.endswith(read[name].help)
    if read[name].default is not None:
      assert read[name].default == (
          ",".join(default) if isinstance(default, list) else default)


@pytest.mark.parametrize("args", [
    ["main", "--version"], ["screen", "--version"], ["compare", "-version"]])
def test_version(args):
  done = call(f"rlhf_jax.{args[0]}", *args[1:])
  assert (done.returncode, done.stderr) == (0, "")
  assert re.fullmatch(r"rlhf_jax \d+\.\d+\.\d+\n", done.stdout)


def test_the_package_lists_its_commands():
  done = call("rlhf_jax")
  assert done.returncode == 0 and "-m rlhf_jax.main " in done.stdout


@pytest.mark.parametrize("line, message", [
    *((with_a_wrong_flag(command), "Unknown command line flag 'workdi'.*")
      for command in COMMANDS), *OTHERS.items()])
def test_a_wrong_call(line, message, calls):
  assert calls[line]["status"] == exits.REFUSED
  assert re.fullmatch(f"error: {message}; see --help", calls[line]["printed"])


def test_a_reader_that_has_seen_enough_is_no_error():
  """As `| head`, whose end of the pipe is closed before all is written."""
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
      [sys.executable, "-c", RUN, "rlhf_jax.main", "--help"], stdout=writer,
      stderr=subprocess.PIPE, text=True, check=False, cwd=processes.ROOT)
  os.close(writer)
  assert not done.stderr


# ------------------------------------------------------------- experiments


@pytest.mark.parametrize("args, message", [
    ([], r"--config=\.\.\. is missing: name an experiment; --help has more"),
    (["--config=experiments/ppo_pxt.py:mini"],
     r"--config=experiments/ppo_pxt.py:mini: there is no such file "
     r"\(did you mean experiments/ppo_ptx.py\?\); --help has more"),
    (["--config", "x.py"], r"--config=x.py: there is no such file; .*"),
])
@pytest.mark.parametrize("command", ["main", "plan"])
def test_no_such_experiment(command, args, message):
  """Before anything heavy is imported."""
  done = call(f"rlhf_jax.{command}", *args)
  assert done.returncode == exits.REFUSED and not done.stdout
  first, _, table = done.stderr.partition("\n\n")
  assert re.fullmatch(f"error: {message}", first)
  assert re.search(r"\n  experiments/ppo_ptx.py +The whole method: ", table)


def test_processes_that_meet_first_say_it_together():
  """So it's not said here, where the others are not known yet."""
  done = call("rlhf_jax.main", "--coordinator=localhost:1")
  assert "ModuleNotFoundError: import of jax halted" in done.stderr


def test_every_experiment_is_listed(monkeypatch):
  monkeypatch.chdir(processes.ROOT)
  found = usage.experiments()
  files = {path.name for path in (processes.ROOT / "experiments").glob("*.py")}
  assert set(found) == {
      f"experiments/{name}" for name in files - {"__init__.py", "common.py"}}
  assert all(line.endswith(".") for line in found.values())


def test_experiments_are_read_and_not_run(tmp_path, monkeypatch):
  folder = tmp_path / "experiments"
  folder.mkdir()
  (folder / "mine.py").write_text(
      '"""Mine.\n\nMore."""\n\n1 / 0\n\ndef get_config():\n  pass\n')
  (folder / "broken.py").write_text("def get_config(:\n")
  (folder / "helper.py").write_text('"""No experiment."""\n')
  monkeypatch.chdir(tmp_path)
  found = usage.experiments()
  assert found["experiments/mine.py"] == "Mine."
  assert "cannot be read: " in found["experiments/broken.py"]
  assert len(found) == 2


def test_without_a_repository_it_says_where_they_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(usage, "__file__", str(tmp_path / "site" / "usage.py"))
  assert usage.experiments() == {}
  assert "in the folder experiments/ of the rep" in usage.experiments_table()


def test_what_main_says_of_settings_is_true():
  config, doc = ppo_ptx.get_config(), doc_of("main")
  named = re.findall(r"^  --config\.([\w.]+)=", doc, re.MULTILINE)
  assert len(named) > 5
  for key in named:
    node = config
    for part in key.split("."):
      node = node[part]
  assert re.findall(r"\d[\d.]*[mb]", doc.partition("(gpt2")[0]) == list(
      common.PAPER_SIZES)
