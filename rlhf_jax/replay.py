"""Runs a recorded training step again, and shows whether it reproduces.

  python -m rlhf_jax.replay --workdir=DIR --step=N [--stage=ppo]

It starts from the newest checkpoint before the step, or where there is none
from the start of the stage, and compares all rows of metrics.jsonl on the way,
and the state if it was saved. Nothing is written. The exit status is 0 where
everything is the same to the last bit, and 1 where it is not.
"""

from rlhf_jax import host_memory, usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)
  host_memory.restart_with_large_pages()

# pylint: disable=wrong-import-position
from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax
import tabulate

from rlhf_jax import (
    checkpoint, compilation, config as config_lib, distributed, exits,
    fingerprints, loop, metrics, pipeline, sharding, storage, train_state,
)
from rlhf_jax.checkpoint import CheckpointError
from rlhf_jax.data.records import DataError
from rlhf_jax.run import Run
from rlhf_jax.trainers import lm, ppo, rm

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder.", allow_override=True)
_STAGE = flags.DEFINE_string(
    "stage", None, "Which stage's step; by default the last that has it.",
    allow_override=True)
_STEP = flags.DEFINE_integer(
    "step", None, "Its number, from 1.", lower_bound=1, allow_override=True)

MAKERS = {"lm": lm.make_training, "rm": rm.make_training,
          "ppo": ppo.make_training}
# Of the clock, not of the method.
_SECONDS = re.compile(r"(^|_)seconds$")
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Replayed:
  """What a step gave, twice.

  Attributes:
    start: the step whose state was taken.
    recorded, replayed: step -> metric -> value, from `start` + 1 on.
    changed: arrays of the state after the step that are others than those
      saved, None where that state was not saved.
  """

  start: int
  recorded: Mapping[int, Mapping[str, Any]]
  replayed: Mapping[int, Mapping[str, Any]]
  changed: Sequence[str] | None

  @property
  def reproduces(self) -> bool:
    return not self.changed and all(
        _is_same(self.recorded[step], self.replayed[step])
        for step in self.recorded)


def open_run(workdir: epath.Path) -> Run:
  """The run of a workdir, on its own mesh.

  Raises:
    CheckpointError: there is no run.
    ConfigError: its mesh does not fit the devices here.
  """
  config = pipeline.config_of(workdir)
  config_lib.validate(
      config, jax.device_count(),
      slice_count=sharding.slice_count(jax.devices()),
      platform=jax.default_backend(), check_inputs=False)
  return pipeline.make_run(config, workdir)


def choose_stage(run: Run, stage: str | None, step: int) -> str:
  """The stage asked for, or the last one with a row of that step.

  Raises:
    CheckpointError: names the stages and steps that there are.
  """
  trained = {
      name: [row["step"] for row in metrics.read(run.workdir, name)]
      for name in run.config.stages
      if config_lib.kind_of(name) in MAKERS and (run.workdir / name).exists()}
  fitting = [name for name, steps in trained.items() if step in steps]
  if stage is None and fitting:
    return fitting[-1]
  if stage in fitting:
    return stage
  known = "; ".join(f"{name} {_ranges(steps)}"
                    for name, steps in trained.items() if steps)
  raise CheckpointError(
      f"metrics.jsonl of {run.workdir} has no row of step {step}"
      f"{f' of {stage!r}' if stage else ''}; it has those of "
      f"{known or 'none'}.")


def _ranges(steps: Sequence[int]) -> str:
  steps = sorted(set(steps))
  gaps = {b - a for a, b in zip(steps, steps[1:])}
  every = f" every {gaps.pop()}" if len(gaps) == 1 and gaps != {1} else ""
  if len(steps) == 1:
    return str(steps[0])
  return f"{steps[0]} to {steps[-1]}{every}"


def replay(run: Run, stage: str, step: int) -> Replayed:
  """Runs `stage` from the newest checkpoint before `step` up to it.

  Raises:
    CheckpointError: the checkpoint is not one of this run.
    DamagedError: it is not what was saved.
  """
  rows = metrics.read(run.workdir, stage)
  make = MAKERS[config_lib.kind_of(stage)]
  with sharding.use(run.mesh, run.axis_rules):
    training = make(run, stage)
    with checkpoint.Reader(run.workdir / stage / "checkpoints") as saved:
      start = loop.newest_before(saved.steps, step) or 0
      state = (loop.restore(training, saved, start) if start
               else training.create())
      replayed = {}
      for number in metrics.track(stage, list(range(start, step)), "step"):
        state, found = training.step(state, training.batch(number), number)
        replayed[number + 1] = metrics.as_json(training.read(found))
      changed = None
      is_closed = training.closes and step == training.num_steps
      if step in saved.steps and not is_closed:
        changed = differing_arrays(saved.meta(step)["arrays"], state)
  recorded = {
      number: {name: value for row in rows if row["step"] == number
               for name, value in row.items() if name in replayed[number]}
      for number in replayed}
  return Replayed(
      start, {n: values for n, values in recorded.items() if values},
      replayed, changed)


def differing_arrays(saved: Mapping[str, Any], state: Any) -> list[str]:
  """"item/array" of those that are not what a checkpoint says."""
  return [
      f"{item}/{name}"
      for item, tree in train_state.to_items(state).items()
      for name, fingerprint in fingerprints.of(tree).items()
      if saved[item].get(name) != fingerprint]


def _is_same(recorded, replayed) -> bool:
  return all(recorded[name] == replayed[name] for name in recorded
             if not _SECONDS.search(name))


def format_replay(stage: str, step: int, found: Replayed) -> str:
  """A line a metric of the step, and whether all is the same."""
  recorded, replayed = found.recorded[step], found.replayed[step]
  rows = [
      (name, _shown(recorded[name]), _shown(replayed[name]),
       _difference(recorded[name], replayed[name]))
      for name in sorted(recorded) if not _SECONDS.search(name)]
  parts = [tabulate.tabulate(
      rows[:_SHOWN], headers=(f"{stage}, step {step}", "recorded", "replayed",
                              "difference"), disable_numparse=True)]
  others = [n for n in found.recorded if n != step and not _is_same(
      found.recorded[n], found.replayed[n])]
  where = (f"the checkpoint of step {found.start}" if found.start
           else "the start of the stage")
  if others:
    parts.append(f"steps before it that differ already: {others[:_SHOWN]}")
  if found.changed:
    parts.append(f"saved arrays that differ: {', '.join(found.changed[:8])}")
  saved = "" if found.changed is None else " and the saved state"
  parts.append(
      f"from {where}: it "
      + (f"reproduces, metrics{saved} to the last bit" if found.reproduces
         else "does NOT reproduce"))
  return "\n\n".join(parts)


def _shown(value: float | None) -> str:
  return "not finite" if value is None else f"{value:.9g}"


def _difference(recorded: float | None, replayed: float | None) -> str:
  if recorded == replayed:
    return ""
  if recorded is None or replayed is None:
    return "!"
  return f"{replayed - recorded:+.3g}"


def warn_of_other_devices(run: Run, stage: str, found: Replayed) -> None:
  """Says so where the step was recorded on other devices."""
  folder = run.workdir / stage / "checkpoints"
  if not found.start:
    return
  with checkpoint.Reader(folder) as saved:
    meta = saved.meta(found.start)
  here, there = loop.devices_of(run), meta.get("devices")
  if not isinstance(there, dict) or any(
      here.get(name) != value for name, value in there.items()):
    metrics.say(f"recorded on {there}, replayed on {here}: sums are added up "
                "in another order, so the last bits may differ")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  compilation.enable_compilation_cache(_WORKDIR.value)
  try:
    storage.check(_WORKDIR.value, "--workdir", is_written=False)
    run = open_run(epath.Path(_WORKDIR.value))
    stage = choose_stage(run, _STAGE.value, _STEP.value)
    found = replay(run, stage, _STEP.value)
    warn_of_other_devices(run, stage, found)
  except (CheckpointError, config_lib.ConfigError, DataError,
          storage.StorageError) as error:
    distributed.refuse(str(error))
  print(format_replay(stage, _STEP.value, found))
  if not found.reproduces:
    raise SystemExit(exits.FAILED)


if __name__ == "__main__":
  usage.run(main, required=["workdir", "step"])
