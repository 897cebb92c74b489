"""Data are data: none runs a program, none names a file to write."""

import ast
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data import tfds_files
from rlhf_jax.data.records import DataError
from tests.hostile import crafted

_ROOT = pathlib.Path(__file__).parents[2]
_MODULES = sorted((_ROOT / "rlhf_jax").rglob("*.py"))

# What runs a program, or a program's text, by its name as called. Which modules
# are imported is `tests/test_layers.py`'s: none of pickle's kind.
_NAMES = {"eval", "exec", "compile", "__import__"}
_ATTRIBUTES = {
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnv", "spawnl"},
    "yaml": {"load", "unsafe_load", "full_load"},
    "importlib": {"import_module"},
    "joblib": {"load"}, "pandas": {"read_pickle"}, "jsonpickle": {"decode"},
}
# The program begins itself again, with the command line that it was given.
_ALLOWED = {"rlhf_jax/host_memory.py": ["os.execve"]}


def _called(tree):
  """(line, what is wrong) of each call that no module may make."""
  for node in ast.walk(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      names = [alias.name for alias in node.names]
      if "subprocess" in names or getattr(node, "module", "") == "subprocess":
        yield node.lineno, "subprocess"
    if not isinstance(node, ast.Call):
      continue
    function = node.func
    if isinstance(function, ast.Name) and function.id in _NAMES:
      yield node.lineno, function.id
    if isinstance(function, ast.Attribute):
      owner = function.value.id if isinstance(function.value, ast.Name) else ""
      if function.attr in _ATTRIBUTES.get(owner, ()):
        yield node.lineno, f"{owner}.{function.attr}"
    yield from ((node.lineno, "allow_pickle") for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant)
                         and keyword.value.value is False))


@pytest.mark.parametrize(
    "path", _MODULES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_no_module_runs_what_it_reads(path):
  found = [what for _, what in _called(ast.parse(path.read_text()))]
  assert found == _ALLOWED.get(str(path.relative_to(_ROOT)), [])


@pytest.mark.parametrize("source", [
    "eval(x)", "exec(x)", "compile(x, '', 'eval')", "__import__('os')",
    "import subprocess", "from subprocess import run", "os.system(x)",
    "yaml.load(x)", "importlib.import_module(x)",
    "np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=y)"])
def test_the_parser_sees_them(source):
  assert list(_called(ast.parse(source)))


# ------------------------------------------------------------------ at run time


_WATCH = textwrap.dedent("""
    import pickle, sys
    from tests.hostile import crafted

    folder = sys.argv[1]
    # With nothing bad in it, twice: what imports or compiles at first does it
    # now, and what happens each time is not caused by what data say (the queue
    # of TensorBoard's writer hands its own events on as pickles).
    crafted.use_everything(folder + "/good", "a plain word")
    seen, watching = [], True
    events = ("pickle.find_class", "exec", "compile", "os.system", "os.exec",
              "os.posix_spawn", "subprocess.Popen")

    def hook(event, arguments):
      if watching and event in events:
        seen.append(f"{event} {arguments!r:.200}")

    def refuse(*args, **kwargs):
      seen.append("pickle")

    pickle.load = pickle.loads = pickle.Unpickler = refuse
    sys.addaudithook(hook)
    crafted.use_everything(folder + "/again", "a plain word")
    usual = set(seen)
    for text in crafted.CODE:
      crafted.use_everything(f"{folder}/{crafted.CODE.index(text)}", text)
    found = [event for event in seen if event not in usual]
    number = len(seen)
    eval("1")  # would be seen
    pickle.loads(b"")
    watching = False
    print(found)
    print(seen[number:])
    print(sorted(usual))
""")


def test_no_file_of_data_runs_anything(tmp_path, account):
  found = subprocess.run(
      [sys.executable, "-c", _WATCH, str(tmp_path)], cwd=_ROOT,
      capture_output=True, text=True, timeout=120, check=False,
      env=os.environ | {"JAX_PLATFORMS": "cpu"})
  assert found.returncode == 0, found.stderr[-2000:]
  caused, seen_at_all, usual = found.stdout.splitlines()[-3:]
  assert caused == "[]"
  assert all("tensorboardX" in event or "('builtins', 'object')" in event
             for event in ast.literal_eval(usual)), usual
  assert "compile" in seen_at_all and "pickle" in seen_at_all
  assert not list(tmp_path.rglob("pwned*"))
  account("no code", tried=len(crafted.CODE), accepted=len(crafted.CODE),
          answered=0)


@pytest.mark.parametrize("key", ["type", "pythonClassName",
                                 "python_class_name"])
def test_a_dataset_cannot_have_a_module_imported(tmp_path, monkeypatch, key):
  """TFDS itself would import the one that features.json names."""
  (tmp_path / "evil_feature.py").write_text(
      f"open({str(tmp_path / 'pwned')!r}, 'w').close()\n")
  monkeypatch.syspath_prepend(tmp_path)
  crafted.use_everything(tmp_path / "run", "a plain word")
  for path in (tmp_path / "run").rglob("features.json"):
    tree = json.loads(path.read_text())
    inner = next(iter(tree["featuresDict"]["features"].values()))
    inner.pop("pythonClassName")
    inner[key] = "evil_feature.Feature"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="evil_feature.Feature"):
      tfds_files.check(path.parent)
  for kind in records.KINDS:
    with pytest.raises(DataError, match="features.json: names the class"):
      crafted.open_all(tmp_path / "run", kind)
    with pytest.raises(DataError, match="features.json: names the class"):
      next(sources.read(f"tfds:{kind}/train", kind,
                        root=str(tmp_path / "run" / "prepared")))
  assert not (tmp_path / "pwned").exists()


# ----------------------------------------------------- no path outside a folder


_TRACE = textwrap.dedent("""
    import json, os, sys
    from tests.hostile import crafted

    folder = os.path.realpath(sys.argv[1])
    crafted.use_everything(folder + "/good", "a plain word")
    written, watching = [], False

    def hook(event, arguments):
      if not watching:
        return
      if event == "open":
        path, mode, flags = arguments
        writes = (mode is not None and set(str(mode)) & set("wax+")) or (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and not isinstance(path, int):
          written.append(os.fsdecode(path))
      elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        written.append(os.fsdecode(arguments[0]))
      elif event in ("os.rename", "os.link", "os.symlink"):
        written.extend(map(os.fsdecode, arguments[:2]))

    sys.addaudithook(hook)
    before = set(os.listdir("/")) | set(os.listdir(folder + "/.."))
    for number, text in enumerate(crafted.PATHS):
      watching = True
      crafted.use_everything(f"{folder}/{number}", text)
      watching = False
    after = set(os.listdir("/")) | set(os.listdir(folder + "/.."))
    assert before == after, after - before
    print(json.dumps(written))
""")


def test_no_id_becomes_a_path(tmp_path, account):
  folder = tmp_path / "inside"
  folder.mkdir()
  found = subprocess.run(
      [sys.executable, "-c", _TRACE, str(folder)], cwd=_ROOT,
      capture_output=True, text=True, timeout=120, check=False,
      env=os.environ | {"JAX_PLATFORMS": "cpu"})
  assert found.returncode == 0, found.stderr[-2000:]
  written = json.loads(found.stdout.splitlines()[-1])
  inside = [path for path in written if _is_inside(path, folder)]
  assert len(inside) > len(crafted.PATHS)  # the hook has seen something
  marks = [text for text in crafted.PATHS if len(text) > 3]
  for path in set(written) - set(inside):
    # What libraries keep for themselves: of no text of ours.
    assert path == "/dev/null" or path.startswith(("/tmp/", "/proc/self/")) or (
        ".cache" in path), path
    assert not any(mark in path for mark in marks), path
  for path in inside:
    names = pathlib.PurePath(path).relative_to(folder).parts[1:]
    assert not any(mark in name for mark in marks for name in names), path
  account("paths", tried=len(crafted.PATHS), accepted=len(crafted.PATHS),
          answered=0)


def _is_inside(path, folder):
  path = pathlib.Path(path)
  return path.is_absolute() and path.resolve().is_relative_to(folder.resolve())
