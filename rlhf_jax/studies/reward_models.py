"""What reward models learn from, and whom they know.

Ouyang et al. 2022, 3.5 (all pairs of a prompt in one batch) and appendix E.2
(72.4 % on labelers learnt from, 69.6 % on those left out).
"""

from collections.abc import Iterator, Mapping, Sequence
import math

from rlhf_jax import checkpoint, pipeline, summaries
from rlhf_jax.config import REWARD_MODELS, name_of
from rlhf_jax.evals import results
from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import charts, measuring
from rlhf_jax.studies.study import Row, Study, Table

GROUPS = ("train_labelers", "heldout_labelers")
SIDES = ("inside", "heldout")
BATCHINGS = {"all pairs of a prompt together": "rm@kwise",
             "pairs shuffled": "rm@pairs"}


def measure(runs: Mapping[str, Run]) -> Iterator[Result]:
  """Yields what the runs found on validation comparisons: nothing is left to
  compute."""
  for name, run in runs.items():
    done = {stage: checkpoint.read_done(run.stage_dir(stage))
            for stage in pipeline.own_stages(run.config)
            if name_of(stage) in REWARD_MODELS}
    for model in summaries.reward_models(done):
      yield from _of_model(name, model)
    for stage, fold in summaries.folds(done).get("folds", {}).items():
      for side in SIDES:
        yield Result(name, stage, "fold", results.row(side, fold[side]))


def _of_model(run: str, model: Mapping) -> Iterator[Result]:
  stage = model["reward_model"]
  yield measuring.setting(run, stage, "comparisons", model["comparisons"])
  for group, found in model["by_group"].items():
    yield Result(run, stage, "accuracy", results.row(group, found))
  for epoch, found in enumerate(model["by_epoch"], 1):
    count = model["by_group"]["all"]["n"]
    yield Result(run, stage, "epoch", results.row(
        f"accuracy/{epoch}", {**found, "n": count}))
    yield Result(run, stage, "epoch", results.Row(
        f"loss/{epoch}", found["loss"], math.nan, math.nan, count))


def by_count(rows: Sequence[Row]) -> list[tuple[float, str, str]]:
  """(comparisons, run, reward model) of those that differ in nothing else; the
  mean over seeds, for cleaning leaves not as many of each."""
  whos = dict.fromkeys(
      (row["run"], row["policy"]) for row in rows
      if row["task"] == "setting" and row["run"] in ("main", "counts"))
  return sorted((measuring.value(rows, run=run, policy=policy, task="setting",
                                 name="comparisons"), run, policy)
                for run, policy in whos)


def folds(rows: Sequence[Row], side: str) -> dict[int, float]:
  """Seed -> mean accuracy over the folds, each by its prompts: groups of two
  labelers have three times as many as a group of one."""
  return measuring.by_seed(rows, lambda of: _mean(
      [(row["mean"], row["n"]) for row in of
       if row["task"] == "fold" and row["name"] == side]))


def _mean(found: Sequence[tuple[float, int]]) -> float:
  """Of (figure, how much it weighs); NaN of none."""
  weight = sum(n for _, n in found)
  return sum(of * n for of, n in found) / weight if weight else math.nan


def tables(rows: Sequence[Row]) -> list[Table]:
  accuracy = lambda who, name, task="accuracy": measuring.spread(
      rows, 1, 100, run=who[0], policy=who[1], task=task, name=name)
  growth = Table(
      "Accuracy on validation comparisons, %, by their number in training; "
      "mean over seeds, least and most",
      ("comparisons", "training labelers", "held-out labelers"),
      [(f"{count:,.0f}", *(accuracy(who, group) for group in GROUPS))
       for count, *who in by_count(rows)])
  left_out = Table(
      "Five folds of labelers, %, each by its prompts",
      ("labelers", "accuracy", "paper"),
      [(label, measuring.shown(
          [100 * of for of in folds(rows, side).values()], 1), paper)
       for label, side, paper in (("learnt from", "inside", "72.4"),
                                  ("left out", "heldout", "69.6"))])
  epochs = sorted({row["name"].partition("/")[2] for row in rows
                   if row["task"] == "epoch"
                   and row["policy"] in BATCHINGS.values()})
  count = measuring.value(rows, run="folds", policy="rm@pairs",
                          task="setting", name="comparisons")
  batching = Table(
      f"{count:,.0f} comparisons: accuracy, %, and loss after each epoch",
      ("batches", *(f"{of}, epoch {e}" for of in ("accuracy", "loss")
                    for e in epochs)),
      [(label,
        *(accuracy(("folds", stage), f"accuracy/{e}", "epoch")
          for e in epochs),
        *(measuring.spread(rows, run="folds", policy=stage, task="epoch",
                           name=f"loss/{e}") for e in epochs))
       for label, stage in BATCHINGS.items()])
  return [growth, left_out, batching]


def draw(rows: Sequence[Row], figure) -> None:
  """Accuracy over comparisons by group; validation loss by epoch."""
  figure.set_size_inches(9, 4)
  growth, epochs = figure.subplots(1, 2)
  points = by_count(rows)
  counts = [count for count, *_ in points]
  for group, color in zip(GROUPS, charts.COLORS):
    found = [list(measuring.values(
        rows, run=run, policy=policy, task="accuracy", name=group).values())
        for _, run, policy in points]
    charts.line(growth, counts, found, color=color,
                label=group.replace("_", " "))
  growth.set_xscale("log")
  growth.set_xticks(counts, [f"{count:,.0f}" for count in counts])
  growth.minorticks_off()
  growth.set_xlabel("comparisons learnt from")
  growth.set_ylabel("validation accuracy")
  growth.legend(fontsize=8)
  for (label, stage), color in zip(BATCHINGS.items(), charts.COLORS):
    names = sorted({row["name"] for row in rows if row["policy"] == stage
                    and row["name"].startswith("loss/")})
    found = [list(measuring.values(
        rows, policy=stage, task="epoch", name=name).values())
        for name in names]
    places = range(1, len(names) + 1)
    charts.line(epochs, places, found, color=color, label=label)
  epochs.set_xticks(places)
  epochs.set_xlabel("epoch")
  epochs.set_ylabel("validation loss")
  epochs.legend(fontsize=8)


STUDY = Study(
    "Whom does a reward model know, and what does it learn from?",
    measure, tables, draw, settings={})  # it measures nothing itself
