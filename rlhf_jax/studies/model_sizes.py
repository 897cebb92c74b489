"""Alignment against size, the paper's Figure 1: human preference for every kind
of policy at three sizes against the SFT policy of the largest."""

from collections.abc import Iterator, Mapping, Sequence

from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import charts, measuring, policies
from rlhf_jax.studies.study import Row, Study, Table

FAMILIES = (policies.of_small("60k"), policies.of_small("220k"),
            policies.of_main())
BASELINE = FAMILIES[-1].members["SFT"]
PREFERRED = {"task": "preferred", "name": "win_rate_to_sft"}
_GOLD = {"task": "gold", "name": "gold"}
_PARAMETERS = {"task": "setting", "name": "parameters"}


def measure(runs: Mapping[str, Run]) -> Iterator[Result]:
  """Yields each policy's win rate, gold score, rating and size."""
  said = {}
  yield from policies.measure(
      runs, FAMILIES, ("rating", "gold", "style"), said)
  yield from policies.win_rates(runs["main"], said, BASELINE)
  for family in FAMILIES:
    for run, policy in family.members.values():
      yield measuring.setting(
          run, policy, "parameters", runs[run].policy().config.num_params)


def preference(rows: Sequence[Row], who: tuple[str, str]) -> dict[int, float]:
  """Seed -> how often it is preferred to the baseline: one half for itself."""
  if who == BASELINE:
    return {row["seed"]: 0.5 for row in rows}
  run, policy = who
  return measuring.values(rows, run=run, policy=policy, **PREFERRED)


def tables(rows: Sequence[Row]) -> list[Table]:
  preferred = Table(
      "Preferred to the SFT policy of the largest, by held-out labelers; mean "
      "over seeds, least and most",
      ("parameters", *policies.KINDS),
      [(f"{parameters(rows, family):,.0f}",
        *(measuring.shown(list(preference(rows, who).values()))
          for who in family.members.values()))
       for family in FAMILIES])
  gold = Table(
      "Gold score", ("parameters", *policies.KINDS),
      [(f"{parameters(rows, family):,.0f}",
        *(measuring.spread(rows, run=run, policy=policy, **_GOLD)
          for run, policy in family.members.values()))
       for family in FAMILIES])
  return [preferred, gold]


def parameters(rows: Sequence[Row], family: policies.Family) -> float:
  run, policy = family.members["SFT"]
  return measuring.value(rows, run=run, policy=policy, **_PARAMETERS)


def draw(rows: Sequence[Row], figure) -> None:
  """Win rates over the number of parameters, a line a kind."""
  figure.set_size_inches(6.5, 4.5)
  panel = figure.subplots()
  sizes = [parameters(rows, family) for family in FAMILIES]
  for kind, color in zip(policies.KINDS, charts.COLORS):
    found = [list(preference(rows, family.members[kind]).values())
             for family in FAMILIES]
    charts.line(panel, sizes, found, color=color, label=kind)
  panel.axhline(0.5, color=charts.GREY, linestyle=":", linewidth=1)
  panel.set_xscale("log")
  panel.set_xlabel("parameters")
  panel.set_ylabel("preferred to the SFT policy of the largest")
  panel.legend(fontsize=8)


STUDY = Study(
    "Is a small aligned model preferred to a large one that is not?",
    measure, tables, draw, measuring.SETTINGS)
