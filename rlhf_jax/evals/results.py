"""What evaluators yield: rows of figures with 95 % intervals."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import tabulate

from rlhf_jax.evals import intervals


@dataclasses.dataclass(frozen=True)
class Row:
  """One figure.

  Attributes:
    name: what it is, as "accuracy" or "accuracy/heldout_labelers".
    mean: the figure.
    low, high: its 95 % interval; NaN where one value alone was measured.
    n: how many independent things it is over: items, prompts, texts.
  """

  name: str
  mean: float
  low: float
  high: float
  n: int

  def as_json(self) -> dict[str, Any]:
    """NaN is not JSON, and becomes null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in dataclasses.asdict(self).items()}


def row(name: str, found: Mapping[str, float]) -> Row:
  """A Row of mean, low, high and n, as of `intervals`."""
  mean, n = float(found["mean"]), int(found["n"])
  if n < 2:
    return Row(name, mean, math.nan, math.nan, n)
  return Row(name, mean, float(found["low"]), float(found["high"]), n)


def constant(name: str, value: float, n: int) -> Row:
  """A Row of what is known, not estimated."""
  return Row(name, float(value), float(value), float(value), n)


def fit(is_cut: Sequence[bool], is_left_out: Sequence[bool]) -> Iterator[Row]:
  """Yields what did not fit into the model's context, as shares of the texts:
  those whose beginning was cut off, and those left out."""
  for name, found in (("cut", is_cut), ("left_out", is_left_out)):
    share = sum(found) / len(found) if len(found) else math.nan
    yield constant(name, share, len(found))


def exponential(name: str, found: Mapping[str, float]) -> Row:
  """A Row of e to the power of a mean, as perplexities are."""
  of = lambda key: math.exp(found[key])
  return row(name, {key: of(key) for key in ("mean", "low", "high")}
             | {"n": found["n"]})


def mean(name: str, values: intervals.Values) -> Row:
  return row(name, intervals.mean(values))


def share(name: str, values: intervals.Values) -> Row:
  return row(name, intervals.share(values))


# --------------------------------------------------------------- what is said

_COLUMNS = 5  # side by side
# Shares that are shown, in percent, where any is above 0.
_REMARKS = {"empty": "answers empty", "cut": "texts cut",
            "left_out": "texts left out"}


def format_table(columns: Mapping[str, Mapping[str, Row]]) -> str:
  """A line a figure with half the width of its interval, a column a policy.

  Args:
    columns: policy -> {name of the figure: Row}. Empty answers, and what did
      not fit, are shown where there are any.
  """
  heads = list(columns)
  return "\n\n".join(
      _format({head: columns[head] for head in heads[start:start + _COLUMNS]})
      for start in range(0, len(heads), _COLUMNS))


def _format(columns) -> str:
  figures = dict.fromkeys(name for of in columns.values() for name in of)
  lines = []
  for figure in figures:
    rows = [of.get(figure) for of in columns.values()]
    if figure in _REMARKS:
      if any(row and row.mean > 0 for row in rows):
        lines.append((_REMARKS[figure], *(
            f"{100 * row.mean:.1f} %" if row else "-" for row in rows)))
      continue
    lines.append((figure, *(shown(row) if row else "-" for row in rows)))
  count = max(row.n for of in columns.values() for name, row in of.items()
              if name not in _REMARKS)
  return tabulate.tabulate(
      lines, headers=(f"n = {count:,}", *columns), disable_numparse=True)


def shown(row: Row) -> str:
  """The figure, and half the width of its interval where it has one."""
  digits = 3 if abs(row.mean) < 100 else 1
  half = (row.high - row.low) / 2
  if not half > 0:
    return f"{row.mean:.{digits}f}"
  return f"{row.mean:.{digits}f} ± {half:.{digits}f}"
