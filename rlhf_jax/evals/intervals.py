"""95 % intervals of means, shares and ratios, and of anything by resampling."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Values = Sequence[float] | np.ndarray  # [N]
Z = 1.959964  # the normal quantile of 97.5 %


def ratio(
    numerators: Values, denominators: Values
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
  error = Z * np.sqrt((residuals**2).sum() * n / max(n - 1, 1))
  return {"mean": float(mean), "low": float(mean - error),
          "high": float(mean + error), "n": n}


def mean(values: Values) -> dict[str, float]:
  """The mean of independent values: mean, low, high, n."""
  return ratio(values, np.ones(len(values)))


def share(values: Values) -> dict[str, float]:
  """The mean of independent values that are 0 or 1, or seldom between: mean,
  low, high, n.

  Wilson's score interval (1927): it stays within [0, 1], and has a width where
  all values are the same.
  """
  n = len(values)
  if n == 0:
    return mean(values)
  p = float(np.mean(values))
  shrink = 1 + Z**2 / n
  centre = (p + Z**2 / (2 * n)) / shrink
  error = Z / shrink * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
  # of rounding, at 0 and 1
  return {"mean": p, "low": float(np.clip(centre - error, 0.0, p)),
          "high": float(np.clip(centre + error, p, 1.0)), "n": n}


def bootstrap(
    figure: Callable[[np.ndarray], Any], n: int, *, num_resamples: int = 1000
) -> tuple[Any, Any]:
  """(low, high) of a figure over resamples of what was drawn independently.

  Args:
    figure: of weights int [n], how often each cluster was drawn; a number or
      an array of them. All ones give the figure itself.
    n: clusters.
    num_resamples: how many.

  Returns:
    The quantiles of 2.5 % and 97.5 %. The noise is always the same.
  """
  draw = np.random.default_rng(0).multinomial
  found = [figure(draw(n, np.full(n, 1.0 / n))) for _ in range(num_resamples)]
  low, high = np.quantile(found, (0.025, 0.975), axis=0)
  return low, high


def shown(value: Mapping[str, Any]) -> str:
  """As tables print it: mean and half the interval's width."""
  return f"{value['mean']:.3f} ± {half_width(value):.3f}"


def percent(value: Mapping[str, Any]) -> str:
  """The same of a share, in percent."""
  return f"{100 * value['mean']:.1f} ± {100 * half_width(value):.1f} %"


def half_width(value: Mapping[str, Any]) -> float:
  return (value["high"] - value["low"]) / 2
