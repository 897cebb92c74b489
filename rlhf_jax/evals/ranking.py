"""Does a reward model rank held-out comparisons as their labelers did?"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any

from rlhf_jax.evals import intervals


def pair_accuracy(
    scores: Sequence[float], ranks: Sequence[int]
) -> tuple[float, int]:
  """(pairs put in the right order, untied pairs) of one prompt.

  Equal scores count one half.
  """
  right, pairs = 0.0, 0
  for i, j in itertools.combinations(range(len(ranks)), 2):
    if ranks[i] == ranks[j]:
      continue
    better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
    pairs += 1
    right += (scores[better] > scores[worse]) + 0.5 * (
        scores[better] == scores[worse])
  return right, pairs


def accuracy(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]]
) -> dict[str, float]:
  """Share of pairs in the right order; the interval clusters by prompt."""
  by_prompt: dict[str, list[float]] = {}
  for row, row_scores in zip(rows, scores):
    right, pairs = pair_accuracy(row_scores, row["ranks"])
    total = by_prompt.setdefault(row["prompt"], [0.0, 0])
    total[0] += right
    total[1] += pairs
  result = intervals.ratio(
      [right for right, _ in by_prompt.values()],
      [pairs for _, pairs in by_prompt.values()])
  return {**result, "pairs": sum(pairs for _, pairs in by_prompt.values())}


def evaluate(
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[Sequence[float]],
    groups: Sequence[str],
) -> Iterator[tuple[str, dict[str, float]]]:
  """Yields (group, accuracy) for "all" and for each group of rows."""
  yield "all", accuracy(rows, scores)
  for name in sorted(set(groups)):
    picked = [i for i, group in enumerate(groups) if group == name]
    yield name, accuracy(
        [rows[i] for i in picked], [scores[i] for i in picked])


def length_scores(row: Mapping[str, Any]) -> list[float]:
  """The scores of the rule "the longer response wins" (in characters)."""
  return [float(len(text)) for text in row["responses"]]
