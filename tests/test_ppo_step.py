"""Laws of one PPO iteration, from a real rollout to the new state."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import losses, ppo_step, rollout, scoring, tree
from rlhf_jax.models import scalar
from tests import tiny

BATCH, PROMPT, RESPONSE = 32, 5, 6
PTX_ROWS, PTX_LENGTH = 32, 9
KEY = jax.random.key(3)
POLICY, SCALAR = tiny.policy(), tiny.scalar()


@functools.cache
def _frozen():
  return ppo_step.Frozen(
      reference=tiny.params(POLICY), reward_model=tiny.params(SCALAR))


def _state(tx):
  return ppo_step.init_state(
      _frozen().reference, _frozen().reward_model, tx=tx, critic_tx=tx,
      kl_coef=0.05)


@functools.cache
def _generate(temperature):
  return tiny.jit(rollout.make_generate(
      POLICY, response_length=RESPONSE, temperature=temperature,
      eos_id=tiny.EOS_ID))


def _sample(params, seed=0, temperature=1.0):
  return _generate(temperature)(
      params, jax.random.key(seed), *tiny.prompts(BATCH, PROMPT, seed),
      np.arange(BATCH, dtype=np.int32))


@functools.cache
def _first_rollout(temperature=1.0):
  sampled = _sample(_frozen().reference, temperature=temperature)
  ended = (sampled.response_tokens == tiny.EOS_ID).any(-1)
  assert 0 < ended.sum() < BATCH, "no law is tested where all rows are alike"
  return sampled


def _ptx_tokens():
  return tiny.tokens(PTX_ROWS, PTX_LENGTH, seed=4)


# ------------------------------------------------------------------ score


class ScoreTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    state = _state(optax.sgd(0.1))
    # somewhere else, so that values and scores are not the same numbers
    self.state = state.replace(critic=tiny.params(SCALAR, seed=2))

  @parameterized.parameters(1.0, 0.7)
  def test_at_the_start_there_is_no_kl_and_the_score_is_the_reward(
      self, temperature):
    settings = tiny.settings(
        temperature=temperature, gae_lambda=1.0, whiten_advantages=False)
    sampled = _first_rollout(temperature)
    # not in a hurry: `tiny.jit` rounds two forward passes each in its own way
    experience, values = jax.jit(ppo_step.make_score(POLICY, SCALAR, settings))(
        self.state, _frozen(), sampled)
    self.assertEqual(values["train/ppo/kl"], 0.0)
    self.assertEqual(values["train/ppo/kl_k3"], 0.0)
    self.assertLess(values["train/ppo/sampler_drift"], 1e-4)

    scores = tiny.jit(scoring.make_scores(SCALAR))(
        _frozen().reward_model, sampled.tokens, sampled.mask)
    ended = np.asarray(sampled.response_tokens == tiny.EOS_ID).any(-1)
    final = np.where(ended, scores, scores - settings.missing_eos_penalty)
    np.testing.assert_allclose(
        values["train/ppo/score"], np.mean(scores), rtol=1e-5)
    np.testing.assert_allclose(
        values["train/ppo/reward"], np.mean(final), rtol=1e-5)
    self.assertEqual(values["train/ppo/ended"], np.mean(ended))
    # Undiscounted returns are what is still to come: the score, everywhere.
    mask = np.asarray(sampled.response_mask)
    np.testing.assert_allclose(
        experience.returns, np.where(mask, final[:, None], 0.0), atol=1e-5)
    np.testing.assert_allclose(
        experience.advantages + np.where(mask, experience.values, 0.0),
        experience.returns, atol=1e-6)
    self.assertEqual(values["train/ppo/response_length"], mask.sum(-1).mean())

  def test_numbers_are_read_before_each_token_at_the_temperature(self):
    settings, sampled = tiny.settings(temperature=0.7), _first_rollout()
    experience, _ = tiny.jit(ppo_step.make_score(POLICY, SCALAR, settings))(
        self.state, _frozen(), sampled)
    whole = lambda model, params: tiny.jit(model.apply)(
        {"params": params}, sampled.tokens, sampled.mask)
    logits = whole(POLICY, self.state.params)[:, PROMPT - 1:-1]
    logprobs = np.take_along_axis(
        jax.nn.log_softmax(logits / 0.7),
        np.asarray(sampled.response_tokens)[..., None], -1)[..., 0]
    mask = np.asarray(sampled.response_mask)
    np.testing.assert_allclose(
        experience.logprobs[mask], logprobs[mask], atol=1e-5)
    values = whole(SCALAR, self.state.critic)[:, PROMPT - 1:-1]
    np.testing.assert_allclose(experience.values, values, atol=1e-5)

  def test_critic_starts_as_the_reward_model(self):
    # V at the end token is the score, the head's bias included.
    reward_model = scalar.shift_and_scale(
        _frozen().reward_model, bias=1.5, scale=2.0)
    state = ppo_step.init_state(
        _frozen().reference, reward_model, tx=tiny.adam(),
        critic_tx=tiny.adam(), kl_coef=0.05)
    chex.assert_trees_all_equal(state.critic, reward_model)
    tokens, mask = tiny.prompts(12, 9)
    tokens, mask = tokens[:, ::-1], mask[:, ::-1]  # ends at 0, 1, ...
    values = tiny.jit(SCALAR.apply)({"params": state.critic}, tokens, mask)
    scores = tiny.jit(scoring.make_scores(SCALAR))(reward_model, tokens, mask)
    ends = mask.sum(-1) - 1
    np.testing.assert_allclose(
        values[np.arange(12), ends], scores, rtol=1e-6)
    chex.assert_trees_all_equal(state.params, _frozen().reference)
    chex.assert_trees_all_equal(state.ema, _frozen().reference)


class ToExperienceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    normal = lambda: jnp.asarray(
        rng.normal(size=(BATCH, RESPONSE)), jnp.float32)
    self.sampled = _first_rollout()
    self.mask = np.asarray(self.sampled.response_mask)
    self.arrays = dict(
        scores=jnp.full(BATCH, 0.73), logprobs=normal(),
        ref_logprobs=normal(), values=normal())

  def _experience(self, kl_coef=0.1, changes=(), **settings):
    settings = dict(
        missing_eos_penalty=0.0, gae_lambda=1.0, whiten_advantages=False
    ) | settings
    to_experience = functools.partial(
        ppo_step.to_experience, settings=tiny.settings(**settings))
    return tiny.jit(to_experience)(
        self.sampled, kl_coef=jnp.float32(kl_coef),
        **self.arrays | dict(changes))

  def test_reward_is_the_score_less_the_kl_of_the_state(self):
    kl = np.where(
        self.mask, self.arrays["logprobs"] - self.arrays["ref_logprobs"], 0)
    for kl_coef in (0.1, 0.4):
      experience, values = self._experience(kl_coef)
      expected = 0.73 - kl_coef * kl.sum(-1)
      np.testing.assert_allclose(
          experience.returns[:, 0], expected, atol=1e-5)
      np.testing.assert_allclose(
          values["train/ppo/reward"], expected.mean(), rtol=1e-5)
      np.testing.assert_allclose(
          values["train/ppo/kl"], kl.sum(-1).mean(), rtol=1e-5)
      np.testing.assert_allclose(values["train/ppo/score"], 0.73, rtol=1e-6)
    chex.assert_type(
        [experience.returns, experience.advantages], jnp.float32)

  def test_endless_responses_pay(self):
    without, _ = self._experience()
    fined, _ = self._experience(missing_eos_penalty=2.0)
    ended = np.asarray(
        self.sampled.response_tokens == tiny.EOS_ID).any(-1)
    np.testing.assert_allclose(
        without.returns[:, 0] - fined.returns[:, 0],
        np.where(ended, 0.0, 2.0), atol=1e-5)

  def test_tokens_after_the_end_carry_nothing(self):
    garbage = {
        name: jnp.where(self.mask, self.arrays[name], jnp.nan)
        for name in ("logprobs", "ref_logprobs", "values")}
    for whiten in (False, True):
      expected, values = self._experience(whiten_advantages=whiten)
      found, other = self._experience(
          changes=garbage, whiten_advantages=whiten)
      np.testing.assert_array_equal(found.advantages, expected.advantages)
      np.testing.assert_array_equal(found.returns, expected.returns)
      np.testing.assert_array_equal(found.advantages[~self.mask], 0.0)
      self.assertEqual(jax.device_get(other), jax.device_get(values))

  def test_whitening_is_over_real_tokens(self):
    experience, _ = self._experience(whiten_advantages=True)
    real = np.asarray(experience.advantages)[self.mask]
    np.testing.assert_allclose(real.mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(real.std(), 1.0, rtol=1e-5)


# ----------------------------------------------------------------- update


class MinibatchTest(parameterized.TestCase):

  def test_every_epoch_is_a_new_partition(self):
    settings = tiny.settings(num_epochs=3, num_minibatches=4)
    rows = ppo_step.minibatch_rows(KEY, BATCH, settings)
    self.assertEqual(rows.shape, (12, BATCH // 4))
    epochs = np.asarray(rows).reshape(3, BATCH)
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(BATCH))
    others = np.asarray(ppo_step.minibatch_rows(
        jax.random.key(4), BATCH, settings)).reshape(3, BATCH)
    every = np.concatenate([epochs, others, np.arange(BATCH)[None]])
    self.assertLen(np.unique(every, axis=0), 7)


@functools.cache
def _minibatch():
  """Experience whose old log-probs are those of the reference."""
  settings = tiny.settings()
  experience, _ = tiny.jit(ppo_step.make_score(POLICY, SCALAR, settings))(
      _state(optax.sgd(0.1)), _frozen(), _first_rollout())
  return experience


class GradientTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = _frozen().reference
    self.minibatch = _minibatch()

  def _logprobs(self, params):
    """By the textbook: all logits, then the response's."""
    logits = POLICY.apply(
        {"params": params}, self.minibatch.tokens, self.minibatch.mask)
    logprobs = jnp.take_along_axis(
        jax.nn.log_softmax(logits[:, :-1]),
        self.minibatch.tokens[:, 1:, None], axis=-1)[..., 0]
    return logprobs[:, -RESPONSE:]

  def _mean(self, x):
    mask = self.minibatch.response_mask
    return jnp.where(mask, x, 0.0).sum() / mask.sum()

  def test_at_ratio_1_it_is_the_policy_gradient(self):
    found, values = tiny.jit(
        ppo_step.make_rl_gradients(POLICY, tiny.settings()))(
        self.params, self.minibatch, None)
    expected = tiny.jit(jax.grad(lambda params: -self._mean(
        self.minibatch.advantages * self._logprobs(params))))(self.params)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    self.assertLess(values["train/ppo/ratio_max_deviation"], 1e-5)
    self.assertEqual(values["train/ppo/clip_frac"], 0.0)
    np.testing.assert_allclose(values["train/ppo/ratio"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        values["train/ppo/policy_loss"],
        -self._mean(self.minibatch.advantages), atol=1e-6)

  def test_pretraining_joins_as_a_summed_loss(self):
    settings, tokens = tiny.settings(ptx_coef=3.0), _ptx_tokens()
    both = ppo_step.with_pretraining_gradients(
        ppo_step.make_rl_gradients(POLICY, settings),
        ppo_step.make_ptx_gradients(POLICY, settings), settings.ptx_coef)
    # off the reference, so that ratios differ from 1 and some are clipped
    params = tree.scale(self.params, 1.1)
    found, values = tiny.jit(both)(params, self.minibatch, tokens)

    def loss(params):
      ratio = jnp.exp(self._logprobs(params) - self.minibatch.logprobs)
      advantages = self.minibatch.advantages
      clipped = jnp.clip(ratio, 0.8, 1.2)
      rl = -self._mean(jnp.minimum(advantages * ratio, advantages * clipped))
      logits = POLICY.apply({"params": params}, tokens, tokens >= 0)
      lm = -jnp.take_along_axis(
          jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1).mean()
      return rl + 3.0 * lm, (rl, lm)

    (_, (rl, lm)), expected = tiny.jit(
        jax.value_and_grad(loss, has_aux=True))(params)
    self.assertGreater(values["train/ppo/clip_frac"], 0.1)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(
        found, expected, rtol=1e-5, atol=1e-5 * largest)
    np.testing.assert_allclose(values["train/ppo/policy_loss"], rl, rtol=1e-4)
    np.testing.assert_allclose(values["train/ptx/loss"], lm, rtol=1e-5)

  def test_dropout_is_off(self):
    args = (self.params, self.minibatch, None)
    expected, found = (
        tiny.jit(ppo_step.make_rl_gradients(model, tiny.settings()))(*args)
        for model in (POLICY, tiny.policy(dropout_rate=0.3)))
    chex.assert_trees_all_equal(found, expected)


# -------------------------------------------------------------- iterations


@functools.cache
def _loop_step():
  """The step as training compiles it; compiling it twice raises."""
  step = chex.assert_max_traces(ppo_step.make_ppo_step(
      POLICY, SCALAR, tiny.adam(), tiny.adam(),
      tiny.settings(num_epochs=2)), n=1)
  return jax.jit(step, donate_argnums=0)


@functools.cache
def _iterations():
  """(state before, metrics, state after) of four iterations, on the host."""
  frozen = jax.tree.map(jnp.copy, _frozen())
  state, history = _state(tiny.adam()), []
  for number in range(4):
    # a copy, as arrays that the host has seen are not given back
    before, donated = jax.device_get(jax.tree.map(jnp.copy, state)), state
    sampled = _sample(state.params, seed=number)
    state, values = _loop_step()(
        state, frozen, sampled, None, jax.random.fold_in(KEY, number))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    after = jax.device_get(jax.tree.map(jnp.copy, state))
    history.append((before, jax.device_get(values), after))
  chex.assert_trees_all_equal(frozen, _frozen())
  return history


class IterationsTest(parameterized.TestCase):

  def test_first_ratio_of_every_iteration_is_1(self):
    for _, values, _ in _iterations():
      self.assertLessEqual(values["train/ppo/first_ratio_deviation"], 1e-5)
      # later minibatches meet a policy that has moved
      self.assertGreater(values["train/ppo/ratio_max_deviation"], 1e-3)
      self.assertGreater(values["train/ppo/approx_kl"], 0.0)
      self.assertLess(values["train/ppo/sampler_drift"], 1e-4)

  def test_policy_leaves_the_reference(self):
    kl = [values["train/ppo/kl_k3"] for _, values, _ in _iterations()]
    self.assertEqual(kl[0], 0.0)
    self.assertGreater(min(kl[1:]), 1e-4)

  def test_average_follows_once_an_iteration(self):
    for number, (before, _, after) in enumerate(_iterations()):
      self.assertEqual((before.step, after.step), (number, number + 1))
      expected = jax.tree.map(
          lambda old, new: 0.9 * old + 0.1 * new, before.ema, after.params)
      chex.assert_trees_all_close(after.ema, expected, rtol=1e-5, atol=1e-6)

  def test_average_feeds_nothing_and_forgets_its_start(self):
    before, values, after = _iterations()[0]
    # 0.9^k of an error stays after k iterations
    garbage = jax.tree.map(lambda x: x + 100.0, after.params)
    state, other = _loop_step()(
        jax.tree.map(jnp.array, before.replace(ema=garbage)), _frozen(),
        _sample(before.params), None, jax.random.fold_in(KEY, 0))
    self.assertEqual(jax.device_get(other), values)
    chex.assert_trees_all_equal(
        jax.device_get(state).replace(ema=None), after.replace(ema=None))
    for average, target in zip(
        jax.tree.leaves(state.ema), jax.tree.leaves(state.params)):
      np.testing.assert_allclose(average - target, 90.0, rtol=1e-4)

  def test_key_decides_the_minibatches_alone(self):
    before, values, after = _iterations()[1]
    state, other = _loop_step()(
        jax.tree.map(jnp.array, before), _frozen(),
        _sample(before.params, seed=1), None, jax.random.key(99))
    self.assertEqual(other["train/ppo/score"], values["train/ppo/score"])
    self.assertGreater(
        tree.global_norm(jax.tree.map(
            jnp.subtract, state.params, after.params)), 1e-4)

  def test_kl_coef_stays_without_a_target(self):
    for _, values, after in _iterations():
      self.assertEqual(after.kl_coef, np.float32(0.05))
      self.assertEqual(values["train/ppo/kl_coef"], np.float32(0.05))


class FrozenRateTest(parameterized.TestCase):

  def test_without_updates_every_minibatch_is_the_first(self):
    settings = tiny.settings(num_epochs=2, ptx_coef=1.0)
    still = optax.sgd(0.0)
    state = _state(still)
    step = tiny.jit(
        ppo_step.make_ppo_step(POLICY, SCALAR, still, still, settings))
    _, values = step(
        state, _frozen(), _first_rollout(), _ptx_tokens(), KEY)
    self.assertLess(values["train/ppo/ratio_max_deviation"], 1e-5)
    self.assertLess(values["train/ppo/approx_kl"], 1e-10)
    self.assertEqual(values["train/ppo/clip_frac"], 0.0)
    # A minibatch costs minus its mean advantage.
    mask, advantages = _minibatch().response_mask, _minibatch().advantages
    costs = [
        -np.sum(advantages[rows] * mask[rows]) / mask[rows].sum()
        for rows in ppo_step.minibatch_rows(KEY, BATCH, settings)]
    np.testing.assert_allclose(
        values["train/ppo/policy_loss"], np.mean(costs), atol=1e-5)
    # Every pretraining window is read, and read once.
    tokens = _ptx_tokens()
    logits = tiny.jit(POLICY.apply)(
        {"params": state.params}, tokens, tokens >= 0)
    expected = -losses.token_logprobs(
        logits[:, :-1], jnp.asarray(tokens[:, 1:])).mean()
    np.testing.assert_allclose(values["train/ptx/loss"], expected, rtol=1e-5)


# ------------------------------------------------- what must not matter


@functools.cache
def _quick_step(**settings):
  return tiny.jit(ppo_step.make_ppo_step(
      POLICY, SCALAR, optax.sgd(0.1), optax.sgd(0.1),
      tiny.settings(**settings)))


@functools.cache
def _quick(has_ptx, **settings):
  """One step of a policy that has left its reference."""
  params = tree.scale(_frozen().reference, 1.1)
  state = _state(optax.sgd(0.1)).replace(params=params)
  return _quick_step(**settings)(
      state, _frozen(), _sample(params), _ptx_tokens() if has_ptx else None,
      KEY)


class PretrainingTest(parameterized.TestCase):

  def test_coefficient_zero_is_ppo(self):
    chex.assert_trees_all_equal(_quick(True)[0], _quick(False)[0])

  def test_critic_never_sees_it(self):
    (plain, _), (mixed, _) = _quick(False), _quick(True, ptx_coef=2.0)
    chex.assert_trees_all_close(
        mixed.critic, plain.critic, rtol=1e-6, atol=1e-7)
    self.assertGreater(tree.global_norm(jax.tree.map(
        jnp.subtract, mixed.params, plain.params)), 1e-2)


class MicrobatchTest(parameterized.TestCase):

  def test_parts_do_not_change_an_iteration(self):
    expected, whole = _quick(True, ptx_coef=2.0)
    found, values = _quick(
        True, ptx_coef=2.0, num_microbatches=4, num_ptx_microbatches=2)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(values, whole, rtol=1e-4, atol=1e-5)


class ControllerTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 2.0, 1.2), (1.0, 0.5, 0.8), (1.0, 1.1, 1.1))
  def test_steers_to_its_target(self, target, kl, expected):
    settings = tiny.settings(kl_target=target, kl_horizon=BATCH)
    found = ppo_step.next_kl_coef(
        jnp.float32(0.05), jnp.float32(kl), BATCH, settings)
    np.testing.assert_allclose(found, 0.05 * expected, rtol=1e-5)

  def test_moves_after_the_iteration(self):
    state, values = _quick(False, kl_target=1e-3, kl_horizon=BATCH)
    self.assertGreater(values["train/ppo/kl"], 1e-2)
    self.assertEqual(values["train/ppo/kl_coef"], np.float32(0.05))
    np.testing.assert_allclose(state.kl_coef, 0.05 * 1.2, rtol=1e-5)
    fixed, _ = _quick(False)
    chex.assert_trees_all_equal(state.params, fixed.params)


class LoweringTest(parameterized.TestCase):

  @parameterized.parameters("cuda", "tpu")
  def test_step_and_rollout_lower_for(self, platform):
    for traced in _traced():
      text = traced.lower(lowering_platforms=(platform,)).as_text()
      self.assertIn("stablehlo.dot_general", text)


@functools.cache
def _traced():
  """The step and the rollout of a bfloat16 model, neither compiled."""
  policy, critic = (
      make(dtype="bfloat16", remat="block") for make in (
          tiny.policy, tiny.scalar))
  step = ppo_step.make_ppo_step(
      policy, critic, tiny.adam(), tiny.adam(), tiny.settings(ptx_coef=1.0))
  generate = rollout.make_generate(
      policy, response_length=RESPONSE, temperature=1.0, eos_id=tiny.EOS_ID)
  return (
      jax.jit(step).trace(
          _state(tiny.adam()), _frozen(), _first_rollout(), _ptx_tokens(),
          KEY),
      jax.jit(generate).trace(
          _frozen().reference, KEY, *tiny.prompts(BATCH, PROMPT),
          np.arange(BATCH)))


if __name__ == "__main__":
  absltest.main()
