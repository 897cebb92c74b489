"""Strengths and Elo points: what is known is found again."""

import math

import numpy as np
import pytest

from rlhf_jax.evals import bradley_terry


def expected_wins(strengths, games):
  """[N, N]: of so many games between each two."""
  gap = strengths[:, None] - strengths[None, :]
  wins = games / (1 + np.exp(-gap))
  np.fill_diagonal(wins, 0)
  return wins


def test_known_strengths_are_recovered():
  known = np.array([2.0, -1.5, 0.3, -0.8])
  found = bradley_terry.strengths(expected_wins(known, 50))
  np.testing.assert_allclose(found, known, atol=1e-7)


@pytest.mark.parametrize("rate", [0.5, 0.75, 0.999])
def test_of_two_it_is_the_log_odds(rate):
  wins = np.array([[0, rate], [1 - rate, 0]]) * 1000
  a, b = bradley_terry.strengths(wins)
  assert a - b == pytest.approx(math.log(rate / (1 - rate)), abs=1e-7)


def test_who_never_met_is_compared_through_others():
  """Three in a chain: a beats b, b beats c, by two to one each."""
  wins = np.array([[0, 20, 0], [10, 0, 20], [0, 10, 0]])
  a, b, c = bradley_terry.strengths(wins)
  assert a - b == pytest.approx(math.log(2))
  assert a - c == pytest.approx(2 * math.log(2))


def test_no_finite_strengths_are_refused():
  with pytest.raises(ValueError, match="no finite strengths"):
    bradley_terry.strengths(np.array([[0, 5], [0, 0]]))


def test_odds_of_ten_to_one_are_400_points():
  points = bradley_terry.elo(np.array([math.log(10), 0.0, -math.log(10)]), 1)
  np.testing.assert_allclose(points, [1400, 1000, 600])


def points_of(rate, n):
  """[P, 2, 2]: the first of two wins at a rate."""
  wins = np.arange(n) < round(rate * n)
  points = np.full((n, 2, 2), 0.5)
  points[:, 0, 1], points[:, 1, 0] = wins, ~wins
  return points


def test_ties_are_half_a_win_each():
  mean, low, high = bradley_terry.estimate(np.full((40, 3, 3), 0.5), 0)
  for found in (mean, low, high):
    np.testing.assert_allclose(found, 1000, atol=1e-6)


def test_the_interval_is_that_of_the_win_rate():
  """With the tie of `estimate`, and odds by the delta method."""
  n, rate = 400, 0.75
  mean, low, high = bradley_terry.estimate(points_of(rate, n), 1)
  p = (rate * n + 0.5) / (n + 1)
  scale = 400 / math.log(10)
  assert mean[0] == pytest.approx(1000 + scale * math.log(p / (1 - p)))
  half = 1.96 * scale / math.sqrt(n * rate * (1 - rate))
  assert (high[0] - low[0]) / 2 == pytest.approx(half, rel=0.12)
  assert mean[1] == low[1] == high[1] == 1000


def test_who_never_loses_has_a_finite_number():
  mean, low, high = bradley_terry.estimate(points_of(1.0, 20), 1)
  assert 1000 < low[0] <= mean[0] <= high[0] < 2000
