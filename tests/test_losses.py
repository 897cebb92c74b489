"""Laws of the four losses and of the KL estimators."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses
from rlhf_jax import masked

# Compiled whole, as op by op compiles far more.
_ranking_loss = jax.jit(losses.ranking_loss, static_argnames="denominator")
_policy_loss = jax.jit(losses.clipped_policy_loss)
_value_loss = jax.jit(losses.clipped_value_loss)
_token_logprobs = jax.jit(losses.token_logprobs)


@jax.jit
def _lm_loss_sum(logits, tokens, mask):
  return losses.lm_loss_sum(losses.token_logprobs(logits, tokens), mask)


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _random_batch(seed=0, shape=(3, 5), vocab_size=7):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(*shape, vocab_size)).astype(np.float32)
  tokens = rng.integers(0, vocab_size, shape)
  mask = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))
  return logits, tokens, mask


class LmLossTest(parameterized.TestCase):

  @parameterized.parameters(1.0, 0.7)
  def test_token_logprobs_equal_log_softmax(self, temperature):
    logits, tokens, _ = _random_batch()
    logprobs = _token_logprobs(logits, jnp.asarray(tokens), temperature)
    expected = _log_softmax(logits / temperature)
    for b, t in np.ndindex(*tokens.shape):
      np.testing.assert_allclose(
          logprobs[b, t], expected[b, t, tokens[b, t]], rtol=1e-5)

  def test_token_logprobs_gradient_is_one_hot_minus_softmax(self):
    logits, tokens, _ = _random_batch()
    gradient = jax.grad(
        lambda x: jnp.sum(_token_logprobs(x, jnp.asarray(tokens))))(
            jnp.asarray(logits))
    expected = np.eye(7)[tokens] - np.exp(_log_softmax(logits))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)

  def test_token_logprobs_far_from_zero_and_with_masked_vocabulary(self):
    logits, tokens, _ = _random_batch()
    tokens = jnp.asarray(tokens)
    # A shift by a power of two, after rounding to its last place, is exact.
    logits = np.round(logits * 64) / 64
    expected = _token_logprobs(logits, tokens)
    np.testing.assert_array_equal(
        _token_logprobs(logits + 4096.0, tokens), expected)
    padded = np.pad(
        logits, ((0, 0), (0, 0), (0, 2)), constant_values=-np.inf)
    np.testing.assert_allclose(
        _token_logprobs(padded, tokens), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: _token_logprobs(x, tokens).sum())(
        jnp.asarray(padded))
    self.assertTrue(np.isfinite(gradient).all())

  def test_bfloat16_logits_are_summed_in_float32(self):
    logits = jnp.zeros((1, 1, 1000), jnp.bfloat16)
    logprobs = _token_logprobs(logits, jnp.zeros((1, 1), jnp.int32))
    self.assertEqual(logprobs.dtype, jnp.float32)
    np.testing.assert_allclose(logprobs, -np.log(1000), rtol=1e-6)

  def test_mean_over_unmasked_equals_loop(self):
    logits, tokens, mask = _random_batch()
    loss_sum, count = _lm_loss_sum(
        logits, jnp.asarray(tokens), jnp.asarray(mask))
    terms = [
        -_log_softmax(logits)[b, t, tokens[b, t]]
        for b, t in np.ndindex(*mask.shape) if mask[b, t]
    ]
    self.assertEqual(count, len(terms))
    np.testing.assert_allclose(loss_sum / count, np.mean(terms), rtol=1e-5)

  def test_uniform_model_pays_log_vocabulary(self):
    loss_sum, count = _lm_loss_sum(
        jnp.full((2, 3, 50257), 5.0), jnp.arange(6).reshape(2, 3),
        jnp.array([[0, 1, 1], [0, 0, 1]]))
    np.testing.assert_allclose(loss_sum / count, np.log(50257), rtol=1e-6)

  def test_masked_tokens_have_no_gradient(self):
    logits, tokens, mask = _random_batch()
    gradient = jax.grad(
        lambda x: _lm_loss_sum(
            x, jnp.asarray(tokens), jnp.asarray(mask))[0])(logits)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    self.assertTrue((np.abs(gradient[mask]).sum(-1) > 0).all())


def _ranking_loss_by_loop(scores, ranks, mask, denominator):
  """Double loop over pairs, in float64."""
  loss = num_prompts = num_pairs = num_correct = 0.0
  for s, r, m in zip(np.asarray(scores, np.float64), ranks, mask):
    real = np.flatnonzero(m)
    margins = []
    for i, j in itertools.permutations(real, 2):
      if r[i] < r[j]:
        margins.append(s[i] - s[j])
    if not margins:
      continue
    size = len(margins)
    if denominator == "all_pairs":
      size = len(real) * (len(real) - 1) / 2
    loss += sum(np.log1p(np.exp(-x)) for x in margins) / size
    num_prompts += 1
    num_pairs += len(margins)
    num_correct += sum(1.0 if x > 0 else 0.5 * (x == 0) for x in margins)
  return loss, dict(
      num_prompts=num_prompts, num_pairs=num_pairs, num_correct=num_correct)


def _ranked_prompts(seed=0, num_prompts=12, max_responses=9):
  """K of 4 to 9 in one batch, ranks with ties, some equal scores."""
  rng = np.random.default_rng(seed)
  shape = (num_prompts, max_responses)
  mask = np.arange(max_responses) < rng.integers(4, 10, (num_prompts, 1))
  mask = rng.permuted(mask, axis=1)  # Empty slots anywhere.
  scores = (rng.integers(-8, 9, shape) / 4).astype(np.float32)
  ranks = rng.integers(1, 6, shape)
  ranks[0] = 3  # One prompt with nothing but ties.
  return scores, ranks, mask


class RankingLossTest(parameterized.TestCase):

  def _loss(self, scores, ranks, mask=None, **kwargs):
    scores, ranks = jnp.asarray(scores, jnp.float32), jnp.asarray(ranks)
    mask = jnp.ones(ranks.shape, bool) if mask is None else jnp.asarray(mask)
    return _ranking_loss(scores, ranks, mask, **kwargs)

  @parameterized.product(
      seed=(0, 1, 2), denominator=("kept", "all_pairs"))
  def test_equals_double_loop(self, seed, denominator):
    scores, ranks, mask = _ranked_prompts(seed)
    loss, metrics = self._loss(scores, ranks, mask, denominator=denominator)
    expected, expected_metrics = _ranking_loss_by_loop(
        scores, ranks, mask, denominator)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    self.assertEqual(
        {name: float(value) for name, value in metrics.items()},
        expected_metrics)

  def test_golden(self):
    loss, metrics = self._loss([[2.0, 1.0, 0.0]], [[1, 2, 3]])
    np.testing.assert_allclose(loss, 0.2511504620, rtol=1e-6)
    self.assertEqual(metrics["num_correct"], 3)

  def test_equal_scores_pay_log_two_and_count_half(self):
    loss, metrics = self._loss(np.full((1, 4), 0.3), [[4, 2, 1, 3]])
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    self.assertEqual(metrics["num_correct"] / metrics["num_pairs"], 0.5)

  def test_shift_of_a_prompt_changes_nothing(self):
    scores, ranks, mask = _ranked_prompts()
    shift = np.arange(len(scores), dtype=np.float32)[:, None]
    loss, _ = self._loss(scores, ranks, mask)
    shifted, _ = self._loss(scores + shift, ranks, mask)
    np.testing.assert_allclose(loss, shifted, rtol=1e-6)

  @parameterized.parameters("kept", "all_pairs")
  def test_gradient_of_a_prompt_sums_to_zero(self, denominator):
    scores, ranks, mask = _ranked_prompts()
    gradient = jax.grad(
        lambda s: self._loss(s, ranks, mask, denominator=denominator)[0])(
            jnp.asarray(scores))
    np.testing.assert_allclose(gradient.sum(1), 0.0, atol=1e-6)
    self.assertGreater(np.abs(gradient).max(), 0.01)

  def test_two_responses_are_bradley_terry(self):
    loss, _ = self._loss([[0.4, 1.5], [0.2, -0.1]], [[1, 2], [2, 1]])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(
        loss, -np.log(sigmoid(-1.1)) - np.log(sigmoid(-0.3)), rtol=1e-6)

  @parameterized.parameters(jnp.nan, jnp.inf, 1e30)
  def test_empty_slots_have_no_effect(self, garbage):
    scores, ranks, mask = _ranked_prompts()
    dirty_scores = jnp.where(mask, scores, garbage)
    dirty_ranks = np.where(mask, ranks, -7)
    loss = lambda s, r: self._loss(s, r, mask)[0]
    self.assertEqual(loss(scores, ranks), loss(dirty_scores, dirty_ranks))
    gradient = jax.grad(loss)(dirty_scores, dirty_ranks)
    np.testing.assert_array_equal(
        gradient, jax.grad(loss)(jnp.asarray(scores), ranks))
    np.testing.assert_array_equal(gradient[~mask], 0.0)

  @parameterized.parameters("kept", "all_pairs")
  def test_ties_only_give_zero_loss_and_finite_gradient(self, denominator):
    scores = jnp.array([[0.1, 0.2, 0.3], [5.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[True] * 3, [True, False, False]])
    loss, gradient = jax.value_and_grad(
        lambda s: self._loss(s, [[2, 2, 2], [1, 2, 3]], mask,
                             denominator=denominator)[0])(scores)
    self.assertEqual(loss, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)

  def test_each_prompt_weighs_the_same(self):
    # All margins are zero: the first prompt has 1 pair, the second has 36.
    mask = np.arange(9) < np.array([[2], [9]])
    ranks = np.tile(np.arange(1, 10), (2, 1))
    both, metrics = self._loss(np.zeros((2, 9)), ranks, mask)
    np.testing.assert_allclose(both, 2 * np.log(2), rtol=1e-6)
    self.assertEqual(metrics["num_prompts"], 2)
    self.assertEqual(metrics["num_pairs"], 37)

  def test_unknown_denominator(self):
    with self.assertRaisesRegex(ValueError, "kept"):
      self._loss([[1.0, 0.0]], [[1, 2]], denominator="mean")


class PolicyLossTest(parameterized.TestCase):

  def test_first_minibatch(self):
    logits, tokens, mask = _random_batch()
    logprobs = _token_logprobs(logits, jnp.asarray(tokens))
    adv = np.random.default_rng(1).normal(size=mask.shape)
    count = mask.sum()
    loss, metrics = _policy_loss(
        logprobs, logprobs, jnp.asarray(adv), jnp.asarray(mask), 0.2)
    np.testing.assert_allclose(loss / count, -adv[mask].mean(), rtol=1e-5)
    self.assertEqual(metrics["ratio"], count)
    self.assertEqual(metrics["approx_kl"], 0.0)
    self.assertEqual(metrics["clip_frac"], 0.0)
    self.assertEqual(metrics["ratio_max_deviation"], 0.0)
    # Zero only when whitened over exactly these tokens.
    whitened = masked.whiten(jnp.asarray(adv), jnp.asarray(mask))
    loss, _ = _policy_loss(
        logprobs, logprobs, whitened, jnp.asarray(mask), 0.2)
    np.testing.assert_allclose(loss / count, 0.0, atol=1e-6)

  def test_gradient_at_ratio_one_is_the_policy_gradient(self):
    logits, tokens, mask = _random_batch()
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    adv = jnp.asarray(np.random.default_rng(1).normal(size=mask.shape))
    old_logprobs = _token_logprobs(logits, tokens)

    def ppo(x):
      return _policy_loss(
          _token_logprobs(x, tokens), old_logprobs, adv, mask, 0.2)[0]

    def vanilla(x):
      return -masked.total(adv * _token_logprobs(x, tokens), mask)

    np.testing.assert_allclose(
        jax.grad(ppo)(logits), jax.grad(vanilla)(logits), rtol=1e-5, atol=1e-6)

  @parameterized.parameters(
      # advantage, ratio, loss, gradient with respect to logprob
      (1.0, 1.3, -1.2, 0.0),
      (-1.0, 0.7, 0.8, 0.0),
      (1.0, 0.7, -0.7, -0.7),  # Too low and should rise: not clipped.
      (-1.0, 1.3, 1.3, 1.3),
      (2.0, 1.1, -2.2, -2.2),
  )
  def test_clip(self, advantage, ratio, expected, expected_gradient):
    one = lambda x: jnp.array([[x]])
    def loss(logprobs):
      return _policy_loss(
          logprobs, one(-1.0), one(advantage), one(True), 0.2)
    logprobs = one(-1.0 + np.log(ratio))
    (value, metrics), gradient = jax.value_and_grad(
        loss, has_aux=True)(logprobs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[expected_gradient]], rtol=1e-5)
    self.assertEqual(metrics["clip_frac"], float(expected_gradient == 0.0))
    np.testing.assert_allclose(metrics["ratio"], ratio, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["ratio_max_deviation"], abs(ratio - 1), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["approx_kl"], 0.5 * np.log(ratio)**2, rtol=1e-5)

  @parameterized.parameters(jnp.nan, jnp.inf)
  def test_garbage_under_padding_changes_nothing(self, garbage):
    rng = np.random.default_rng(0)
    mask = jnp.array([[True, True, False], [True, False, False]])
    clean = jnp.asarray(rng.normal(size=(3, 2, 3)))
    dirty = jnp.where(mask, clean, garbage)
    loss = jax.value_and_grad(
        lambda x: _policy_loss(*x, mask, 0.2), has_aux=True)
    (a, metrics_a), gradient_a = loss(clean)
    (b, metrics_b), gradient_b = loss(dirty)
    self.assertEqual(a, b)
    self.assertEqual(metrics_a, metrics_b)
    np.testing.assert_array_equal(gradient_a, gradient_b)


class ValueLossTest(parameterized.TestCase):

  def _arrays(self):
    values, old_values, returns = np.random.default_rng(0).normal(
        size=(3, 4, 6)).astype(np.float32)
    mask = np.arange(6) < np.array([[6], [3], [1], [0]])
    return values, old_values, returns, mask

  def test_at_the_old_values_it_is_half_the_squared_error(self):
    values, _, returns, mask = map(jnp.asarray, self._arrays())
    loss, metrics = _value_loss(
        values, values, returns, mask, 0.2)
    np.testing.assert_allclose(
        loss, 0.5 * masked.total((values - returns)**2, mask), rtol=1e-6)
    self.assertEqual(metrics["clip_frac"], 0.0)

  @parameterized.parameters(0.0, 0.2, 1.0, float("inf"))
  def test_is_never_below_the_unclipped_loss(self, value_clip_eps):
    values, old_values, returns, mask = self._arrays()
    for b, t in zip(*np.nonzero(mask)):
      one = [jnp.asarray(x[b:b + 1, t:t + 1])
             for x in (values, old_values, returns, mask)]
      loss, metrics = _value_loss(*one, value_clip_eps)
      unclipped = 0.5 * (values[b, t] - returns[b, t])**2
      self.assertGreaterEqual(float(loss), unclipped * (1 - 1e-6))
      self.assertEqual(
          bool(metrics["clip_frac"]), bool(loss > unclipped * (1 + 1e-6)))

  @parameterized.parameters(
      # value, return, loss, gradient; the old value is 1 and the clip .2
      (1.5, 2.0, 0.5 * 0.8**2, 0.0),  # Beyond the clip towards the return.
      (1.5, 0.0, 0.5 * 1.5**2, 1.5),  # Beyond it in the wrong direction.
      (1.1, 2.0, 0.5 * 0.9**2, -0.9),
  )
  def test_clip(self, value, target, expected, expected_gradient):
    one = lambda x: jnp.array([[x]])
    loss, gradient = jax.value_and_grad(
        lambda v: _value_loss(
            v, one(1.0), one(target), one(True), 0.2)[0])(one(value))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[expected_gradient]], rtol=1e-5)

  def test_garbage_under_padding_changes_nothing(self):
    *clean, mask = map(jnp.asarray, self._arrays())
    loss = jax.value_and_grad(
        lambda x: _value_loss(*x, mask, 0.2)[0])
    a, gradient_a = loss(clean)
    b, gradient_b = loss([jnp.where(mask, x, jnp.nan) for x in clean])
    self.assertEqual(a, b)
    np.testing.assert_array_equal(gradient_a[0], gradient_b[0])


class KlEstimatorsTest(parameterized.TestCase):

  def test_exact_enumeration(self):
    """Expectations over a whole vocabulary instead of samples."""
    rng = np.random.default_rng(0)
    policy, reference = _log_softmax(rng.normal(size=(2, 11)))
    k1, k2, k3 = losses.kl_estimators(
        jnp.asarray(policy), jnp.asarray(reference))
    probs = np.exp(policy)
    kl = np.sum(probs * (policy - reference))
    np.testing.assert_allclose(np.sum(probs * k1), kl, rtol=1e-5)
    np.testing.assert_allclose(np.sum(probs * k3), kl, rtol=1e-5)
    self.assertGreater(abs(np.sum(probs * k2) - kl), 0.01 * kl)
    self.assertTrue((np.asarray(k3) >= 0).all())
    self.assertTrue((np.asarray(k1) < 0).any())

  def test_equal_policies_have_exactly_zero(self):
    logprobs = jnp.array([[-0.3, -7.0]])
    for estimate in losses.kl_estimators(logprobs, logprobs):
      np.testing.assert_array_equal(estimate, 0.0)

  def test_k3_keeps_its_digits_for_close_policies(self):
    _, _, k3 = losses.kl_estimators(jnp.array([1e-3]), jnp.array([0.0]))
    np.testing.assert_allclose(k3, np.expm1(-1e-3) + 1e-3, rtol=1e-3)


if __name__ == "__main__":
  absltest.main()
