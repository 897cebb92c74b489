"""How time and memory grow with the sizes of a run, and what the plan says.

  python -m benchmarks.growth --out=FOLDER [--axes=batch,width] \
      [--programs=sft,ppo/step] [--repetitions=5]

One size at a time is changed around a base that two cores run in a fraction of
a second: the batch, the tokens of a response, the model's width, depth and
vocabulary, and the responses K of a prompt. At each point the programs of the
run are compiled as a stage has them, and timed in turns with the base, for the
speed of a machine that others share changes within minutes; their memory is
read from the compiler. Beside both stands the cost model of `rlhf_jax.plan`,
its formulas with this machine's measured rates. Compared are ratios to the
base: where they are more than 15 % apart the row has a `*`.

Writes growth.jsonl and growth.md, and prints the tables.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tabulate

from experiments import ppo_ptx
from rlhf_jax import sharding
from rlhf_jax.plan import analytic, chips, programs, roofline
from rlhf_jax.plan.programs import Program

TOLERANCE = 0.15
_PROMPT = 64  # tokens
BASE = {"batch": 16, "response": 64, "width": 128, "depth": 4,
        "vocabulary": 2048, "K": 4}
POINTS = {"batch": (8, 16, 32), "response": (32, 64, 128),
          "width": (64, 128, 256), "depth": (2, 4, 8),
          "vocabulary": (1024, 2048, 4096, 8192), "K": (2, 4, 8)}
# Which programs each is a size of.
_POLICY = ("sft", "ppo/generate", "ppo/step")
PROGRAMS = (*_POLICY, "rm")
AXES = {"batch": _POLICY, "response": _POLICY, "width": _POLICY,
        "depth": _POLICY, "vocabulary": _POLICY, "K": ("rm",)}


@dataclasses.dataclass(frozen=True)
class Rates:
  """What this machine does at best: FLOP/s of a matrix product, bytes/s of a
  copy."""

  flops: float
  bandwidth: float


def config_of(sizes: dict[str, int]) -> ml_collections.ConfigDict:
  """An experiment of these sizes: float32, one device, nothing computed
  twice, no pretraining mixed in."""
  config = ppo_ptx.get_config("mini")
  config.mesh.update(data=1, fsdp=1, tensor=1)
  length = _PROMPT + sizes["response"]
  config.data.update(max_prompt_tokens=_PROMPT,
                     max_response_tokens=sizes["response"])
  for model in (config.model, config.rm_model):
    model.update(
        num_layers=sizes["depth"], d_model=sizes["width"],
        num_heads=max(sizes["width"] // 32, 1), context_length=length,
        # with the padding's row that many
        vocab_size=sizes["vocabulary"] - 8, vocab_multiple=8,
        scan_unroll=sizes["depth"])
  config.sft.update(batch_size=sizes["batch"], pretrain_weight=0.0,
                    num_microbatches=1, dropout_rate=0.0)
  config.rm.update(
      batch_size=8, block_rows=sizes["K"], block_prompts=1,
      max_responses=sizes["K"], num_microbatches=1, num_row_parts=1)
  config.ppo.update(batch_size=sizes["batch"], num_rollout_parts=1)
  config.ppo.method.update(num_minibatches=4, num_microbatches=1, ptx_coef=0.0)
  return config


def arguments(program: Program, vocab_size: int) -> list[Any]:
  """Arrays in the place of a program's abstract ones: small parameters, all
  tokens real, responses in an order, moments of zero."""
  rng = np.random.default_rng(0)

  def array(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    if x.dtype == jnp.bool_ or name.endswith("mask"):
      value = np.ones(x.shape)
    elif name.endswith("ranks"):
      value = np.broadcast_to(1 + np.arange(x.shape[-1]), x.shape)
    elif name.endswith("last_token"):
      per_row = program.args[1]["tokens"].shape[-1]
      value = np.broadcast_to(
          per_row * (1 + np.arange(x.shape[-1])) - 1, x.shape)
    elif jnp.issubdtype(x.dtype, jnp.integer):
      value = rng.integers(0, vocab_size // 2, x.shape) if x.ndim else 0
    elif "opt_state" in name or x.ndim == 0:
      value = np.zeros(x.shape)
    else:
      value = 0.02 * rng.standard_normal(x.shape, np.float32)
    return jax.device_put(np.asarray(value, x.dtype), x.sharding)

  return list(jax.tree_util.tree_map_with_path(array, program.args))


class Timed:
  """A program, compiled, with its arguments; called again and again."""

  def __init__(self, program: Program, vocab_size: int):
    self._compiled = program.function.lower(*program.args).compile()
    self._args = arguments(program, vocab_size)
    self._keeps_state = not program.name.endswith("/generate")
    memory = self._compiled.memory_analysis()
    self.num_bytes = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes)

  def __call__(self) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    found = jax.block_until_ready(self._compiled(*self._args))
    seconds = time.perf_counter() - started
    if self._keeps_state:  # the one given is gone
      self._args[0] = found[0]
    return seconds


def in_turns(base: Timed, other: Timed, repetitions: int
             ) -> list[tuple[float, float]]:
  """(seconds of the base, seconds of the other), one after the other, after a
  pair to warm up."""
  return [(base(), other()) for _ in range(repetitions + 1)][1:]


def planned(config, program: Program, mesh, rates: Rates) -> tuple[float, int]:
  """(seconds, bytes) by the plan's formulas."""
  estimate = analytic.estimate(config, program, mesh)
  chip = dataclasses.replace(
      chips.CHIPS["h100"], flops=rates.flops, hbm_bandwidth=rates.bandwidth)
  times = roofline.Rates(
      chips.Topology("here", chip, (1, 1)), np.zeros((1, 1, 1), int))
  seconds = sum(times.roofline(estimate.segments[phase.name]).seconds
                for phase in program.phases)
  return seconds, estimate.argument_bytes + estimate.temporary_bytes


def measured_rates() -> Rates:
  """The best of some repetitions."""
  size, best = 1024, lambda times: min(times[1:])
  matrix = jnp.ones((size, size), jnp.float32)
  product = jax.jit(lambda x: x @ x)
  stream = jnp.ones(2**25, jnp.float32)
  copy = jax.jit(lambda x: x + 1)

  def timed(function, x):
    for _ in range(8):
      started = time.perf_counter()
      jax.block_until_ready(function(x))
      yield time.perf_counter() - started

  return Rates(2 * size**3 / best(list(timed(product, matrix))),
               2 * stream.nbytes / best(list(timed(copy, stream))))


def grow(axes: Sequence[str], wanted: Sequence[str], repetitions: int
         ) -> Iterator[dict[str, Any]]:
  """One row a program and point; the base's comes first, once a program."""
  rates = measured_rates()
  bases = {}
  names = list(dict.fromkeys(
      name for axis in axes for name in AXES[axis] if name in wanted))
  points = [("", BASE)] + [
      (axis, BASE | {axis: value}) for axis in axes for value in POINTS[axis]
      if value != BASE[axis]]
  mesh = sharding.make_mesh(
      data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  for axis, sizes in points:
    config = config_of(sizes)
    for program in programs.programs_of(config, mesh):
      if program.name not in (AXES[axis] if axis else names) or (
          program.name not in names):
        continue
      with sharding.use(mesh, config.axis_rules):
        timed = Timed(program, config.model.vocab_size)
        base = bases.setdefault(program.name, timed)
        pairs = in_turns(base, timed, repetitions)
      model_seconds, model_bytes = planned(config, program, mesh, rates)
      yield {
          "program": program.name, "axis": axis, "sizes": sizes,
          "seconds": statistics.median(other for _, other in pairs),
          "seconds_ratio": statistics.median(
              other / first for first, other in pairs),
          "pairs": pairs, "bytes": timed.num_bytes,
          "bytes_ratio": timed.num_bytes / base.num_bytes,
          "model_seconds": model_seconds, "model_bytes": model_bytes,
          "model_flops": sum(p.model_flops for p in program.phases),
          "rates": dataclasses.asdict(rates)}


def compared(row: dict[str, Any], base: dict[str, Any], what: str
             ) -> tuple[float, float, bool]:
  """(measured ratio to the base, planned ratio, whether they are apart)."""
  ours = row[f"{what}_ratio"]
  model = row[f"model_{what}"] / base[f"model_{what}"]
  return ours, model, abs(ours / model - 1) > TOLERANCE


def format_table(rows: Sequence[dict[str, Any]], axis: str) -> str:
  """One line a program and point of an axis."""
  bases = {row["program"]: row for row in rows if not row["axis"]}
  lines = []
  for program in AXES[axis]:
    if program not in bases:
      continue
    points = [row for row in rows if row["program"] == program
              and row["axis"] in (axis, "")]
    for row in sorted(points, key=lambda row: row["sizes"][axis]):
      cells = {"program": program, axis: row["sizes"][axis]}
      for what, unit, shown in (
          ("seconds", "ms", lambda x: f"{1e3 * x:.1f}"),
          ("bytes", "MB", lambda x: f"{x / 1e6:.1f}")):
        ours, model, is_apart = compared(row, bases[program], what)
        cells |= {unit: shown(row[what]), f"{unit}, ratio": f"{ours:.2f}",
                  f"{unit}, plan": f"{model:.2f}",
                  f"{unit}, off": f"{100 * (ours / model - 1):+.0f} %"
                                  + " *" * is_apart}
      lines.append(cells)
  return tabulate.tabulate(
      lines, headers="keys", tablefmt="pipe", disable_numparse=True)


def parse(words: list[str] | None = None) -> argparse.Namespace:
  """The command line; exits with a message if it is none."""
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  names = lambda text: text.split(",")
  parser.add_argument("--out", default="", help="folder for the results")
  parser.add_argument("--axes", type=names, default=list(AXES),
                      help="which sizes to change; all by default")
  parser.add_argument("--programs", type=names, default=list(PROGRAMS),
                      help="which programs to measure; all by default")
  parser.add_argument(
      "--repetitions", type=int, default=5,
      help="of a program and its base in turns, after one pair to warm up")
  args = parser.parse_args(words)
  for name, known in (("axes", AXES), ("programs", PROGRAMS)):
    unknown = sorted(set(getattr(args, name)) - set(known))
    if unknown:
      parser.error(f"--{name}={','.join(unknown)} is none of "
                   f"{', '.join(known)}")
  if args.repetitions < 1:
    parser.error(f"--repetitions={args.repetitions} must be at least 1")
  return args


def main() -> None:
  args = parse()
  rows = []
  for row in grow(args.axes, args.programs, args.repetitions):
    rows.append(row)
    print(f"{row['program']} {row['sizes']}: {row['seconds']:.3f} s",
          flush=True)
  report = "\n\n".join(
      [f"{rows[0]['rates']['flops'] / 1e9:.0f} GFLOP/s, "
       f"{rows[0]['rates']['bandwidth'] / 1e9:.1f} GB/s; base {BASE}",
       *(format_table(rows, axis) for axis in args.axes)])
  print(report)
  if args.out:
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.md").write_text(report + "\n")
    (folder / "growth.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
  main()
