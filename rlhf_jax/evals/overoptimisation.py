"""The forms of over-optimisation (Gao et al. 2022, arXiv:2210.10760).

With d the root of the KL to the policy at the start, in nats (of best-of-n the
bound of `best_of_n.kl`, as in the paper), the gold score gains on that policy's

  best-of-n   R(d) = d (alpha - beta d)
  RL          R(d) = d (alpha - beta log d)

Both are linear in alpha and beta, which least squares therefore give at once;
`intervals.bootstrap` of a weighted fit gives their intervals.
"""

from collections.abc import Callable
import dataclasses
import math

import numpy as np

MIN_POINTS = 3  # one more than coefficients


@dataclasses.dataclass(frozen=True)
class Form:
  """R(d) = d (alpha - beta g(d)).

  Attributes:
    g: of d > 0.
    peak: (alpha, beta) -> the d at which R is highest, where beta > 0.
  """

  g: Callable[[np.ndarray], np.ndarray]
  peak: Callable[[float, float], float]

  def terms(self, d: np.ndarray) -> np.ndarray:
    """[N] -> [N, 2]: what alpha and beta are multiplied with; 0 at d = 0."""
    d = np.asarray(d, np.float64)
    return np.stack([d, -d * self.g(np.where(d > 0, d, 1.0))], axis=-1)


BEST_OF_N = Form(lambda d: d, lambda alpha, beta: alpha / (2 * beta))
RL = Form(np.log, lambda alpha, beta: _exp(alpha / beta - 1))


def _exp(x: float) -> float:
  return math.exp(x) if x < 700 else math.inf


@dataclasses.dataclass(frozen=True)
class Fit:
  """A form with its coefficients.

  Attributes:
    form: BEST_OF_N or RL.
    alpha, beta: in units of the gain over the root of nats, and (BEST_OF_N)
      over nats.
    r2: the share of the points' variance that the form explains.
    min_d, max_d: the range of the points.
  """

  form: Form
  alpha: float
  beta: float
  r2: float
  min_d: float
  max_d: float

  def __call__(self, d: np.ndarray) -> np.ndarray:
    """R(d), [N] -> [N]."""
    return self.form.terms(d) @ np.array([self.alpha, self.beta])

  @property
  def peak(self) -> tuple[float, float] | None:
    """(d, R(d)) at the highest R, None where R rises, or falls, for ever."""
    if self.beta <= 0:
      return None
    d = self.form.peak(self.alpha, self.beta)
    if not 0 < d < math.inf:
      return None
    return d, float(self(np.array([d]))[0])

  @property
  def has_peak_inside(self) -> bool:
    """Whether the highest R is within the range of the points."""
    return self.peak is not None and self.min_d <= self.peak[0] <= self.max_d


def fit(form: Form, d: np.ndarray, gain: np.ndarray,
        weights: np.ndarray | None = None) -> Fit:
  """Least squares of all points with d > 0.

  Args:
    form: BEST_OF_N or RL.
    d: [N], roots of the KL.
    gain: [N], over the gold score at d = 0.
    weights: [N], of each square, as of a resample; 1 by default.

  Raises:
    ValueError: fewer points than MIN_POINTS.
  """
  d, gain = np.asarray(d, np.float64), np.asarray(gain, np.float64)
  weights = np.ones(len(d)) if weights is None else np.asarray(weights)
  is_used = (d > 0) & (weights > 0)
  if is_used.sum() < MIN_POINTS:
    raise ValueError(
        f"{is_used.sum()} points with a KL above 0 do not give two "
        f"coefficients and what they miss; at least {MIN_POINTS} are needed")
  d, gain, weights = d[is_used], gain[is_used], weights[is_used]
  terms, roots = form.terms(d), np.sqrt(weights)
  found, *_ = np.linalg.lstsq(
      terms * roots[:, None], gain * roots, rcond=None)
  squares = weights @ (gain - terms @ found) ** 2
  about_mean = weights @ (gain - np.average(gain, weights=weights)) ** 2
  alpha, beta = map(float, found)
  return Fit(form, alpha, beta, r2=float(1.0 - squares / about_mean),
             min_d=float(d.min()), max_d=float(d.max()))


def r2(found: Fit, d: np.ndarray, gain: np.ndarray) -> float:
  """The share of the variance of other points than those of the fit, such as
  means of them, that it explains."""
  d, gain = np.asarray(d, np.float64), np.asarray(gain, np.float64)
  return float(1.0 - ((gain - found(d)) ** 2).sum()
               / ((gain - gain.mean()) ** 2).sum())
