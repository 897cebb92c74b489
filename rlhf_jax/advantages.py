"""From scores and log-probabilities to rewards, advantages and returns.

InstructGPT's environment is a bandit (section 3.5): a prompt, one response,
one score, end of episode. The score sits at the last real token and a KL
penalty at every token; generalized advantage estimation (Schulman et al. 2016)
spreads them back. Rewards are allocated in float32: an integer array would
truncate the scores. Entries under a false mask may be anything, NaN included.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import masked

# Ziegler et al. 2019 section 2.2: the proportional error is clipped here.
_MAX_KL_ERROR = 0.2


def token_rewards(
    scores: jax.Array,
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    mask: jax.Array,
    kl_coef: float | jax.Array,
) -> jax.Array:
  """Splits the bracket of InstructGPT eq. 2 over the tokens of a response.

  `r_t = -kl_coef * (log pi(y_t) - log pi_ref(y_t)) + [t == T] * score`, so the
  sum over t is `score - kl_coef * log(pi(y|x) / pi_ref(y|x))`.

  >>> logprobs, ref = jnp.array([[-1.0, -2.0, -9.0]]), jnp.full((1, 3), -2.0)
  >>> mask = jnp.array([[True, True, False]])
  >>> rewards = token_rewards(jnp.array([0.73]), logprobs, ref, mask, 0.1)
  >>> print(rewards)
  [[-0.1   0.73  0.  ]]

  Args:
    scores: [B] reward-model scores of whole responses.
    logprobs: [B, T] of the policy that sampled.
    ref_logprobs: [B, T] of the frozen reference.
    mask: [B, T], true on response tokens up to and including EOS.
    kl_coef: the paper's beta.

  Returns:
    [B, T] float32, 0 on padding and in rows without a real token.
  """
  chex.assert_rank([scores, mask], [1, 2])
  chex.assert_equal_shape([logprobs, ref_logprobs, mask])
  chex.assert_equal_shape_prefix([scores, mask], 1)
  mask = mask.astype(bool)
  kl = logprobs.astype(jnp.float32) - ref_logprobs.astype(jnp.float32)
  final_scores = jnp.where(
      _is_last_real(mask), scores.astype(jnp.float32)[:, None], 0.0)
  return masked.zero_padding(final_scores - kl_coef * kl, mask)


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    discount: float,
    gae_lambda: float,
) -> tuple[jax.Array, jax.Array]:
  """Generalized advantage estimation (Schulman et al. 2016 eq. 16).

  `d_t = r_t + discount * V_{t+1} - V_t`, with V = 0 after the last real token;
  `A_t = d_t + discount * gae_lambda * A_{t+1}`; `returns_t = A_t + V_t`.
  InstructGPT C.4 does not discount; it does not give lambda.

  >>> rewards = jnp.array([[0.0, 0.0, 1.0]])
  >>> values = jnp.array([[0.2, 0.4, 0.6]])
  >>> mask = jnp.ones((1, 3), bool)
  >>> advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
  >>> print(advantages.round(1), returns)
  [[0.8 0.6 0.4]] [[1. 1. 1.]]

  Args:
    rewards: [B, T], r_t follows the choice of token t.
    values: [B, T], V_t is the value before that choice.
    mask: [B, T]; t + 1 stands for the next real token, whatever lies between.
    discount: the factor a token.
    gae_lambda: 1 gives reward-to-go minus V, 0 gives `d_t`.

  Returns:
    Advantages and returns, [B, T] float32, 0 on padding.
  """
  chex.assert_rank(mask, 2)
  chex.assert_equal_shape([rewards, values, mask])
  one_sequence = functools.partial(
      _gae_one_sequence, discount=discount, gae_lambda=gae_lambda)
  return jax.vmap(one_sequence)(rewards, values, mask.astype(bool))


def _gae_one_sequence(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float,
    gae_lambda: float,
) -> tuple[jax.Array, jax.Array]:
  """`gae` for arrays of shape [T]."""
  rewards = masked.zero_padding(rewards, mask)
  values = masked.zero_padding(values, mask)

  def backward(following, inputs):
    next_advantage, next_value = following
    reward, value, is_real = inputs
    delta = reward + discount * next_value - value
    advantage = delta + discount * gae_lambda * next_advantage
    # Padding is no time step: it hands on what follows it.
    following = (
        jnp.where(is_real, advantage, next_advantage),
        jnp.where(is_real, value, next_value),
    )
    return following, jnp.where(is_real, advantage, 0.0)

  after_end = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
  _, advantages = jax.lax.scan(
      backward, after_end, (rewards, values, mask), reverse=True)
  return advantages, advantages + values


def missing_eos_penalty(
    scores: jax.Array, has_eos: jax.Array, penalty: float
) -> jax.Array:
  """Subtracts `penalty` from the scores of responses that never ended.

  Subtracted, not overwritten: a good but unfinished response still ranks above
  a bad one.

  Args:
    scores: [B].
    has_eos: [B] bool.
    penalty: in units of the scores, not negative.
  """
  chex.assert_equal_shape([scores, has_eos])
  scores = scores.astype(jnp.float32)
  return jnp.where(has_eos.astype(bool), scores, scores - penalty)


def adaptive_kl_coef(
    kl_coef: float | jax.Array,
    kl: float | jax.Array,
    target: float,
    horizon: float,
    num_samples: int,
) -> jax.Array:
  """Steers the KL to a target (Ziegler et al. 2019 section 2.2).

  `kl_coef * (1 + clip(kl / target - 1, -.2, .2) * num_samples / horizon)`.
  InstructGPT keeps the coefficient fixed; this is the alternative.

  Args:
    kl_coef: coefficient of the iteration that ends.
    kl: its mean KL, summed over a response, in nats.
    target: wanted KL in the same unit.
    horizon: number of episodes over which a saturated error acts once.
    num_samples: episodes of the iteration.

  Returns:
    The next coefficient, a float32 scalar.
  """
  error = jnp.asarray(kl, jnp.float32) / target - 1.0
  error = jnp.clip(error, -_MAX_KL_ERROR, _MAX_KL_ERROR)
  return kl_coef * (1.0 + error * num_samples / horizon)


def explained_variance(
    values: jax.Array, returns: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns `1 - var(returns - values) / var(returns)` over the mask.

  1 for a perfect critic, 0 for a constant one, negative for a worse one. Taken
  as 0 where the returns do not vary.
  """
  chex.assert_equal_shape([values, returns, mask])
  residuals = returns.astype(jnp.float32) - values.astype(jnp.float32)
  var_returns = masked.var(returns, mask)
  ratio = masked.var(residuals, mask) / jnp.where(
      var_returns > 0, var_returns, 1.0)
  return jnp.where(var_returns > 0, 1.0 - ratio, 0.0)


def _is_last_real(mask: jax.Array) -> jax.Array:
  """Marks the last true entry of each row of a [B, T] bool mask."""
  num_from_here = jnp.cumsum(mask[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
  return mask & (num_from_here == 1)
