"""Reward-model accuracy on rankings, by hand."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.evals import intervals, ranking


def row(ranks, prompt="p", lengths=None):
  """A comparison whose responses have these lengths, or all the same."""
  lengths = lengths or [1] * len(ranks)
  return {"prompt": prompt, "ranks": ranks,
          "responses": ["x" * length for length in lengths]}


def counts(scores, ranks):
  """(pairs in the right order, untied pairs) of one comparison."""
  pairs = ranking.pairs([row(ranks)], [scores])
  return ranking.right(pairs.margin).sum(), len(pairs)


@pytest.mark.parametrize("scores, ranks, right, pairs", [
    ((3.0, 2.0, 1.0), (1, 2, 3), 3, 3),
    ((1.0, 2.0, 3.0), (1, 2, 3), 0, 3),
    ((1.0, 3.0, 2.0), (2, 1, 1), 2, 2),  # the tie of the labeler is no pair
    ((5.0, 5.0, 0.0), (1, 2, 3), 2.5, 3),  # a tie of the scores is one half
    ((0.0, 1.0), (1, 1), 0, 0),
    ((-1e9, 0.1, 0.2), (3, 2, 1), 3, 3),
])
def test_pairs_of_a_prompt(scores, ranks, right, pairs):
  assert counts(scores, ranks) == (right, pairs)


def test_constant_scores_are_chance():
  assert counts([7.0] * 5, [1, 2, 3, 4, 5]) == (5, 10)


def test_negated_scores_turn_the_accuracy_over():
  scores, ranks = (0.3, 0.3, -1.0, 2.0), (2, 1, 1, 3)
  right, pairs = counts(scores, ranks)
  assert counts([-s for s in scores], ranks) == (pairs - right, pairs)


ROWS = [
    row((1, 2, 3), "p", (3, 1, 2)),
    row((3, 2, 1), "p", (3, 1, 2)),  # another labeler disagrees
    row((1, 2), "q", (4, 4)),
    row((1, 1), "r", (1, 9)),
]
SCORES = [(3.0, 2.0, 1.0), (3.0, 2.0, 1.0), (0.0, 1.0), (0.0, 1.0)]
PAIRS = ranking.pairs(ROWS, SCORES)


def test_accuracy_counts_pairs_and_clusters_by_prompt():
  found = ranking.accuracy(PAIRS)
  assert found["mean"] == pytest.approx(3 / 7)
  assert found["pairs"] == 7
  assert found["n"] == 2  # r has no pair; both rows of p are one cluster
  by_prompt = intervals.ratio([3, 0], [6, 1])
  assert {k: found[k] for k in by_prompt} == by_prompt


def test_groups_are_scored_apart_and_those_of_ties_left_out():
  found = ranking.by_group(
      ROWS, SCORES, ["b", "a", "b", "c"], ranking.accuracy)
  assert list(found) == ["all", "a", "b"]
  assert found["all"] == ranking.accuracy(PAIRS)
  assert (found["a"]["mean"], found["a"]["pairs"]) == (0, 3)
  assert (found["b"]["mean"], found["b"]["pairs"]) == (0.75, 4)


def test_rank_distance_by_hand():
  rows = ROWS + [row((1, 4, 4, 2), "s")]
  found = ranking.by_distance(ranking.pairs(rows, SCORES + [(5, 6, 0, 1)]))
  of = {name: (a["mean"], a["pairs"], a["n"]) for name, a in found.items()}
  # neighbours: two right of p's first row, two wrong of its second, q wrong,
  # 5 > 1 of s right
  assert of == {"1": (pytest.approx(3 / 6), 6, 3),
                "2": (pytest.approx(2 / 4), 4, 2),  # s: 1 > 6 wrong, 1 > 0
                "3": (0.5, 2, 1)}  # s: 5 > 6 wrong, 5 > 0


def test_rank_distances_and_lengths_share_the_pairs_out():
  rng = np.random.default_rng(0)
  rows = [row(rng.integers(1, 5, k), str(k % 7), rng.integers(0, 4, k).tolist())
          for k in rng.integers(2, 9, 40)]
  scores = [rng.normal(size=len(r["ranks"])) for r in rows]
  pairs = ranking.pairs(rows, scores)
  whole = ranking.accuracy(pairs)
  for parts in (ranking.by_distance(pairs), ranking.by_length(pairs)):
    assert sum(part["pairs"] for part in parts.values()) == whole["pairs"]
    assert sum(part["pairs"] * part["mean"] for part in parts.values()) == (
        pytest.approx(whole["pairs"] * whole["mean"]))


def test_the_longer_response_wins_by_hand():
  rows = [row((2, 3, 1, 2), "p", (2, 0, 3, 2))]
  pairs = ranking.pairs(rows, [(0, 0, 0, 0)])
  assert ranking.longer_wins(pairs)["mean"] == 1.0
  # of the seven of ROWS: 2 right of the first row, 1 of the second, half of q
  assert ranking.longer_wins(PAIRS)["mean"] == pytest.approx(3.5 / 7)


def test_accuracy_by_length_by_hand():
  found = ranking.by_length(PAIRS)
  assert {name: (of["mean"], of["pairs"]) for name, of in found.items()} == {
      "longer_is_better": (pytest.approx(2 / 3), 3),
      "longer_is_worse": (pytest.approx(1 / 3), 3),
      "equal_length": (0.0, 1)}


def test_the_difference_to_longer_wins_is_paired():
  found = ranking.above_longer_wins(PAIRS)
  assert found["mean"] == pytest.approx(3 / 7 - 3.5 / 7)
  # by prompt: p has 3 right of each rule, q none and a half
  by_prompt = intervals.ratio([0, -0.5], [6, 1])
  assert {k: found[k] for k in by_prompt} == pytest.approx(by_prompt)
  longer = ranking.pairs([row((1, 2, 3), "s", (3, 2, 1))], [(0, 0, 9)])
  assert ranking.above_longer_wins(longer)["mean"] == pytest.approx(1 / 6 - 1)


def test_scores_that_are_the_lengths_differ_by_nothing_for_certain():
  lengths = [[len(text) for text in row["responses"]] for row in ROWS]
  found = ranking.above_longer_wins(ranking.pairs(ROWS, lengths))
  assert (found["mean"], found["low"], found["high"]) == (0, 0, 0)


@pytest.mark.parametrize("denominator", ["kept", "all_pairs"])
def test_the_loss_is_that_of_the_loop_over_pairs(denominator):
  expected = []
  for of, scores in zip(ROWS, SCORES):
    kept = [(i, j) for i, j in itertools.permutations(range(len(scores)), 2)
            if of["ranks"][i] < of["ranks"][j]]
    total = sum(math.log(1 + math.exp(scores[j] - scores[i])) for i, j in kept)
    if kept:
      every = len(scores) * (len(scores) - 1) / 2
      expected.append(total / (len(kept) if denominator == "kept" else every))
  assert ranking.loss(ROWS, SCORES, denominator) == pytest.approx(
      sum(expected) / 3, rel=1e-6)
