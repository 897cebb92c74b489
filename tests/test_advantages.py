"""Laws of token rewards, advantages and their companions."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import advantages

# Compiled whole, as op by op compiles far more.
_gae = jax.jit(advantages.gae)
_token_rewards = jax.jit(advantages.token_rewards)


def _gae_by_double_sum(rewards, values, mask, discount, gae_lambda):
  """O(T^2) float64 oracle: A_t = sum_l (discount * lambda)^l d_{t+l}."""
  result = np.zeros(rewards.shape)
  for row in range(rewards.shape[0]):
    real = np.flatnonzero(mask[row])
    r, v = rewards[row, real], np.append(values[row, real], 0.0)
    deltas = [r[t] + discount * v[t + 1] - v[t] for t in range(len(real))]
    for t in range(len(real)):
      result[row, real[t]] = sum(
          (discount * gae_lambda)**n * d for n, d in enumerate(deltas[t:]))
  return result, np.where(mask, result + values, 0.0)


def _sequences(seed=0, batch_size=6, length=9):
  """Rewards, values and right-padded masks, one empty and one full."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, length, batch_size)
  lengths[:2] = 0, length
  mask = np.arange(length) < lengths[:, None]
  return rng.normal(size=mask.shape), rng.normal(size=mask.shape), mask


class GaeTest(parameterized.TestCase):

  @parameterized.parameters(*itertools.product((1.0, 0.9), (0.0, 0.95, 1.0)))
  def test_scan_equals_double_sum(self, discount, gae_lambda):
    rewards, values, mask = _sequences()
    holes = np.random.default_rng(1).random(mask.shape) < 0.5
    for some_mask in (mask, mask[:, ::-1], holes):
      actual = _gae(
          jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(some_mask),
          discount, gae_lambda)
      expected = _gae_by_double_sum(
          rewards, values, some_mask, discount, gae_lambda)
      for a, b in zip(actual, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a[~some_mask], 0.0)

  def test_hand_worked(self):
    adv, returns = _gae(
        jnp.array([[0.0, 1.0, 7.0]]), jnp.array([[0.5, 0.25, 7.0]]),
        jnp.array([[True, True, False]]), 1.0, 0.5)
    # d = (.25 - .5, 1 - .25); A = (-.25 + .5 * .75, .75).
    np.testing.assert_allclose(adv, [[0.125, 0.75, 0.0]])
    np.testing.assert_allclose(returns, [[0.625, 1.0, 0.0]])

  def test_lambda_one_returns_are_rewards_to_go(self):
    rewards, values, mask = _sequences()
    adv, returns = _gae(
        jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), 1.0, 1.0)
    real = np.where(mask, rewards, 0.0)
    to_go = np.cumsum(real[:, ::-1], axis=1)[:, ::-1] * mask
    np.testing.assert_allclose(returns, to_go, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        adv, (to_go - values) * mask, rtol=1e-5, atol=1e-6)

  def test_lambda_zero_advantages_are_deltas(self):
    rewards, values, mask = _sequences()
    adv, _ = _gae(
        jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), 1.0, 0.0)
    real = values * mask
    next_values = np.pad(real[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_allclose(
        adv, (rewards + next_values - real) * mask, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(jnp.nan, jnp.inf, -1e30)
  def test_garbage_under_padding_changes_nothing(self, garbage):
    rewards, values, mask = map(jnp.asarray, _sequences())
    clean = _gae(rewards, values, mask, 1.0, 0.95)
    dirty = _gae(
        jnp.where(mask, rewards, garbage), jnp.where(mask, values, garbage),
        mask, 1.0, 0.95)
    for a, b in zip(clean, dirty):
      np.testing.assert_array_equal(a, b)

  def _placements(self, gae_lambda, value_after_end):
    """Advantages of real tokens with the score at EOS and one step later.

    In the second, Huang et al.'s, the critic's value after EOS stays live and
    the score follows it. Column `length` of row b holds that extra step.
    """
    rng = np.random.default_rng(2)
    mask, scores = _sequences()[2][1:], rng.normal(size=5)
    lengths = mask.sum(1)
    rows = np.arange(len(mask))
    penalties, values = rng.normal(size=(2, *mask.shape))
    at_end = np.where(mask, penalties, 0.0)
    at_end[rows, lengths - 1] += scores
    first, _ = _gae(
        jnp.asarray(at_end), jnp.asarray(values), jnp.asarray(mask), 1.0,
        gae_lambda)

    widen = lambda x: np.pad(x, ((0, 0), (0, 1)))
    late, late_values, late_mask = map(widen, (penalties, values, mask))
    late_mask[rows, lengths] = True
    late[rows, lengths] = scores
    late_values[rows, lengths] = value_after_end(scores)
    second, _ = _gae(
        jnp.asarray(late), jnp.asarray(late_values), jnp.asarray(late_mask),
        1.0, gae_lambda)
    return first, np.where(mask, second[:, :-1], 0.0)

  @parameterized.parameters(
      (1.0, lambda scores: 3.0 + 0.0 * scores), (0.95, lambda scores: scores))
  def test_score_placements_agree(self, gae_lambda, value_after_end):
    first, second = self._placements(gae_lambda, value_after_end)
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)

  def test_score_placements_differ_below_lambda_one(self):
    first, second = self._placements(0.95, lambda scores: scores + 1.0)
    self.assertGreater(np.abs(first - second).max(), 0.01)


class TokenRewardsTest(parameterized.TestCase):

  def test_score_survives_in_float32(self):
    # Integer rewards would turn .73 into 0.
    rewards = _token_rewards(
        jnp.array([0.73]), jnp.array([[-1.0, -2.0, -3.0]]),
        jnp.array([[-1.5, -1.0, -9.0]]), jnp.array([[True, True, False]]), 0.02)
    self.assertEqual(rewards.dtype, jnp.float32)
    np.testing.assert_allclose(
        rewards, [[-0.02 * 0.5, 0.73 + 0.02 * 1.0, 0.0]], rtol=1e-6)

  def test_sum_is_the_objective_of_a_response(self):
    logprobs, ref_logprobs, mask = _sequences(3)
    scores = np.linspace(-1.6, 2.0, len(mask))
    rewards = _token_rewards(
        jnp.asarray(scores), jnp.asarray(logprobs), jnp.asarray(ref_logprobs),
        jnp.asarray(mask), 0.05)
    kl = np.where(mask, logprobs - ref_logprobs, 0.0).sum(1)
    expected = np.where(mask.any(1), scores - 0.05 * kl, 0.0)
    np.testing.assert_allclose(rewards.sum(1), expected, rtol=1e-5, atol=1e-6)

  def test_policy_equal_to_reference_pays_the_score_at_the_end_only(self):
    logprobs, _, mask = _sequences(4)
    scores = np.arange(1.0, len(mask) + 1, dtype=np.float32)
    rewards = _token_rewards(
        jnp.asarray(scores), jnp.asarray(logprobs), jnp.asarray(logprobs),
        jnp.asarray(mask), 0.02)
    expected = np.zeros(mask.shape, np.float32)
    for row, length in enumerate(mask.sum(1)):
      if length:
        expected[row, length - 1] = scores[row]
    np.testing.assert_array_equal(rewards, expected)

  def test_garbage_under_padding_and_in_empty_rows(self):
    logprobs, ref_logprobs, mask = map(jnp.asarray, _sequences(5))
    scores = jnp.ones(len(mask)).at[0].set(jnp.nan)  # Row 0 has no token.
    rewards = _token_rewards(
        scores, jnp.where(mask, logprobs, jnp.nan),
        jnp.where(mask, ref_logprobs, -jnp.inf), mask, 0.02)
    self.assertTrue(np.isfinite(rewards).all())
    np.testing.assert_array_equal(rewards[~mask], 0.0)

  def test_low_precision_inputs_give_float32(self):
    half = jnp.zeros((1, 2), jnp.bfloat16)
    rewards = _token_rewards(
        jnp.ones(1, jnp.bfloat16), half, half, jnp.ones((1, 2), bool), 0.02)
    self.assertEqual(rewards.dtype, jnp.float32)

  def test_missing_eos_penalty(self):
    scores = advantages.missing_eos_penalty(
        jnp.array([2.0, 2.0, -1.0]), jnp.array([True, False, False]), 1.5)
    np.testing.assert_allclose(scores, [2.0, 0.5, -2.5])


class AdaptiveKlTest(parameterized.TestCase):

  @parameterized.parameters(
      (6.0, 0.15),  # On target.
      (6.6, 0.15 * (1 + 0.1 * 512 / 10_000)),
      (60.0, 0.15 * (1 + 0.2 * 512 / 10_000)),  # The error saturates.
      (0.0, 0.15 * (1 - 0.2 * 512 / 10_000)),
  )
  def test_update(self, kl, expected):
    updated = advantages.adaptive_kl_coef(0.15, kl, 6.0, 10_000, 512)
    np.testing.assert_allclose(updated, expected, rtol=1e-6)

  def test_controls_a_simple_plant(self):
    def iteration(_, kl_coef):
      return advantages.adaptive_kl_coef(
          kl_coef, 1.0 / kl_coef, 6.0, 1000, 500)
    kl_coef = jax.lax.fori_loop(0, 200, iteration, jnp.float32(2.0))
    np.testing.assert_allclose(1.0 / kl_coef, 6.0, rtol=1e-3)


class ExplainedVarianceTest(parameterized.TestCase):

  def test_perfect_constant_and_opposite_critics(self):
    returns = jnp.array([[1.0, 2.0, jnp.nan], [3.0, 5.0, jnp.nan]])
    mask = jnp.isfinite(returns)
    explained = lambda values: advantages.explained_variance(
        values, returns, mask)
    np.testing.assert_allclose(explained(returns), 1.0)
    np.testing.assert_allclose(explained(returns + 4.0), 1.0)
    np.testing.assert_allclose(explained(jnp.ones((2, 3))), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained(-returns), -3.0, rtol=1e-5)

  def test_constant_returns_and_empty_mask_give_zero(self):
    ones = jnp.ones((2, 3))
    for mask in (ones, 0 * ones):
      self.assertEqual(
          advantages.explained_variance(2 * ones, ones, mask > 0), 0.0)


if __name__ == "__main__":
  absltest.main()
