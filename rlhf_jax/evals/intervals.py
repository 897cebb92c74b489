"""95 % intervals of means and ratios."""

from collections.abc import Sequence

import numpy as np

_Z = 1.959964  # the normal quantile of 97.5 %


def ratio(
    numerators: Sequence[float], denominators: Sequence[float]
) -> dict[str, float]:
  """sum(numerators) / sum(denominators) over independent clusters.

  A cluster is what was drawn independently, such as a prompt whose pairs
  share responses. The interval linearises the ratio (the delta method).

  Returns:
    mean, low, high, n (clusters with a positive denominator); NaN where there
    is none.
  """
  top = np.asarray(numerators, np.float64)
  bottom = np.asarray(denominators, np.float64)
  n = int((bottom > 0).sum())
  if n == 0:
    return {"mean": float("nan"), "low": float("nan"), "high": float("nan"),
            "n": 0}
  mean = top.sum() / bottom.sum()
  residuals = (top - mean * bottom) / bottom.sum()
  error = _Z * np.sqrt((residuals**2).sum() * n / max(n - 1, 1))
  return {"mean": float(mean), "low": float(mean - error),
          "high": float(mean + error), "n": n}


def mean(values: Sequence[float]) -> dict[str, float]:
  """The mean of independent values: mean, low, high, n."""
  return ratio(values, np.ones(len(values)))


def shown(value: dict[str, float]) -> str:
  """As tables print it: mean and half the interval's width."""
  return f"{value['mean']:.3f} ± {half_width(value):.3f}"


def percent(value: dict[str, float]) -> str:
  """The same of a share, in percent."""
  return f"{100 * value['mean']:.1f} ± {100 * half_width(value):.1f} %"


def half_width(value: dict[str, float]) -> float:
  return (value["high"] - value["low"]) / 2
