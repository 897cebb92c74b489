"""The alignment tax: what PPO loses of what pretraining taught.

Ouyang et al. 2022, 4.2 and Figures 33 and 34: with pretraining gradients the
regressions are made up for, which a higher KL coefficient does not do.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math

from rlhf_jax.config import name_of
from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import charts, measuring
from rlhf_jax.studies.study import Row, Study, Table


@dataclasses.dataclass(frozen=True)
class Figure:
  """A column: what is measured, by which evaluator, and which way is good."""

  title: str
  task: str
  name: str
  is_loss: bool = False

  @property
  def of(self) -> dict[str, str]:
    return {"task": self.task, "name": self.name}


FACTS = Figure("world facts, accuracy", "facts", "accuracy")
LOSS = Figure("pretraining loss, nats a token", "pretraining", "loss", True)
TAXED = (FACTS, LOSS)
GAINED = (
    Figure("win rate against SFT", "win_rate", "win_rate"),
    Figure("gold score", "gold", "gold"),
    Figure("KL to rl_init, nats", "kl", "kl"),
)
# Label -> whose.
MAIN = {
    "pretrained": ("main", "pretrain"),
    "SFT": ("main", "sft"),
    "rl_init": ("main", "rl_init"),
    "PPO": ("plain", "ppo"),
    "PPO-ptx": ("main", "ppo"),
}
BEFORE, TAXING, MENDED = MAIN["rl_init"], MAIN["PPO"], MAIN["PPO-ptx"]


def measure(runs: Mapping[str, Run]) -> Iterator[Result]:
  """Yields the columns above of all policies, and PPO's coefficients."""
  yield from measuring.evaluate(
      runs, measuring.own_policies(runs),
      [figure.task for figure in (*TAXED, *GAINED)])
  for name, stages in measuring.own_policies(runs).items():
    for stage in stages:
      if name_of(stage) == "ppo":
        method = runs[name].config[stage].method
        for coefficient in ("kl_coef", "ptx_coef"):
          yield measuring.setting(name, stage, coefficient, method[coefficient])


def sweeps(rows: Sequence[Row]) -> dict[str, list[tuple[float, str, str]]]:
  """Coefficient -> (its value, run, policy), rising: `ptx_coef` at the least
  `kl_coef`, and `kl_coef` without pretraining gradients."""
  found = {}
  for row in rows:
    if row["task"] == "setting":
      found.setdefault((row["run"], row["policy"]), {})[row["name"]] = (
          row["mean"])
  least = min(of["kl_coef"] for of in found.values())
  return {
      "ptx_coef": sorted((of["ptx_coef"], *who) for who, of in found.items()
                         if of["kl_coef"] == least),
      "kl_coef": sorted((of["kl_coef"], *who) for who, of in found.items()
                        if of["ptx_coef"] == 0),
  }


def recovered(rows: Sequence[Row], figure: Figure) -> float:
  """The share of what PPO lost since rl_init that PPO-ptx has: 1 is all of it,
  more than 1 better than before; NaN where PPO is no worse than rl_init."""
  sign = -1 if figure.is_loss else 1  # more is better
  before, taxing, mended = (
      sign * measuring.value(rows, run=run, policy=policy, **figure.of)
      for run, policy in (BEFORE, TAXING, MENDED))
  lost = before - taxing
  return (mended - taxing) / lost if lost > 0 else math.nan


def tables(rows: Sequence[Row]) -> list[Table]:
  columns = (*TAXED, *GAINED)
  line = lambda run, policy: [
      measuring.spread(rows, run=run, policy=policy, **figure.of)
      for figure in columns]
  titles = [figure.title for figure in columns]
  found = [Table(
      "Policies; mean over seeds, least and most",
      ("policy", *titles),
      [(label, *line(*who)) for label, who in MAIN.items()])]
  for coefficient, points in sweeps(rows).items():
    found.append(Table(
        f"PPO by {coefficient}" + (
            ", without pretraining gradients" if coefficient == "kl_coef"
            else ""),
        (coefficient, *titles),
        [(f"{at:g}", *line(*who)) for at, *who in points]))
  found.append(Table(
      "Of what PPO loses since rl_init, the share that PPO-ptx has; of the "
      "seeds in which PPO loses any",
      ("figure", "share", "seeds that lose"),
      [(figure.title, *_share_cells(rows, figure)) for figure in TAXED]))
  return found


def _share_cells(rows: Sequence[Row], figure: Figure) -> tuple[str, str]:
  shares = measuring.by_seed(
      rows, functools.partial(recovered, figure=figure))
  seeds = measuring.values(rows, run=TAXING[0], policy=TAXING[1], **figure.of)
  return (measuring.shown(list(shares.values()), 2),
          f"{len(shares)} of {len(seeds)}")


def draw(rows: Sequence[Row], figure) -> None:
  """A row of panels a coefficient: facts, loss and gold score over it."""
  figure.set_size_inches(10, 6)
  shown = (*TAXED, GAINED[1])
  panels = figure.subplots(2, len(shown), sharey="col")
  for line, (coefficient, points) in zip(panels, sweeps(rows).items()):
    for panel, of in zip(line, shown):
      charts.over_settings(panel, rows, points, of.of)
      for label, who in (("rl_init", BEFORE), ("SFT", MAIN["SFT"])):
        charts.level(panel, measuring.value(
            rows, run=who[0], policy=who[1], **of.of), label)
      panel.set_xlabel(coefficient if coefficient == "ptx_coef" else
                       "kl_coef (ptx_coef 0)")
      panel.set_title(of.title, fontsize=10)
  panels[0][0].legend(fontsize=8)


STUDY = Study(
    "Does a higher KL pay the alignment tax, or only pretraining gradients?",
    measure, tables, draw, measuring.SETTINGS)
