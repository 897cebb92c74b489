"""How much a reward model, and its labelers, go by length.

Lengths are in characters, as in "the longer response wins".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.evals import intervals
from rlhf_jax.evals.intervals import Values
from rlhf_jax.evals.ranking import Rows, Scores


def average_ranks(values: Values) -> np.ndarray:
  """Ranks from 1, the smallest; equal values share their mean rank."""
  _, inverse, counts = np.unique(
      values, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2.0)[inverse]


def spearman(x: Values, y: Values) -> float | None:
  """Spearman's rank correlation; None where x or y is constant."""
  a, b = (r - r.mean() for r in map(average_ranks, (x, y)))
  scale = np.sqrt((a**2).sum() * (b**2).sum())
  return float((a * b).sum() / scale) if scale > 0 else None


def correlations(rows: Rows, scores: Scores) -> dict[str, Any]:
  """Spearman correlations of length with the scores and with the labelers.

  Returns:
    `score` and `labelers`, each with `overall`, of all responses together, and
    `within_prompt`, the mean of the correlations among one row's responses
    (mean, low, high, n: prompts). Where one side is constant there is no
    correlation; where there is none at all, None. A labeler's ranks, of lists
    of many lengths, are compared overall as the share of its list that a
    response beats, ties half.
  """
  lengths = [[len(text) for text in row["responses"]] for row in rows]
  beaten = [beaten_share(row["ranks"]) for row in rows]
  return {
      "score": _correlations(rows, scores, lengths),
      "labelers": _correlations(rows, beaten, lengths),
  }


def beaten_share(ranks: Sequence[int]) -> np.ndarray:
  """[K] of ranks, 1 = best: the share of the others that each is better than,
  ties half; 1 for the best, 0 for the worst."""
  worst_first = average_ranks([-rank for rank in ranks])
  return (worst_first - 1.0) / (len(ranks) - 1.0)


def _correlations(rows: Rows, values: Scores, lengths) -> dict[str, Any]:
  by_prompt: dict[str, list[float]] = {}
  for row, row_values, row_lengths in zip(rows, values, lengths, strict=True):
    found = spearman(row_values, row_lengths)
    if found is not None:
      by_prompt.setdefault(row["prompt"], []).append(found)
  return {
      "overall": spearman(np.concatenate(values), np.concatenate(lengths)),
      "within_prompt": intervals.ratio(
          [sum(found) for found in by_prompt.values()],
          [len(found) for found in by_prompt.values()]) if by_prompt else None,
  }
