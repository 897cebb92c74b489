"""Does a reward model rank held-out comparisons as their labelers did?

Functions of (rows, scores): comparisons with `prompt`, `responses` and `ranks`,
and one score a response. What counts are untied pairs; intervals are of 95 %
and cluster by prompt, whose pairs share responses.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses
from rlhf_jax.evals import intervals

Rows = Sequence[Mapping[str, Any]]
Scores = Sequence[Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The P pairs of comparisons that are no ties.

  Attributes:
    margin: float64 [P], score of the better response minus that of the worse.
    distance: int [P], how many ranks lie between them; 1 = neighbours.
    longer: int [P], characters of the better minus those of the worse.
    prompt: int [P], the number of the prompt, equal for equal prompts.
    num_prompts: of the comparisons, with or without a pair.
  """

  margin: np.ndarray
  distance: np.ndarray
  longer: np.ndarray
  prompt: np.ndarray
  num_prompts: int

  def __len__(self) -> int:
    return len(self.margin)

  def where(self, mask: np.ndarray) -> "Pairs":
    """The pairs under a mask, bool [P]."""
    return Pairs(self.margin[mask], self.distance[mask], self.longer[mask],
                 self.prompt[mask], self.num_prompts)


def pairs(rows: Rows, scores: Scores) -> Pairs:
  """The untied pairs of all rows."""
  numbers: dict[str, int] = {}
  found = []
  for row, row_scores in zip(rows, scores, strict=True):
    prompt = numbers.setdefault(row["prompt"], len(numbers))
    ranks, lengths = row["ranks"], [len(text) for text in row["responses"]]
    found += [
        (float(row_scores[i]) - float(row_scores[j]), ranks[j] - ranks[i],
         lengths[i] - lengths[j], prompt)
        for i, j in itertools.permutations(range(len(ranks)), 2)
        if ranks[i] < ranks[j]
    ]
  margin, distance, longer, number = np.array(found).reshape(-1, 4).T
  return Pairs(margin, distance.astype(int), longer.astype(int),
               number.astype(int), len(numbers))


def share(pairs: Pairs, values: np.ndarray) -> dict[str, float]:
  """The mean of `values` [P]: mean, low, high, n (prompts), pairs."""
  by_prompt = lambda x: np.bincount(
      pairs.prompt, weights=x, minlength=pairs.num_prompts)
  found = intervals.ratio(by_prompt(values), by_prompt(np.ones(len(pairs))))
  return {**found, "pairs": len(pairs)}


def right(margin: np.ndarray) -> np.ndarray:
  """1 for a pair in the labeler's order, 0 for one that is not, 1/2 for equal
  scores."""
  return (1.0 + np.sign(margin)) / 2.0


def accuracy(pairs: Pairs) -> dict[str, float]:
  """Share of pairs that the scores put in the labeler's order."""
  return share(pairs, right(pairs.margin))


def longer_wins(pairs: Pairs) -> dict[str, float]:
  """The accuracy of the rule "the longer response wins"."""
  return share(pairs, right(pairs.longer))


def above_longer_wins(pairs: Pairs) -> dict[str, float]:
  """Accuracy minus that of "the longer response wins", on the same pairs."""
  return share(pairs, right(pairs.margin) - right(pairs.longer))


def by_group(
    rows: Rows, scores: Scores, groups: Sequence[str],
    figure: Callable[[Pairs], Any],
) -> dict[str, Any]:
  """{"all": figure, group: figure of the rows of each group}; groups of ties
  alone are left out."""
  found = {"all": pairs(rows, scores)}
  for name in sorted(set(groups)):
    picked = [i for i, group in enumerate(groups) if group == name]
    found[name] = pairs(
        [rows[i] for i in picked], [scores[i] for i in picked])
  return {name: figure(of) for name, of in found.items() if len(of)}


def by_distance(pairs: Pairs) -> dict[str, dict[str, float]]:
  """{"1": accuracy of neighbours, "2": of ranks two apart, ...}."""
  return {
      str(distance): accuracy(pairs.where(pairs.distance == distance))
      for distance in np.unique(pairs.distance)
  }


def by_length(pairs: Pairs) -> dict[str, dict[str, float]]:
  """Accuracy where the better response is the longer one, and where not."""
  sides = {"longer_is_better": pairs.longer > 0,
           "longer_is_worse": pairs.longer < 0,
           "equal_length": pairs.longer == 0}
  return {name: accuracy(pairs.where(mask))
          for name, mask in sides.items() if mask.any()}


def loss(rows: Rows, scores: Scores, denominator: str) -> float:
  """Mean over rows with a pair of their `losses.ranking_loss`, in nats."""
  shape = len(rows), max(len(row["ranks"]) for row in rows)
  padded_scores = np.zeros(shape, np.float32)
  ranks = np.zeros(shape, np.int32)
  for i, (row, row_scores) in enumerate(zip(rows, scores, strict=True)):
    padded_scores[i, :len(row_scores)] = row_scores
    ranks[i, :len(row_scores)] = row["ranks"]
  total, counts = losses.ranking_loss(
      jnp.asarray(padded_scores), jnp.asarray(ranks), jnp.asarray(ranks > 0),
      denominator=denominator)
  return float(total / counts["num_prompts"])
