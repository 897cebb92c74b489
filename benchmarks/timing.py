"""How one phase of one system is timed, in a process of its own.

A system is a module `benchmarks.systems.NAME` with `PHASES`, phase ->
make(job) -> a function that does the phase once and has its result on the
host or its state updated when it returns; or that times itself with the job's
recorder. `SKIPPED` says of other phases why they are missing; the versions of
`PACKAGES` are recorded; `make_gemm(m, k, n)` is of `systems/products.py`;
`around()`, where there is one, is a context for all of it. NumPy only.
"""

import argparse
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import time
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks import work

MARK = "RESULT "
QUIET_CORES = 0.15  # others may use so much of one core
_CHECK = "check"
_GEMM = "gemm"
_MIN_GEMM_SECONDS = 0.05


class Enough(Exception):
  """Ends a system's own loop."""


@dataclasses.dataclass
class Recorder:
  """Intervals, and how many cores others used meanwhile.

  Attributes:
    num_warmups: intervals before those that count.
    num_quiet: so many quiet ones are enough.
    most: intervals that count at most, quiet or not.
  """

  num_warmups: int
  num_quiet: int
  most: int
  seconds: list[float] = dataclasses.field(default_factory=list)
  others: list[float] = dataclasses.field(default_factory=list)
  _started: Any = None

  def start(self) -> None:
    self._started = (_others_seconds(), time.perf_counter())

  def stop(self) -> None:
    """Ends the interval."""
    others, started = self._started
    seconds = time.perf_counter() - started
    self.seconds.append(seconds)
    self.others.append(max(0.0, (_others_seconds() - others) / seconds))

  def is_enough(self) -> bool:
    counted = self.others[self.num_warmups:]
    quiet = sum(x < QUIET_CORES for x in counted)
    return quiet >= self.num_quiet or len(counted) >= self.most

  def stop_or_end(self) -> None:
    """`stop` for a loop that is not ours.

    Raises:
      Enough: no more are needed.
    """
    self.stop()
    if self.is_enough():
      raise Enough

  def result(self) -> dict[str, Any]:
    """First call, and all counted intervals in seconds; `median` is that of
    the quiet ones, or of all where none was quiet."""
    seconds = self.seconds[self.num_warmups:]
    others = self.others[self.num_warmups:]
    quiet = [s for s, o in zip(seconds, others) if o < QUIET_CORES]
    figures = quiet or seconds
    return {
        "first_call_seconds": self.seconds[0],
        "seconds": statistics.median(figures),
        "min_seconds": min(figures),
        "max_seconds": max(figures),
        "num_quiet": len(quiet),
        "num_calls": len(seconds),
        "others_cores": statistics.median(others),
        "all_seconds": seconds,
    }


@dataclasses.dataclass(frozen=True)
class Job:
  """What a system is asked for.

  Attributes:
    size: of the models and batches.
    weights: the folder of `benchmarks.weights`.
    recorder: for systems that run a loop of their own.
    inputs: of `work.inputs`.
  """

  size: work.Size
  weights: pathlib.Path
  recorder: Recorder
  inputs: dict[str, np.ndarray]


def main(system: ModuleType) -> None:
  """The program of a system's module: prints one line of JSON."""
  parser = argparse.ArgumentParser(description=system.__doc__)
  parser.add_argument("--phase", required=True)
  parser.add_argument("--size", required=True, choices=work.SIZES)
  parser.add_argument("--weights", required=True, type=pathlib.Path)
  parser.add_argument("--num_warmups", type=int, default=2)
  parser.add_argument("--num_quiet", type=int, default=5)
  parser.add_argument("--most", type=int, default=15)
  args = parser.parse_args()
  with getattr(system, "around", contextlib.nullcontext)():
    found = answer(system, args)
  print(MARK + json.dumps(found), flush=True)


def answer(system: ModuleType, args) -> dict[str, Any]:
  """What a system's process says of the phase it was asked for."""
  size = work.SIZES[args.size]
  job = Job(
      size, args.weights,
      Recorder(args.num_warmups, args.num_quiet, args.most),
      work.inputs(size))
  if args.phase == _CHECK:
    found = system.outputs(job)
    return {"outputs": {name: np.asarray(x, np.float64).tolist()
                        for name, x in found.items()}}
  if args.phase == _GEMM:
    return {"gemm": gemm_rates(system, size)}
  if args.phase not in system.PHASES:
    return {"skipped": system.SKIPPED.get(
        args.phase, f"{system.NAME} has no such phase")}
  started = time.perf_counter()
  call = system.PHASES[args.phase](job)
  setup_seconds = time.perf_counter() - started
  notes = measure(call, job.recorder)
  return {
      **job.recorder.result(),
      "setup_seconds": setup_seconds,
      "peak_mb": peak_bytes() / 1e6,
      "versions": {name: importlib.metadata.version(name)
                   for name in system.PACKAGES},
      **notes,
  }


def measure(call: Callable[[], Any], recorder: Recorder) -> dict[str, Any]:
  """Calls until the recorder has enough.

  Returns:
    What the last call wants to be in the record: its result, if a dict.
  """
  result = None
  while not recorder.is_enough():
    if getattr(call, "times_itself", False):
      try:
        result = call()
      except Enough:
        break
      continue
    recorder.start()
    result = call()
    recorder.stop()
  return result if isinstance(result, dict) else {}


def times_itself(call: Callable[[], Any]) -> Callable[[], Any]:
  """The call, marked as one that starts and stops the recorder."""
  marked = functools.partial(call)
  marked.times_itself = True
  return marked


def gemm_rates(system: ModuleType, size: work.Size) -> dict[str, float]:
  """The library's FLOP/s at each product of each phase: "m,k,n" -> rate."""
  shapes = {shape for phase in work.PHASES
            for shape in work.gemm_shapes(size, phase)}
  return {",".join(map(str, shape)): rate_of(system.make_gemm(*shape), shape)
          for shape in sorted(shapes)}


def rate_of(product: Callable[[], Any], shape: tuple[int, int, int]) -> float:
  """FLOP/s of a product: the best of five times."""
  product(), product()
  started = time.perf_counter()
  product()
  once = max(time.perf_counter() - started, 1e-6)
  calls = max(1, int(_MIN_GEMM_SECONDS / once))
  best = float("inf")
  for _ in range(5):
    started = time.perf_counter()
    for _ in range(calls):
      product()
    best = min(best, (time.perf_counter() - started) / calls)
  m, k, n = shape
  return 2 * m * k * n / best


def check_rollout(ids: np.ndarray, size: work.Size) -> None:
  """Raises RuntimeError unless these are B responses of R real tokens."""
  if ids.shape != (size.batch, size.response):
    raise RuntimeError(
        f"{ids.shape} response ids, not {(size.batch, size.response)}")
  if ids.min() < 0 or ids.max() >= size.vocab:
    raise RuntimeError(f"ids up to {ids.max()}: the vocabulary ends before")


def peak_bytes() -> int:
  """The most memory that this process has held."""
  if os.path.exists("/proc/self/status"):
    with open("/proc/self/status", encoding="ascii") as f:
      return 1024 * next(int(line.split()[1]) for line in f if "VmHWM" in line)
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _others_seconds() -> float:
  """Processor time of all that ran on this machine, without this process's
  own; what another machine took of the processor is in it."""
  own = resource.getrusage(resource.RUSAGE_SELF)
  if not os.path.exists("/proc/stat"):
    return 0.0
  with open("/proc/stat", encoding="ascii") as f:
    user, nice, system, _, _, irq, soft, stolen = map(
        int, f.readline().split()[1:9])
  busy = user + nice + system + irq + soft + stolen
  return busy / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime
