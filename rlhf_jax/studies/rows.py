"""The rows of a study's CSV, found again: figures of one seed or of several."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

Key = tuple[str, str, str]  # run, policy, name


@dataclasses.dataclass(frozen=True)
class Figure:
  """Of all seeds.

  Attributes:
    mean: over them.
    low, high: the least and the greatest of the seeds; of one seed its 95 %
      interval, where it has one, or the figure itself.
  """

  mean: float
  low: float
  high: float

  def __str__(self) -> str:
    if self.low == self.high:
      return f"{self.mean:.3g}"
    return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


RANGE = "mean, and range of the seeds; of one seed its 95 % interval"


class Figures:
  """What was measured as one task, by run, policy and name."""

  def __init__(self, rows: Sequence[Mapping[str, Any]], task: str):
    self._rows: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
      if row["task"] == task:
        key = row["run"], row["policy"], row["name"]
        self._rows.setdefault(key, []).append(row)

  def policies(self) -> list[tuple[str, str]]:
    """(run, policy) of all, in the order of the rows."""
    return list(dict.fromkeys((run, policy) for run, policy, _ in self._rows))

  def by_seed(self, run: str, policy: str, name: str) -> dict[Any, float]:
    """Seed -> the figure, of those that have it."""
    return {row["seed"]: float(row["mean"])
            for row in self._rows.get((run, policy, name), ())}

  def get(self, run: str, policy: str, name: str) -> Figure | None:
    """Of all seeds that have it; None where none has."""
    rows = self._rows.get((run, policy, name))
    if not rows:
      return None
    means = [float(row["mean"]) for row in rows]
    if len(rows) > 1:
      return Figure(float(np.mean(means)), min(means), max(means))
    low, high = (_finite(rows[0][of], means[0]) for of in ("low", "high"))
    return Figure(means[0], low, high)


def _finite(value: Any, otherwise: float) -> float:
  """An end of an interval, which a figure without one has as nothing."""
  if value is None or value == "" or not np.isfinite(float(value)):
    return otherwise
  return float(value)


def cell(figure: Figure | None) -> str:
  """As tables show it."""
  return "-" if figure is None else str(figure)
