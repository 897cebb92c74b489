"""The losses of InstructGPT (Ouyang et al. 2022) as functions of arrays.

Each returns a sum, not a mean, and its metrics are sums or counts over the
same entries: the caller divides by a global count, so that neither gradient
accumulation nor the number of devices changes the objective. All arithmetic is
float32. Entries under a false mask change nothing, not even as NaN.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import masked

Metrics = dict[str, jax.Array]


def token_logprobs(
    logits: jax.Array, tokens: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Returns the log-probability of every token.

  Args:
    logits: [B, T, V], aligned: `logits[:, t]` predicts `tokens[:, t]`.
    tokens: [B, T] ids.
    temperature: divides the logits. Pass the sampling temperature wherever
      policy and reference are compared, or the KL is that of other policies.

  Returns:
    [B, T] float32.
  """
  chex.assert_rank([logits, tokens], [3, 2])
  chex.assert_equal_shape_prefix([logits, tokens], 2)
  logits = logits.astype(jnp.float32) / temperature  # [B, T, V]
  # log_softmax at one id, without writing the other V - 1 to memory; the
  # maximum goes first, as a sum of large logits would lose the low digits.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  log_normalizer = jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1))
  picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1) - largest
  return picked[..., 0] - log_normalizer


def lm_loss_sum(
    logprobs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Negative log-likelihood of SFT, pretraining and the PPO-ptx term (eq. 2).

  Args:
    logprobs: [B, T], each token's.
    mask: [B, T], true where a token is trained on.

  Returns:
    Sum of `-log p(token)` over the mask in nats, and the number of tokens.
  """
  return -masked.total(logprobs, mask), _count(mask)


def ranking_loss(
    scores: jax.Array,
    ranks: jax.Array,
    response_mask: jax.Array,
    denominator: str = "kept",
) -> tuple[jax.Array, Metrics]:
  """K-wise comparison loss of the reward model (InstructGPT eq. 1).

  `-1/N sum over pairs of log sigmoid(r(x, y_w) - r(x, y_l))` for each prompt,
  all its pairs in one batch element, so that each prompt weighs the same
  whatever its K. Tied pairs are dropped. The paper's 1/C(K, 2) does not say
  what N is once ties are gone, hence `denominator`.

  >>> scores = jnp.array([[2.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
  >>> ranks = jnp.array([[1, 2, 3], [1, 2, 1]])
  >>> real = jnp.array([[True, True, True], [True, True, False]])
  >>> total, counts = ranking_loss(scores, ranks, real)
  >>> print(f"{total / counts['num_prompts']:.4f}")  # (.2512 + ln 2) / 2
  0.4721
  >>> float(counts["num_pairs"]), float(counts["num_correct"])
  (4.0, 3.5)

  Args:
    scores: [B, K] reward-model scores.
    ranks: [B, K] ints, 1 = best, equal = tied.
    response_mask: [B, K], false for slots that hold no response.
    denominator: N is the number of untied pairs ("kept"), or C(K, 2) with K
      the number of real responses ("all_pairs").

  Returns:
    Sum over prompts of the prompt's loss; divide it by `num_prompts`.
    Metrics: `num_prompts` with at least one untied pair, `num_pairs` untied,
    `num_correct` pairs whose better response scores higher (equal scores count
    one half).

  Raises:
    ValueError: for an unknown `denominator`.
  """
  chex.assert_rank(scores, 2)
  chex.assert_equal_shape([scores, ranks, response_mask])
  is_real = response_mask.astype(bool)
  # Entry [b, i, j] is true where response i is ranked above response j.
  pair_mask = ranks[:, :, None] < ranks[:, None, :]  # [B, K, K]
  pair_mask &= is_real[:, :, None] & is_real[:, None, :]
  scores = scores.astype(jnp.float32)
  margins = scores[:, :, None] - scores[:, None, :]  # [B, K, K]
  # Masked before the sigmoid, as the gradient of a masked NaN is NaN.
  margins = jnp.where(pair_mask, margins, 0.0)

  pair_losses = jnp.where(pair_mask, -jax.nn.log_sigmoid(margins), 0.0)
  num_kept = jnp.sum(pair_mask, axis=(1, 2), dtype=jnp.float32)  # [B]
  if denominator == "kept":
    num_pairs = num_kept
  elif denominator == "all_pairs":
    num_responses = jnp.sum(is_real, axis=1, dtype=jnp.float32)
    num_pairs = num_responses * (num_responses - 1.0) / 2.0
  else:
    raise ValueError(
        f'{denominator=} is unknown; use "kept" or "all_pairs".')
  prompt_losses = jnp.sum(pair_losses, axis=(1, 2)) / jnp.maximum(
      num_pairs, 1.0)  # [B]

  is_correct = (1.0 + jnp.sign(margins)) / 2.0  # 1, 1/2 or 0
  metrics = {
      "num_prompts": _count(num_kept > 0),
      "num_pairs": jnp.sum(num_kept),
      "num_correct": masked.total(is_correct, pair_mask),
  }
  return jnp.sum(prompt_losses), metrics


def clipped_policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    clip_eps: float,
) -> tuple[jax.Array, Metrics]:
  """PPO's clipped surrogate (Schulman et al. 2017 eq. 7), to be minimised.

  `max(-A rho, -A clip(rho, 1 - eps, 1 + eps))` with
  `rho = exp(logprobs - old_logprobs)`; InstructGPT C.4 uses eps = .2.

  >>> old, mask = jnp.zeros((1, 2)), jnp.array([[True, True]])
  >>> new, advantages = jnp.log(jnp.array([[1.1, 1.5]])), jnp.ones((1, 2))
  >>> loss, sums = clipped_policy_loss(new, old, advantages, mask, 0.2)
  >>> print(f"{loss:.2f}", sums["clip_frac"])  # -(1.1 + 1.2)
  -2.30 1.0

  Args:
    logprobs: [B, T] of the policy that is trained.
    old_logprobs: [B, T] of the policy that sampled.
    advantages: [B, T], constants.
    mask: [B, T], true on response tokens.
    clip_eps: half width of the ratio's trust interval.

  Returns:
    Sum of the loss over the mask, and metrics. Sums over the mask: `ratio`;
    `clip_frac`, the count of tokens where the clipped branch is the larger;
    `approx_kl`, of `(logprobs - old_logprobs)^2 / 2` (the k2 estimator, as in
    the logs of Huang et al. 2024). Not a sum: `ratio_max_deviation`, the
    largest `|rho - 1|`, which is 0 on the first minibatch of a rollout.
  """
  chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
  # Padding goes before the arithmetic: garbage must not have a gradient.
  logprobs, old_logprobs, advantages = (
      masked.zero_padding(x, mask)
      for x in (logprobs, old_logprobs, advantages))
  log_ratio = logprobs - old_logprobs  # [B, T]
  ratio = jnp.exp(log_ratio)  # [B, T], 1 on padding
  unclipped = -advantages * ratio
  clipped = -advantages * jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
  metrics = {
      "ratio": masked.total(ratio, mask),
      "clip_frac": masked.total(clipped > unclipped, mask),
      "approx_kl": masked.total(0.5 * jnp.square(log_ratio), mask),
      "ratio_max_deviation": jnp.max(jnp.abs(ratio - 1.0)),
  }
  return masked.total(jnp.maximum(unclipped, clipped), mask), metrics


def clipped_value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    value_clip_eps: float,
) -> tuple[jax.Array, Metrics]:
  """Squared error of the critic, pessimistic about steps beyond the clip.

  `max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2`. The clip is that
  of Ziegler et al. 2019; InstructGPT does not mention it.

  Args:
    values: [B, T] of the critic that is trained.
    old_values: [B, T] at rollout time.
    returns: [B, T], constants.
    mask: [B, T], true on response tokens.
    value_clip_eps: c, in units of the returns; infinity turns the clip off.

  Returns:
    Sum of the loss over the mask, and metrics: `clip_frac`, the count of
    tokens where the clipped branch is the larger.
  """
  chex.assert_equal_shape([values, old_values, returns, mask])
  values, old_values, returns = (
      masked.zero_padding(x, mask) for x in (values, old_values, returns))
  near_values = jnp.clip(
      values, old_values - value_clip_eps, old_values + value_clip_eps)
  unclipped = jnp.square(values - returns)
  clipped = jnp.square(near_values - returns)
  metrics = {"clip_frac": masked.total(clipped > unclipped, mask)}
  return 0.5 * masked.total(jnp.maximum(unclipped, clipped), mask), metrics


def kl_estimators(
    logprobs: jax.Array, ref_logprobs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Estimates KL(policy || reference) from tokens that the policy sampled.

  With `d = logprobs - ref_logprobs`: `k1 = d` is unbiased and the one in the
  paper's reward; `k2 = d^2 / 2` is biased; `k3 = exp(-d) - 1 + d` is unbiased
  and never negative.

  Args:
    logprobs: [B, T] (any shape).
    ref_logprobs: same shape.

  Returns:
    k1, k2 and k3, float32 of that shape, in nats a token.
  """
  chex.assert_equal_shape([logprobs, ref_logprobs])
  k1 = logprobs.astype(jnp.float32) - ref_logprobs.astype(jnp.float32)
  k2 = 0.5 * jnp.square(k1)
  k3 = jnp.expm1(-k1) + k1
  return k1, k2, k3


def _count(mask: jax.Array) -> jax.Array:
  return jnp.sum(mask.astype(bool), dtype=jnp.float32)
