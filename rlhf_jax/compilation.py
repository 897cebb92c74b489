"""What was compiled once is kept, for this run's next start and for others;
and how long compiling took."""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import os
import threading
from typing import Any

from etils import epath
import jax
# Private, for JAX has no other way to look into its own files.
from jax._src import compilation_cache

from rlhf_jax import storage

FOLDER = ".jax_cache"
# In a bucket each entry costs some requests; what compiles faster is not kept.
_MIN_SECONDS_IN_A_BUCKET = 1.0
# A process writes one entry at a time; so many processes may share a folder.
_NEWEST = 16


def enable_compilation_cache(workdir: epath.PathLike) -> str:
  """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, else by `workdir`.

  Runs with other workdirs in the same folder share them. JAX's keys hold the
  programs, their options, the versions and the machine, so a folder can serve
  several kinds of machines. Nothing is evicted: the folder may be removed at
  any time.

  Returns:
    The folder.
  """
  asked: str | None = jax.config.jax_compilation_cache_dir  # type: ignore
  folder = asked or str(
      storage.absolute(workdir).parent / FOLDER)
  in_bucket = storage.is_bucket(folder)
  if not in_bucket:
    remove_torn(folder)
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  jax.config.update(
      "jax_persistent_cache_min_compile_time_secs",
      _MIN_SECONDS_IN_A_BUCKET if in_bucket else 0.0)
  return folder


def remove_torn(folder: str) -> list[str]:
  """Removes what a killed process wrote in part, of the newest entries.

  JAX writes them in place: it would warn of such a one at every start, compile
  the program, and never write it again.

  Returns:
    The names of the files removed.
  """
  entries = [entry for entry in os.scandir(folder)
             if entry.name.endswith("-cache")] if os.path.isdir(folder) else []
  entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
  removed = []
  for entry in entries[:_NEWEST]:
    try:
      with open(entry.path, "rb") as f:
        compilation_cache.decompress_executable(f.read())
    except Exception:  # zlib's or zstd's, whichever JAX uses
      with contextlib.suppress(FileNotFoundError):  # another did so
        os.unlink(entry.path)
      removed.append(entry.name)
  return removed


# ------------------------------------------------------------- how long it took

_TRACING = "/jax/core/compile/jaxpr_trace_duration"
_LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILING = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"
_PHASES = {_TRACING: "tracing_seconds", _LOWERING: "lowering_seconds",
           _COMPILING: "compiling_seconds"}
_SHOWN = 5  # functions of a stage


@dataclasses.dataclass(eq=False)
class Compiled:
  """What was compiled while something ran.

  Attributes:
    programs: given to the compiler, or taken from the cache in its place.
    from_cache: those of them that were in the cache.
    seconds: of tracing, lowering and compiling (fetching, where it was in the
      cache).
    by_function: all three together, by the function's name.
  """

  programs: int = 0
  from_cache: int = 0
  seconds: collections.Counter = dataclasses.field(
      default_factory=collections.Counter)
  by_function: collections.Counter = dataclasses.field(
      default_factory=collections.Counter)

  def as_json(self) -> dict[str, Any]:
    """For `summary.json`; of the functions those that took longest."""
    return {
        "programs": self.programs, "from_cache": self.from_cache,
        **{name: round(self.seconds[name], 3) for name in _PHASES.values()},
        "seconds_by_function": {
            name: round(seconds, 3)
            for name, seconds in self.by_function.most_common(_SHOWN)}}


@contextlib.contextmanager
def recorded() -> Iterator[Compiled]:
  """What JAX compiles inside, by all threads."""
  found = Compiled()
  _records.open.append(found)
  try:
    yield found
  finally:
    _records.open.remove(found)


class _Records:
  """Hears what JAX says of its compiling; one a process."""

  def __init__(self):
    self.open: list[Compiled] = []
    self._lock = threading.Lock()
    jax.monitoring.register_event_listener(self._on_event)
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)

  def _on_event(self, event: str, **unused) -> None:
    if event == _FROM_CACHE:
      with self._lock:
        for found in self.open:
          found.from_cache += 1

  def _on_duration(
      self, event: str, seconds: float, fun_name: str = "", **unused) -> None:
    if event not in _PHASES:
      return
    # as "jit_step" or "jit(step)", once it is a module
    name = fun_name.removeprefix("jit").strip("_()") or fun_name
    with self._lock:
      for found in self.open:
        found.programs += event == _COMPILING
        # a Counter counts seconds as well
        found.seconds[_PHASES[event]] += seconds  # type: ignore[assignment]
        found.by_function[name] += seconds  # type: ignore[assignment]


_records = _Records()
