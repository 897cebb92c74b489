"""Panels that several studies draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.studies import measuring
from rlhf_jax.studies.study import Row

# Told apart by those who do not see all colours (Okabe and Ito 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#666666"


def over_settings(panel: Any, rows: Sequence[Row],
                  points: Sequence[tuple[float, str, str]],
                  of: Mapping[str, str]) -> None:
  """A figure over a coefficient that rises by factors: a dot a seed, a line
  through their means.

  Args:
    panel: matplotlib axes.
    rows: of all seeds.
    points: (the coefficient's value, run, policy), rising.
    of: task and name of the figure.
  """
  places = range(len(points))
  seeds = [
      list(measuring.values(rows, run=run, policy=policy, **of).values())
      for _, run, policy in points]
  for place, found in zip(places, seeds):
    panel.plot([place] * len(found), found, ".", color=COLORS[0], alpha=0.5)
  panel.plot(places, [sum(found) / len(found) for found in seeds], "-",
             color=COLORS[0])
  panel.set_xticks(places, [f"{at:g}" for at, *_ in points])


def level(panel: Any, height: float, label: str) -> None:
  """A policy that the coefficient does not touch, as a line across."""
  dashes = {"rl_init": "--", "SFT": ":"}.get(label, "-.")
  panel.axhline(height, color=GREY, linestyle=dashes, linewidth=1, label=label)


def intervals(panel: Any, places: Sequence[float], found: Sequence[Sequence[
    float]], *, color: str, label: str = "") -> None:
  """At each place the mean over seeds and, of several, their range."""
  means = [sum(of) / len(of) for of in found]
  panel.errorbar(
      places, means,
      [[mean - min(of) for mean, of in zip(means, found)],
       [max(of) - mean for mean, of in zip(means, found)]],
      fmt="o", color=color, capsize=3, label=label)


def line(panel: Any, places: Sequence[float], found: Sequence[Sequence[float]],
         *, color: str, label: str) -> None:
  """`intervals`, and a line through the means."""
  intervals(panel, places, found, color=color, label=label)
  panel.plot(places, [sum(of) / len(of) for of in found], "-", color=color)
