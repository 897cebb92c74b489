"""What finished runs have that can be measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rlhf_jax import checkpoint, config as config_lib, datasets, storage
from rlhf_jax.checkpoint import CheckpointError
from rlhf_jax.config import names
from rlhf_jax.evals import registry
from rlhf_jax.evals.registry import Evaluator, LeftOut
from rlhf_jax.run import Run

# After a stage's name: its policy behind a few-shot prefix (`prompted`).
PROMPTED = "+prompted"


def stage_of(policy: str) -> str:
  return policy.removesuffix(PROMPTED)


def is_prompted(policy: str) -> bool:
  return policy.endswith(PROMPTED)


def is_done(run: Run, stage: str) -> bool:
  return checkpoint.read_done(run.stage_dir(stage)) is not None


def stages(run: Run, kinds: Sequence[str]) -> list[str]:
  """The finished stages of some kinds, in their order."""
  return [stage for stage in run.config.stages
          if config_lib.name_of(stage) in kinds and is_done(run, stage)]


def own_setting(run: Run, key: str, default: Any) -> Any:
  """A setting of the run's own evaluation, if it has one."""
  return run.config.evaluate[key] if "evaluate" in run.config else default


def policies_of(run: Run, asked: Sequence[str]) -> list[str]:
  """The policies asked for, or those that the run's own evaluation names.

  Raises:
    CheckpointError: one is not there, or none is.
  """
  there = stages(run, config_lib.POLICIES)
  missing = [name for name in asked if stage_of(name) not in there]
  if missing or not there:
    raise CheckpointError(
        f"--policies={','.join(asked)}: the finished policies in {run.workdir} "
        f"are {', '.join(there) or 'none'}, each also as STAGE{PROMPTED}")
  own = [name for name in own_setting(run, "policies", ()) if name in there]
  return list(asked or own or there)


def choose(run: Run, flag: str, asked: str, wanted: Sequence[str]) -> str:
  """The policy asked for, or the first of `wanted` that is finished, or the
  first that is.

  Raises:
    CheckpointError: it is not there.
  """
  there = stages(run, config_lib.POLICIES)
  if asked and asked not in there:
    raise CheckpointError(
        f"--{flag}={asked}: the finished policies in {run.workdir} are "
        f"{', '.join(there)}")
  return asked or next(name for name in (*wanted, *there) if name in there)


def choose_judge(runs: Mapping[str, Run], asked: str,
                 policies: Mapping[str, Sequence[str]]) -> str:
  """Who judges all: "labelers", or a reward model of the first run.

  Args:
    runs: by name.
    asked: by whom, "" for the judge of the first run's own evaluation.
    policies: run -> all that are judged, the baseline too.

  Raises:
    LeftOut: there is nobody, or a policy was optimised for that one.
  """
  first = next(iter(runs.values()))
  judge = asked or own_setting(first, "judge", names.LABELERS)
  if judge == names.LABELERS:
    worlds = [world_of(run) for run in runs.values()]
    if None in worlds:
      raise LeftOut(
          "only runs of Smallworld have labelers: give --judge=STAGE, a reward "
          "model that no policy was optimised for")
    if any(world != worlds[0] for world in worlds):
      raise LeftOut("the runs are of different Smallworlds, and have different "
                    "labelers: evaluate them one by one")
    return judge
  there = stages(first, config_lib.REWARD_MODELS)
  if judge not in there:
    raise LeftOut(f"--judge={judge}: the finished reward models in "
                  f"{first.workdir} are {', '.join(there) or 'none'}")
  for name, run in runs.items():
    for policy in policies[name]:
      for _, teacher in config_lib.teachers(run.config, stage_of(policy)):
        if _is_same(run.stage_dir(teacher), first.stage_dir(judge)):
          raise LeftOut(
              f"--judge={judge}: {policy} in {run.workdir} was optimised for "
              "it; name a reward model that none was, as one of config.judge")
  return judge


def _is_same(folder: epath.PathLike, other: epath.PathLike) -> bool:
  """Whether two folders have one stage's result: one folder by two names, or
  one copied from the other."""
  if storage.is_same_place(folder, other):
    return True
  done = checkpoint.read_done(folder)
  return done is not None and done == checkpoint.read_done(other)


def world_of(run: Run) -> Any:
  """What two runs must have alike to have the same labelers."""
  if run.rubric is None:
    return None
  settings = run.config.smallworld
  return settings.seed, settings.num_people, run.config.labelers.to_dict()


def why_not(run: Run, evaluator: Evaluator) -> str:
  """What a run lacks for an evaluator, "" if nothing."""
  readers = [""]
  if evaluator.scope == registry.REWARD_MODEL:
    readers = stages(run, config_lib.REWARD_MODELS)
    if not readers:
      return f"{run.workdir} has no finished reward model"
  if evaluator.of_world and run.rubric is None:
    return f"{run.workdir} is no run of Smallworld"
  if not evaluator.data:
    return ""
  reasons = (datasets.lacks(run, evaluator.data, stage) for stage in readers)
  return next(filter(None, reasons), "")
