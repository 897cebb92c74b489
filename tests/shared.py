"""A folder that all processes of one session of tests share; and modules that
are in no package.

Workers of pytest-xdist, and processes that tests start, find it by an
environment variable; who makes it removes it in the end.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib.util
import os
import pathlib
import tempfile
import types

_NAME = "RLHF_JAX_TESTS"


@functools.cache
def folder() -> pathlib.Path:
  if _NAME not in os.environ:
    made = tempfile.TemporaryDirectory(prefix="tests_")
    atexit.register(made.cleanup)
    os.environ[_NAME] = made.name
  return pathlib.Path(os.environ[_NAME])


def compiled() -> pathlib.Path:
  """For what is compiled, which nobody need compile again."""
  return folder() / "compiled"


@contextlib.contextmanager
def lock(name: str):
  """One process at a time; the others wait."""
  with open(folder() / f"{name}.lock", "w", encoding="utf-8") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def collect_seldom() -> None:
  """Called after all imports: what they made is no garbage, and tracing makes
  so many objects that Python would look through all of it again and again."""
  gc.freeze()
  gc.set_threshold(10_000, 20, 20)


def module_at(path: pathlib.Path) -> types.ModuleType:
  """A script that is in no package, as a module."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
