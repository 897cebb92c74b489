"""Does a reward model's score difference mean what it says?

Under the model of InstructGPT eq. 1 a labeler prefers the response with the
higher score with probability sigmoid(difference). Of the pairs for which that
is about p, a share of p should therefore be in the labeler's order.
"""

from typing import Any

import numpy as np

from rlhf_jax.evals import ranking

NUM_BINS = 10


def predicted(pairs: ranking.Pairs) -> np.ndarray:
  """[P]: the probability given to the response that the scores prefer."""
  return 1.0 / (1.0 + np.exp(-np.abs(pairs.margin)))


def curve(
    pairs: ranking.Pairs, num_bins: int = NUM_BINS) -> list[dict[str, Any]]:
  """The calibration curve: pairs binned by their predicted probability.

  Args:
    pairs: untied pairs.
    num_bins: of equal width from .5 to 1, the last with its end; those without
      a pair are left out.

  Returns:
    A dict a bin: `from` and `to`, its ends; `predicted`, the mean predicted
    probability; `observed`, the share in the labeler's order with its interval
    (equal scores count one half).
  """
  probability = predicted(pairs)
  number = np.minimum(
      ((probability - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
  return [
      {"from": 0.5 + bin_ / (2 * num_bins),
       "to": 0.5 + (bin_ + 1) / (2 * num_bins),
       "predicted": float(probability[number == bin_].mean()),
       "observed": ranking.accuracy(pairs.where(number == bin_))}
      for bin_ in np.unique(number).tolist()
  ]


def expected_error(bins: list[dict[str, Any]]) -> float:
  """The expected calibration error: |predicted - observed|, by pairs."""
  weights = [of["observed"]["pairs"] for of in bins]
  return float(np.average(
      [abs(of["predicted"] - of["observed"]["mean"]) for of in bins],
      weights=weights))
