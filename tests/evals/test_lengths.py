"""Correlations with length: by hand, and as SciPy has them."""

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evals import intervals, lengths


def test_equal_values_share_their_mean_rank():
  np.testing.assert_array_equal(
      lengths.average_ranks([3.0, 1.0, 3.0, 2.0, 3.0]), [4, 1, 4, 2, 4])


def test_spearman_is_scipys():
  rng = np.random.default_rng(0)
  for size in (2, 5, 40):
    x, y = rng.permutation(size) // 2 + [0.5] * size, rng.normal(size=size)
    y = np.round(y, 1)
    expected = stats.spearmanr(x, y).statistic
    assert lengths.spearman(x, y) == (
        pytest.approx(expected) if np.isfinite(expected) else None)


def test_a_constant_has_no_correlation():
  assert lengths.spearman([1, 1, 1], [1, 2, 3]) is None
  assert lengths.spearman([1, 2], [1, 2]) == 1.0


def test_a_list_is_beaten_from_its_end():
  np.testing.assert_allclose(
      lengths.beaten_share([2, 1, 4, 2]), [1 / 2, 1, 0, 1 / 2])
  np.testing.assert_allclose(lengths.beaten_share([1, 1]), [.5, .5])


def row(prompt, sizes, ranks):
  return {"prompt": prompt, "ranks": ranks,
          "responses": ["x" * size for size in sizes]}


ROWS = [
    row("p", (1, 2, 3), (3, 2, 1)),  # the longer the better
    row("p", (1, 2, 3), (1, 3, 2)),
    row("q", (5, 6), (1, 2)),  # the shorter
    row("r", (4, 4), (1, 2)),  # no length to go by
]
SCORES = [(1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (9.0, 8.0), (0.0, 1.0)]


def test_correlations_by_hand():
  found = lengths.correlations(ROWS, SCORES)
  within = lambda name: found[name]["within_prompt"]
  # p: 1 and 1 of the scores, 1 and -1/2 of the labelers; q: -1 and -1
  assert within("score") == pytest.approx(intervals.ratio([2, -1], [2, 1]))
  assert within("labelers") == pytest.approx(
      intervals.ratio([0.5, -1], [2, 1]))
  assert within("labelers")["mean"] == pytest.approx(-1 / 6)
  sizes = [1, 2, 3, 1, 2, 3, 5, 6, 4, 4]
  assert found["score"]["overall"] == pytest.approx(
      stats.spearmanr([s for of in SCORES for s in of], sizes).statistic)
  beaten = [0, .5, 1, 1, 0, .5, 1, 0, 1, 0]
  assert found["labelers"]["overall"] == pytest.approx(
      stats.spearmanr(beaten, sizes).statistic)


def test_no_correlation_at_all_is_none():
  found = lengths.correlations(ROWS[3:], SCORES[3:])
  assert found["score"] == {"overall": None, "within_prompt": None}
