"""Reward-model accuracy on rankings, by hand."""

import pytest

from rlhf_jax.evals import ranking


@pytest.mark.parametrize("scores, ranks, right, pairs", [
    ((3.0, 2.0, 1.0), (1, 2, 3), 3, 3),
    ((1.0, 2.0, 3.0), (1, 2, 3), 0, 3),
    ((1.0, 3.0, 2.0), (2, 1, 1), 2, 2),  # the tie of the labeler is no pair
    ((5.0, 5.0, 0.0), (1, 2, 3), 2.5, 3),  # a tie of the scores is one half
    ((0.0, 1.0), (1, 1), 0, 0),
    ((-1e9, 0.1, 0.2), (3, 2, 1), 3, 3),
])
def test_pairs_of_a_prompt(scores, ranks, right, pairs):
  assert ranking.pair_accuracy(scores, ranks) == (right, pairs)


def test_constant_scores_are_chance():
  assert ranking.pair_accuracy([7.0] * 5, [1, 2, 3, 4, 5]) == (5, 10)


def test_negated_scores_turn_the_accuracy_over():
  scores, ranks = (0.3, 0.3, -1.0, 2.0), (2, 1, 1, 3)
  right, pairs = ranking.pair_accuracy(scores, ranks)
  assert ranking.pair_accuracy([-s for s in scores], ranks) == (
      pairs - right, pairs)


ROWS = [
    {"prompt": "p", "ranks": (1, 2, 3)},
    {"prompt": "p", "ranks": (3, 2, 1)},  # another labeler disagrees
    {"prompt": "q", "ranks": (1, 2)},
    {"prompt": "r", "ranks": (1, 1)},
]
SCORES = [(3.0, 2.0, 1.0), (3.0, 2.0, 1.0), (0.0, 1.0), (0.0, 1.0)]


def test_accuracy_counts_pairs_and_clusters_by_prompt():
  found = ranking.accuracy(ROWS, SCORES)
  assert found["mean"] == pytest.approx(3 / 7)
  assert found["pairs"] == 7
  assert found["n"] == 2  # r has no pair; both rows of p are one cluster


def test_groups_are_scored_apart():
  found = dict(ranking.evaluate(ROWS, SCORES, ["b", "a", "b", "a"]))
  assert list(found) == ["all", "a", "b"]
  assert found["all"] == ranking.accuracy(ROWS, SCORES)
  assert (found["a"]["mean"], found["a"]["pairs"]) == (0, 3)
  assert (found["b"]["mean"], found["b"]["pairs"]) == (0.75, 4)


def test_the_longer_reply_wins():
  row = {"responses": ["ab", "", "abc", "xy"], "ranks": (2, 3, 1, 2)}
  scores = ranking.length_scores(row)
  assert scores == [2, 0, 3, 2]
  assert ranking.pair_accuracy(scores, row["ranks"]) == (5, 5)
