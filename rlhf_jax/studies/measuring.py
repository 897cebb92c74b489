"""Evaluators on a study's runs, and its rows by what they are of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from typing import Any

from rlhf_jax import pipeline
from rlhf_jax.config import POLICIES, name_of
from rlhf_jax.evals import suite
from rlhf_jax.evals.contest import Who
from rlhf_jax.evals.responses import Responses
from rlhf_jax.evals.results import Row as Figure
from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies.study import Row

# Of every study: held-out prompts, and windows of held-out pretraining text.
NUM_PROMPTS, NUM_WINDOWS = 512, 512
SETTINGS = {"num_prompts": NUM_PROMPTS, "num_windows": NUM_WINDOWS}


def evaluate(runs: Mapping[str, Run], policies: Mapping[str, Sequence[str]],
             tasks: Sequence[str], said: dict[Who, Responses] | None = None
             ) -> Iterator[Result]:
  """Yields what evaluators find of policies.

  Args:
    runs: by name.
    policies: run -> those of it that are measured.
    tasks: names of evaluators.
    said: filled with every policy's responses, where a task is a contest.

  Raises:
    LeftOut: a task cannot be done on these runs.
  """
  for name, asked in policies.items():
    prepared, left_out = suite.prepare(tasks, "", None)
    measurement = suite.Measurement(
        {name: runs[name]}, prepared, left_out, suite.Options(
            num_prompts=NUM_PROMPTS, limit=NUM_WINDOWS,
            policies=tuple(asked)))
    for _ in measurement.measure():
      pass
    # without the baseline that came with them
    yield from (result for result in measurement.report.results
                if result.policy in asked)
    if said is not None:
      said |= {who: found for who, found in measurement.responses.items()
               if who[1] in asked}


def own_policies(runs: Mapping[str, Run]) -> dict[str, list[str]]:
  """Run -> the policies that it made itself."""
  return {
      name: [stage for stage in pipeline.own_stages(run.config)
             if name_of(stage) in POLICIES]
      for name, run in runs.items()}


def setting(run: str, policy: str, name: str, value: float) -> Result:
  """A row of what was set, as a figure needs it for an axis."""
  return Result(run, policy, "setting",
                Figure(name, float(value), math.nan, math.nan, 1))


def value(rows: Sequence[Row], **of: Any) -> float:
  """The figure of these keys, its mean over seeds; NaN where there is none."""
  found = values(rows, **of)
  return sum(found.values()) / len(found) if found else math.nan


def values(rows: Sequence[Row], **of: Any) -> dict[int, float]:
  """Seed -> the figure of these keys (run, policy, task, name)."""
  return {row["seed"]: row["mean"] for row in rows
          if all(row[key] == wanted for key, wanted in of.items())
          and row["mean"] is not None}


def spread(rows: Sequence[Row], digits: int = 3, scale: float = 1.0, /,
           **of: Any) -> str:
  """The mean over seeds and, of several, the least and the most."""
  found = [scale * of_seed for of_seed in values(rows, **of).values()]
  return shown(found, digits)


def shown(found: Sequence[float], digits: int = 3) -> str:
  """The mean and, of several, the least and the most."""
  if not found:
    return "-"
  mean = f"{sum(found) / len(found):.{digits}f}"
  if len(found) < 2:
    return mean
  return f"{mean} ({min(found):.{digits}f} to {max(found):.{digits}f})"


def by_seed(rows: Sequence[Row], figure: Callable[[Sequence[Row]], float]
            ) -> dict[int, float]:
  """Seed -> a figure of that seed's rows; those that are NaN left out."""
  seeds = sorted({row["seed"] for row in rows})
  found = {seed: figure([row for row in rows if row["seed"] == seed])
           for seed in seeds}
  return {seed: of for seed, of in found.items() if not math.isnan(of)}
