"""PPO finds the optimum where it is known: pi_ref exp(score / beta) / Z.

One prompt, one token a response, a score for each of the tokens.
"""

import functools

from absl.testing import absltest
import jax
import numpy as np
import optax

from rlhf_jax import ppo_step, rollout, scoring
from rlhf_jax.models import scalar
from tests import tiny

KEY = jax.random.key(3)
POLICY, SCALAR = tiny.policy(), tiny.scalar()


class BanditTest(absltest.TestCase):

  def test_converges_to_the_tilted_reference(self):
    divergences = []
    for kl_coef in (0.5, 2.0):  # one compiled iteration serves both
      policy, reference, scores = _bandit(kl_coef)
      optimum = reference * np.exp(scores / kl_coef)
      optimum /= optimum.sum()
      kl = lambda p, q: float(np.sum(p * (np.log(p) - np.log(q))))
      divergences.append(kl(policy, reference))
      self.assertLess(kl(policy, optimum), 0.02)
      self.assertLess(kl(policy, optimum), 0.1 * kl(reference, optimum))
    self.assertGreater(divergences[0], 2 * divergences[1])


@functools.cache
def _functions():
  settings = tiny.settings(
      missing_eos_penalty=0.0, whiten_advantages=False, num_minibatches=1,
      value_clip_eps=1e3, ptx_coef=0.0)
  tx = optax.adam(3e-3)
  generate = rollout.make_generate(
      POLICY, response_length=1, temperature=1.0, eos_id=-1)
  step = ppo_step.make_ppo_step(POLICY, SCALAR, tx, tx, settings)

  def iteration(state, frozen, prompts, key):
    sampled = generate(state.params, key, *prompts)
    return step(state, frozen, sampled, None, key)[0]

  return tx, tiny.jit(iteration, donate_argnums=0)


def _bandit(kl_coef, batch=256, num_iters=100):
  """(trained policy, reference, scores), an entry each token."""
  tx, iteration = _functions()
  prompt = tiny.tokens(1)
  every = np.concatenate(
      [np.tile(prompt, (tiny.VOCAB_SIZE, 1)),
       np.arange(tiny.VOCAB_SIZE)[:, None]], axis=1)
  score = tiny.jit(scoring.make_scores(SCALAR))
  raw = score(tiny.params(SCALAR), every, every >= 0)
  reward_model = scalar.shift_and_scale(
      tiny.params(SCALAR), bias=raw.mean(), scale=1 / raw.std())
  frozen = ppo_step.Frozen(
      reference=tiny.params(POLICY), reward_model=reward_model)

  state = ppo_step.init_state(
      frozen.reference, reward_model, tx=tx, critic_tx=tx, kl_coef=kl_coef)
  prompts = (np.tile(prompt, (batch, 1)), np.ones((batch, 1), bool),
             np.arange(batch))
  for number in range(num_iters):
    state = iteration(
        state, frozen, prompts, jax.random.fold_in(KEY, number))

  def probabilities(params):
    logits = tiny.jit(POLICY.apply)(
        {"params": params}, every[:1, :1], every[:1, :1] >= 0)
    return np.asarray(
        jax.nn.softmax(logits[0, -1, :tiny.VOCAB_SIZE]), np.float64)

  return (probabilities(state.params), probabilities(frozen.reference),
          np.asarray(score(reward_model, every, every >= 0), np.float64))


if __name__ == "__main__":
  absltest.main()
