"""Where the time of a stage goes, with `config.profile`.

  with profiling.phase("generate") as done:
    sampled = done(generate(params, key, rows))

Without a profile this is nothing: no clock is read and nothing waited for.
With one `done` waits until its arrays are there, so that a phase has the time
of its devices; host and devices then take turns, and the stage is slower. Its
results are the same.

A profile leaves in `STAGE/profile`:

  phases.json       the table of `format_table`
  plugins/profile/  the trace of a few steps after the first, for TensorBoard,
                    and beside it `perfetto_trace.json.gz` for Perfetto
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
import dataclasses
import json
import statistics
import time
from typing import Any

from etils import epath
import jax
# Private, for JAX does not say which libraries it has loaded.
from jax._src.lib import _jax
import tabulate

from rlhf_jax import storage

FOLDER = "profile"
_TRACED = 3  # steps in the trace
_FIRST = 2  # steps in which programs are compiled; as `guards` has it
_NOTHING = contextlib.nullcontext(lambda arrays: arrays)
_profile: contextvars.ContextVar["_Profile | None"] = contextvars.ContextVar(
    "profile", default=None)


def phase(name: str) -> contextlib.AbstractContextManager[
    Callable[[Any], Any]]:
  """Around a part of a step; gives `done`, which gives back its arrays. Of
  phases within each other the inner one has the time."""
  profile = _profile.get()
  return _NOTHING if profile is None else profile.phase(name)


def next_step() -> None:
  """A step, or what repeats itself in a stage without steps, begins."""
  profile = _profile.get()
  if profile is not None:
    profile.next_step()


@contextlib.contextmanager
def of_stage(folder: epath.PathLike, is_profiled: bool) -> Iterator[None]:
  """Around a stage, whose folder it is; process 0 profiles for all."""
  if not is_profiled:
    yield
    return
  profile = _Profile(epath.Path(folder) / FOLDER)
  token = _profile.set(profile)
  try:
    yield
  finally:
    _profile.reset(token)
    profile.stop()
  profile.write()


def can_trace() -> bool:
  """Whether a trace can be taken. JAX asks every library that it has loaded
  for its profiler: on a machine without a TPU libtpu may be there for plans, in
  a version that has another one, and the process would end."""
  return jax.default_backend() == "tpu" or not _jax.pjrt_plugin_loaded("tpu")


@dataclasses.dataclass
class _Times:
  """Seconds of one phase: in the first steps, and of each time after."""

  first: float = 0.0
  later: list[float] = dataclasses.field(default_factory=list)


class _Profile:
  """One stage's."""

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._is_writer = jax.process_index() == 0
    self._times: dict[str, _Times] = {}
    self._inner = [0.0]  # seconds of phases inside the open ones
    self._steps = 0
    self._is_tracing = False
    self._started = time.monotonic()
    self._warm: float | None = None  # when the first steps were over

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[Callable[[Any], Any]]:
    started = time.monotonic()
    self._inner.append(0.0)
    with jax.profiler.TraceAnnotation(name):
      yield jax.block_until_ready
    seconds = time.monotonic() - started
    own = seconds - self._inner.pop()
    self._inner[-1] += seconds
    times = self._times.setdefault(name, _Times())
    if self._warm is None or not (times.first or times.later):
      times.first += own
    else:
      times.later.append(own)

  def next_step(self) -> None:
    self._steps += 1
    if self._steps == _FIRST + 1:
      self._warm = time.monotonic()
      self._start_trace()
    elif self._steps == _FIRST + _TRACED + 1:
      self._stop_trace()

  def stop(self) -> None:
    self._stop_trace()
    self._ended = time.monotonic()

  def _start_trace(self) -> None:
    if not self._is_writer:
      return
    if not can_trace():
      print("no trace, only the table: libtpu is loaded, without a TPU, and "
            "JAX would end the process. Start it with JAX_PLATFORMS="
            f"{jax.default_backend()}.", flush=True)
      return
    with self.phase("profile"):
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # every call: many, and slow
      here = storage.local_path(self._folder)
      storage.remove(here)
      here.mkdir(parents=True)
      jax.profiler.start_trace(
          str(here), create_perfetto_trace=True, profiler_options=options)
      self._is_tracing = True

  def _stop_trace(self) -> None:
    if self._is_tracing:
      with self.phase("profile"):
        self._is_tracing = False
        jax.profiler.stop_trace()

  def write(self) -> None:
    """phases.json; prints the table."""
    if not self._is_writer:
      return
    here = storage.local_path(self._folder)
    here.mkdir(parents=True, exist_ok=True)
    found = self.as_json()
    (here / "phases.json").write_text(json.dumps(found, indent=2) + "\n")
    storage.upload_folder(self._folder)
    print(format_table(self._folder.parent.name, found)
          + f"\nprofile: {self._folder}\n", flush=True)

  def as_json(self) -> dict[str, Any]:
    """The seconds after the first steps by phase, with what lies between."""
    warm = self._ended if self._warm is None else self._warm
    after = self._ended - warm
    phases = {
        name: {"times": len(times.later),
               "seconds": sum(times.later),
               "median_seconds": statistics.median(times.later or [0.0]),
               "first_seconds": times.first}
        for name, times in self._times.items()}
    return {
        "steps": self._steps, "first_steps": min(self._steps, _FIRST),
        "seconds": after, "first_seconds": warm - self._started,
        "phases": phases}


def format_table(stage: str, found: Mapping[str, Any]) -> str:
  """One line a phase, those first that took longest after the first steps."""
  phases = sorted(
      found["phases"].items(),
      key=lambda item: (-item[1]["seconds"], -item[1]["first_seconds"]))
  total = sum(times["seconds"] for _, times in phases)
  rows = [{
      f"{stage}, phase": name,
      "times": times["times"],
      "seconds": f"{times['seconds']:.3f}",
      "share": f"{100 * times['seconds'] / (found['seconds'] or 1):.1f} %",
      "median ms": f"{1000 * times['median_seconds']:.2f}",
      "first s": f"{times['first_seconds']:.3f}"} for name, times in phases]
  rows.append({
      f"{stage}, phase": "all, and between", "times": "",
      "seconds": f"{found['seconds']:.3f}",
      "share": f"{found['seconds'] - total:.3f} s between",
      "median ms": "", "first s": f"{found['first_seconds']:.3f}"})
  return "\n" + tabulate.tabulate(rows, headers="keys", disable_numparse=True)
