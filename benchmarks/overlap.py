"""What the host does while the devices run a step, with a host that is slow.

  python -m benchmarks.overlap [--batch_ms=60] [--read_ms=20] [--steps=12] \
      [--trace=FILE.json]

Runs the training loop (rlhf_jax/loop.py) with a made-up stage: its step is a
product of matrices on the device, its batch and the reading of its values wait
on the host for a while, as for a slow disk. Prints what ran when, and the time
of a step beside that of the same three one after the other. `--trace` writes
the same as a trace for Perfetto or chrome://tracing.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
import types

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import common
from rlhf_jax import loop, metrics

_BATCH_MS = flags.DEFINE_float(
    "batch_ms", 60, "the host needs for a batch", lower_bound=0)
_READ_MS = flags.DEFINE_float(
    "read_ms", 20, "the host needs for the values of a step", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", 12, "of the loop", lower_bound=4)
_TRACE = flags.DEFINE_string("trace", "", "file for a trace; '' for none")

LANES = ("batch", "step", "read")
_WIDTH = 72  # characters of a line of time
_DRAWN = 5  # steps


@dataclasses.dataclass(frozen=True)
class Interval:
  """Seconds of one lane's work for one step."""

  lane: str
  number: int
  begin: float
  end: float


class Stage:
  """The made-up stage; keeps when everything ran."""

  def __init__(self, batch_seconds: float, read_seconds: float):
    self._batch_seconds = batch_seconds
    self._read_seconds = read_seconds
    self._matrix = jnp.full((1024, 1024), 1e-3, jnp.float32)
    self._product = jax.jit(lambda x: jax.lax.fori_loop(
        0, 8, lambda _, y: y @ x, x).sum())
    self._device = futures.ThreadPoolExecutor(max_workers=1)
    self.intervals: list[Interval] = []

  def batch(self, number: int):
    self._timed("batch", number, lambda: time.sleep(self._batch_seconds))
    return {"rows": {"number": np.array([number])}}

  def step(self, state, unused_batch, number: int):
    found = self._product(self._matrix)
    # a thread waits for the device, for the loop does not
    ended = self._device.submit(
        self._timed, "step", number, lambda: jax.block_until_ready(found))
    return state, (number, found, ended)

  def read(self, waiting):
    number, found, ended = waiting
    ended.result()
    self._timed("read", number, lambda: time.sleep(self._read_seconds))
    return {"train/toy/loss": float(found)}

  def _timed(self, lane: str, number: int, work) -> None:
    begin = time.perf_counter()
    work()
    self.intervals.append(Interval(lane, number, begin, time.perf_counter()))


def one_after_the_other(stage: Stage, num_steps: int) -> None:
  for number in range(num_steps):
    batch = stage.batch(number)
    stage.read(stage.step(None, batch, number)[1])


def by_the_loop(stage: Stage, num_steps: int, workdir: pathlib.Path) -> None:
  run = types.SimpleNamespace(
      workdir=workdir, writer=metrics.Writer(workdir),
      config=ml_collections.ConfigDict({"guards": common.guards(common.MINI)}))
  training = loop.Training(
      run=run, stage="toy", num_steps=num_steps, abstract=None,
      create=lambda: types.SimpleNamespace(step=0), streams={},
      batch=stage.batch, step=stage.step, read=stage.read, constants={},
      shown={})
  loop.train(training, types.SimpleNamespace(latest_step=0),
             every_log_steps=1, is_saved=lambda step: False)
  run.writer.close()


def seconds_a_step(intervals: Sequence[Interval]) -> float:
  """Median time from the end of a device's step to that of the next one."""
  ends = sorted(i.end for i in intervals if i.lane == "step")
  return statistics.median(np.diff(ends[1:]))


def draw(intervals: Sequence[Interval], first: int = 2) -> str:
  """A line a lane, a column a slice of time, the last digit of the step."""
  shown = [i for i in intervals if first <= i.number < first + _DRAWN]
  begin, end = min(i.begin for i in shown), max(i.end for i in shown)
  column = lambda t: min(int(_WIDTH * (t - begin) / (end - begin)), _WIDTH - 1)
  lines = []
  for lane in LANES:
    cells = ["."] * _WIDTH
    for i in (i for i in shown if i.lane == lane):
      for place in range(column(i.begin), column(i.end) + 1):
        cells[place] = str(i.number % 10)
    lines.append(f"{lane:>6} {''.join(cells)}")
  return "\n".join(lines) + f"\n{'':6} {1e3 * (end - begin):.0f} ms"


def as_trace(intervals: Sequence[Interval]) -> dict:
  """The trace events that Perfetto reads."""
  start = min(i.begin for i in intervals)
  return {"traceEvents": [
      {"name": f"{i.lane} {i.number}", "ph": "X", "pid": 0,
       "tid": LANES.index(i.lane), "ts": 1e6 * (i.begin - start),
       "dur": 1e6 * (i.end - i.begin)} for i in intervals]}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  host = _BATCH_MS.value / 1e3, _READ_MS.value / 1e3
  apart, together = Stage(*host), Stage(*host)
  one_after_the_other(apart, _STEPS.value)
  with tempfile.TemporaryDirectory() as folder:
    by_the_loop(together, _STEPS.value, pathlib.Path(folder))
  for name, stage in (("one after the other", apart), ("the loop", together)):
    print(f"{name}: {1e3 * seconds_a_step(stage.intervals):.1f} ms a step\n"
          f"{draw(stage.intervals)}\n")
  if _TRACE.value:
    pathlib.Path(_TRACE.value).write_text(
        json.dumps(as_trace(together.intervals)))


if __name__ == "__main__":
  app.run(main)
