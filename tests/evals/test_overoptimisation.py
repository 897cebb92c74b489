"""Coefficients that are known are found again."""

import numpy as np
import pytest

from rlhf_jax.evals import overoptimisation
from rlhf_jax.evals.overoptimisation import BEST_OF_N, RL

ALPHA, BETA = 1.5, 0.4
D = np.linspace(0.0, 5.0, 40)
EXACT = {
    BEST_OF_N: D * (ALPHA - BETA * D),
    RL: D * (ALPHA - BETA * np.log(np.maximum(D, 1e-9))),
}
FORMS = pytest.mark.parametrize("form", [BEST_OF_N, RL], ids=["bon", "rl"])


@FORMS
def test_exact_points(form):
  found = overoptimisation.fit(form, D, EXACT[form])
  assert (found.alpha, found.beta) == pytest.approx((ALPHA, BETA))
  assert found.r2 == pytest.approx(1.0)
  assert (found.min_d, found.max_d) == (D[1], 5.0)  # d = 0 says nothing
  np.testing.assert_allclose(found(D), EXACT[form], atol=1e-9)


@FORMS
def test_the_peak_is_the_highest_point(form):
  found = overoptimisation.fit(form, D, EXACT[form])
  dense = np.linspace(0.01, 100, 1_000_000)
  d, gain = found.peak
  assert d == pytest.approx(dense[found(dense).argmax()], abs=1e-3)
  assert gain == pytest.approx(found(dense).max(), abs=1e-6)
  assert found.has_peak_inside == (form is BEST_OF_N)  # 1.9 and 15.6


@FORMS
@pytest.mark.parametrize("alpha, beta", [(1.0, -0.1), (1.0, 0.0), (1.0, 1e-6)])
def test_no_peak(form, alpha, beta):
  gain = form.terms(D) @ [alpha, beta]
  found = overoptimisation.fit(form, D, gain)
  assert not found.has_peak_inside
  if beta < 0:
    assert found.peak is None


@FORMS
def test_noise_does_not_bias_the_coefficients(form):
  rng = np.random.default_rng(0)
  found = [overoptimisation.fit(
      form, D, EXACT[form] + rng.normal(0, 0.2, len(D))) for _ in range(200)]
  assert np.mean([of.alpha for of in found]) == pytest.approx(ALPHA, abs=0.02)
  assert np.mean([of.beta for of in found]) == pytest.approx(BETA, abs=0.02)


def test_r2_is_the_share_of_variance():
  gain = EXACT[RL] + np.random.default_rng(0).normal(0, 0.5, len(D))
  found = overoptimisation.fit(RL, D, gain)
  expected = 1 - (gain - found(D))[1:].var() / gain[1:].var()
  assert found.r2 == pytest.approx(expected, abs=0.01)
  assert found.r2 == pytest.approx(
      overoptimisation.r2(found, D[1:], gain[1:]))


def test_a_weight_is_a_point_that_is_there_so_often():
  rng = np.random.default_rng(0)
  gain = EXACT[RL] + rng.normal(0, 0.2, len(D))
  weights = rng.integers(3, size=len(D))
  once = overoptimisation.fit(RL, D, gain, weights)
  often = overoptimisation.fit(
      RL, np.repeat(D, weights), np.repeat(gain, weights))
  for name in ("alpha", "beta", "r2"):
    assert getattr(once, name) == pytest.approx(getattr(often, name))


def test_too_few_points_are_refused():
  with pytest.raises(ValueError, match="2 points with a KL above 0"):
    overoptimisation.fit(RL, D[:3], EXACT[RL][:3])
