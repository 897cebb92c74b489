"""This code and its peers at the same work, in one run on this machine.

  python -m benchmarks.peers --sizes=tiny,small --environments=ENVS --out=OUT

`benchmarks/make_environments.py` makes ENVS, a virtual environment a system.
Each phase of each system is a process of its own. Before, all of them compute
the same outputs from the same weights: a system that disagrees is not timed.
OUT/results.jsonl gets a line a phase as it comes, OUT/table.md and table.txt
the tables. benchmarks/README.md says what is measured and how to read it.
"""

import argparse
from collections.abc import Callable
import dataclasses
import glob
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks import limits
from benchmarks import tables
from benchmarks import timing
from benchmarks import weights
from benchmarks import work

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TOLERANCE = 1e-4  # of outputs, relative to the largest
# Means over sampled tokens; standard errors of their difference.
_SAMPLING_ERRORS = 5.0
OURS = "rlhf_jax"


@dataclasses.dataclass(frozen=True)
class System:
  """A program that is measured.

  Attributes:
    module: of benchmarks.systems.
    environment: its folder's name.
    variables: makes what is set in its processes beside.
  """

  module: str
  environment: str
  variables: Callable[[], dict[str, str]] = dict


def allocator() -> dict[str, str]:
  """What keeps large temporaries mapped: jemalloc where it is installed, else
  settings of glibc's own."""
  found = [path for pattern in ("/usr/lib/*/", "/usr/lib64/", "/usr/lib/")
           for path in sorted(glob.glob(pattern + "libjemalloc.so*"))]
  if found:
    return {"LD_PRELOAD": found[0], "MALLOC_CONF": (
        "oversize_threshold:1,background_thread:true,metadata_thp:auto,"
        "dirty_decay_ms:-1,muzzy_decay_ms:-1")}
  return {"MALLOC_MMAP_THRESHOLD_": str(2**32),
          "MALLOC_TRIM_THRESHOLD_": str(2**36),
          "MALLOC_TOP_PAD_": str(2**26)}


SYSTEMS = {
    OURS: System("rlhf_jax", "rlhf_jax"),
    "torch": System("torch", "torch", allocator),
    "trl": System("trl", "trl"),
    "trl_allocator": System("trl", "trl", allocator),
    "tunix": System("tunix", "tunix"),
}


class ProcessError(RuntimeError):
  """A system's process failed."""


def python_of(system: System, environments: str) -> str:
  """The interpreter of a system; this one for our own, if it has none.

  Raises:
    FileNotFoundError: there is none.
  """
  path = os.path.join(environments, system.environment, "bin", "python")
  if os.path.exists(path):
    return path
  if system.module == OURS:
    return sys.executable
  raise FileNotFoundError(
      f"{path} is missing: make it with python -m "
      f"benchmarks.make_environments {environments} {system.environment}, or "
      "leave the system out of --systems")


def ask(
    system: System, phase: str, size: str, folder: str, *, environments: str,
    launcher: list[str], options: tuple[str, ...] = (),
) -> dict[str, Any]:
  """What a process of the system's says of a phase.

  Raises:
    ProcessError: it failed; the message ends with its last words.
  """
  variables = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false",
                                  "HF_HUB_OFFLINE": "1"}
  variables |= system.variables()
  command = [
      *launcher, python_of(system, environments), "-m",
      f"benchmarks.systems.{system.module}", f"--phase={phase}",
      f"--size={size}", f"--weights={folder}", *options]
  return _answer(command, variables)


def _answer(command: list[str], variables=None) -> dict[str, Any]:
  done = subprocess.run(
      command, cwd=_ROOT, env=variables, check=False, text=True,
      capture_output=True)
  lines = [line for line in done.stdout.splitlines()
           if line.startswith(timing.MARK)]
  if done.returncode or not lines:
    words = "\n".join(done.stderr.splitlines()[-20:])
    raise ProcessError(f"{shlex.join(command)} failed:\n{words}")
  return json.loads(lines[-1][len(timing.MARK):])


def differences(
    expected: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
  """By output: the largest difference relative to the largest value; of
  sampled tokens' log-probabilities, that of the means in multiples of the
  tolerance's own limit, so that 1e-4 is the limit there as well.

  Outputs that one of the two lacks are left out.
  """
  result = {}
  for name in sorted(expected.keys() & found.keys()):
    a, b = np.asarray(expected[name]), np.asarray(found[name])
    if a.shape != b.shape:
      result[name] = float("inf")
    elif name == "sampled_logprobs":
      error = np.sqrt((a.var() + b.var()) / a.size)
      result[name] = float(
          abs(a.mean() - b.mean()) / (_SAMPLING_ERRORS * error) * _TOLERANCE)
    else:
      difference = np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)
      result[name] = float(difference) if np.isfinite(difference) else (
          float("inf"))
  return result


def refusal(found: dict[str, float]) -> str:
  """Why a system with these differences is not timed; '' if it is."""
  wrong = [f"{name} by {value:.1e}" for name, value in found.items()
           if not value <= _TOLERANCE]
  if not found:
    return "its outputs have nothing in common with this code's"
  return ("outputs differ from this code's (relative to the largest, "
          f"{_TOLERANCE:g} allowed): {', '.join(wrong)}") if wrong else ""


@dataclasses.dataclass
class Runner:
  """One run; every record is kept, printed and appended to a file."""

  out: pathlib.Path
  environments: str
  launcher: list[str]
  options: tuple[str, ...]
  records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def add(self, **record) -> None:
    self.records.append(record)
    line = json.dumps(record)
    shown = {k: v for k, v in record.items() if not isinstance(v, (dict, list))}
    print(json.dumps(shown), flush=True)
    with open(self.out / "results.jsonl", "a", encoding="utf-8") as f:
      f.write(line + "\n")

  def ask(self, system: str, phase: str, size: str) -> dict[str, Any]:
    return ask(
        SYSTEMS[system], phase, size, str(self.out / "weights" / size),
        environments=self.environments, launcher=self.launcher,
        options=self.options)

  def run_size(self, name: str, systems: list[str], phases: list[str]):
    size = work.SIZES[name]
    folder = self.out / "weights" / name
    if not (folder / "ending").exists():
      weights.make(size, folder)
      weights.make_ending(size, folder)
    agreeing = self.check(name, systems)
    gemm = self.gemm(name, agreeing)
    machine = next((r for r in self.records if r["kind"] == "machine"), {})
    for phase in phases:
      for system in agreeing if phase in work.PHASES else [OURS]:
        if system not in agreeing:
          continue
        try:
          found = self.ask(system, phase, name)
        except ProcessError as error:
          found = {"failed": str(error)}
        if "seconds" in found:
          found |= figures(size, phase, found, gemm, machine)
        self.add(kind="phase", system=system, size=name, phase=phase, **found)

  def check(self, size: str, systems: list[str]) -> list[str]:
    """Those whose outputs are those of this code."""
    expected = self.ask(OURS, "check", size)["outputs"]
    agreeing, known = [], {OURS: expected}
    for system in systems:
      module = SYSTEMS[system].module
      try:
        if module not in known:
          known[module] = self.ask(system, "check", size)["outputs"]
      except ProcessError as error:
        self.add(kind="check", system=system, size=size, failed=str(error))
        continue
      found = differences(expected, known[module])
      reason = refusal(found)
      self.add(kind="check", system=system, size=size,
               largest=max(found.values(), default=None), refused=reason,
               differences=found)
      if not reason:
        agreeing.append(system)
    return agreeing

  def gemm(self, size: str, systems: list[str]) -> dict[str, float]:
    """The best library's rate at every shape."""
    answers = {"numpy": _answer(
        [*self.launcher, sys.executable, "-m", "benchmarks.limits",
         f"--size={size}"])}
    for system in systems:
      answers[system] = self.ask(system, "gemm", size)
    for system, found in answers.items():
      self.add(kind="gemm", system=system, size=size, rates=found["gemm"])
    rates = [found["gemm"] for found in answers.values()]
    return {shape: max(r[shape] for r in rates) for shape in rates[0]}

  def write_tables(self) -> None:
    for name, form in (("table.md", "github"), ("table.txt", "simple")):
      (self.out / name).write_text(
          tables.format_records(self.records, form), encoding="utf-8")


def figures(
    size: work.Size, phase: str, found: dict[str, Any],
    gemm: dict[str, float], machine: dict[str, Any],
) -> dict[str, float]:
  """Rates of a phase, and their shares of the machine's limits.

  Args:
    size: of the models.
    phase: that was timed.
    found: what the system's process said.
    gemm: "m,k,n" -> FLOP/s of the best library.
    machine: `fma_flops` and `stream_bytes` where known.
  """
  seconds = found["seconds"]
  if "lengths" in found:
    return {
        "tokens_per_second": sum(found["lengths"]) / seconds,
        "gflops": work.rollout_flops(
            size, work.REFILL_PROMPT, found["lengths"]) / seconds / 1e9}
  flops = work.flops(size, phase)
  result = {"tokens_per_second": work.tokens(size, phase) / seconds,
            "gflops": flops / seconds / 1e9}
  if gemm:
    used = work.gemm_shapes(size, phase)
    at_limit = sum(2 * m * k * n / gemm[f"{m},{k},{n}"] for m, k, n in used)
    rate = sum(2 * m * k * n for m, k, n in used) / at_limit
    result |= {"gemm_gflops": rate / 1e9,
               "gemm_share": flops / seconds / rate}
  if machine.get("fma_flops"):
    result |= {
        "fma_share": flops / seconds / machine["fma_flops"],
        "bandwidth_share": work.floor_bytes(size, phase) / seconds
                           / machine["stream_bytes"]}
  return result


def parse(words: list[str] | None = None) -> argparse.Namespace:
  """The command line; exits with a message if it is none."""
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  names = lambda text: text.split(",")
  phases = (*work.PHASES, *work.OWN_PHASES)
  parser.add_argument("--sizes", type=names, default=["tiny"],
                      help="of benchmarks/work.py")
  parser.add_argument("--systems", type=names, default=list(SYSTEMS),
                      help="whom to measure")
  parser.add_argument("--phases", type=names, default=list(phases),
                      help="what to measure")
  parser.add_argument("--environments", required=True,
                      help="folder with a virtual environment a system")
  parser.add_argument("--out", required=True,
                      help="folder for results and tables")
  parser.add_argument("--launcher", type=shlex.split, default=[],
                      help="words before each program, as 'taskset -c 0,1'")
  parser.add_argument("--num_quiet", type=int, default=5,
                      help="quiet calls that suffice")
  parser.add_argument("--most", type=int, default=15, help="calls at most")
  args = parser.parse_args(words)
  for name, known in (("systems", SYSTEMS), ("sizes", work.SIZES),
                      ("phases", phases)):
    for value in getattr(args, name):
      if value not in known:
        parser.error(f"--{name} has {value!r}; the known ones are "
                     f"{', '.join(known)}")
  return args


def main() -> None:
  args = parse()
  environments = os.path.abspath(os.path.expanduser(args.environments))
  for system in args.systems:
    try:
      python_of(SYSTEMS[system], environments)
    except FileNotFoundError as error:
      sys.exit(str(error))
  out = pathlib.Path(args.out).expanduser().absolute()
  out.mkdir(parents=True, exist_ok=True)
  runner = Runner(
      out, environments, args.launcher,
      (f"--num_quiet={args.num_quiet}", f"--most={args.most}"))
  runner.add(kind="machine", num_cpus=len(os.sched_getaffinity(0)),
             processor=processor(), allocator=allocator(),
             **limits.measure(runner.launcher))
  for size in args.sizes:
    runner.run_size(size, args.systems, args.phases)
    runner.write_tables()
  print((out / "table.txt").read_text(encoding="utf-8"))


def processor() -> str:
  """What /proc/cpuinfo calls it."""
  if not os.path.exists("/proc/cpuinfo"):
    return "unknown"
  with open("/proc/cpuinfo", encoding="utf-8") as f:
    return next((line.split(":", 1)[1].strip() for line in f
                 if line.startswith("model name")), "unknown")


if __name__ == "__main__":
  main()
