"""95 % intervals: by hand, and do they cover?"""

import math

import numpy as np
import pytest

from rlhf_jax.evals import intervals


def test_mean_by_hand():
  found = intervals.mean([0.0, 1.0])
  half = 1.959964 * math.sqrt(0.5) / math.sqrt(2)  # z x sample SD / sqrt(n)
  assert found == pytest.approx(
      {"mean": 0.5, "low": 0.5 - half, "high": 0.5 + half, "n": 2})


def test_ratio_by_hand():
  # 4 / 5; residuals (1 - 1.6, 3 - 2.4) / 5 = -.12, .12; 2 / (2 - 1) clusters
  found = intervals.ratio([1, 3], [2, 3])
  half = 1.959964 * math.sqrt(2 * 0.12**2 * 2)
  assert found == pytest.approx(
      {"mean": 0.8, "low": 0.8 - half, "high": 0.8 + half, "n": 2})


def test_equal_clusters_make_the_mean():
  values = [0.0, 0.25, 1.0, 0.5]
  assert intervals.ratio([3 * v for v in values], [3.0] * 4) == pytest.approx(
      intervals.mean(values))


def test_clusters_without_a_pair_change_nothing():
  assert intervals.ratio([1, 0, 3, 0], [2, 0, 3, 0]) == (
      intervals.ratio([1, 3], [2, 3]))


@pytest.mark.parametrize("tops, bottoms", [([], []), ([0, 0], [0, 0])])
def test_nothing_is_no_number(tops, bottoms):
  found = intervals.ratio(tops, bottoms)
  assert found.pop("n") == 0
  assert all(math.isnan(value) for value in found.values())


def test_intervals_of_clustered_pairs_cover_the_truth():
  """Pairs of a prompt go wrong together; 95 of 100 intervals hold the truth,
  while intervals that take the pairs as independent are far too short."""
  rng = np.random.default_rng(0)
  pairs = rng.integers(1, 30, (1000, 120))  # of each of 120 prompts
  easiness = rng.beta(2, 1, (1000, 120))  # mean 2/3, the same for big and small
  right = rng.binomial(pairs, easiness)
  covered = np.mean([
      found["low"] <= 2 / 3 <= found["high"]
      for found in map(intervals.ratio, right, pairs)])
  assert 0.93 < covered < 0.97
  rate = right.sum(1) / pairs.sum(1)
  naive = 1.96 * np.sqrt(rate * (1 - rate) / pairs.sum(1))
  assert np.mean(np.abs(rate - 2 / 3) < naive) < 0.75
