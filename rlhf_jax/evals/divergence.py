"""KL from a policy to the reference on the policy's own samples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.models.policy import Policy
from rlhf_jax.rollout import Rollout


def make_kl(policy: Policy, temperature: float) -> Callable[..., Any]:
  """Builds `kl(params, reference, rollout) -> (exact [B], sampled [B])`.

  Both sum over the tokens of a response, in nats. `exact` takes the KL of the
  whole next-token distribution at every sampled prefix: it estimates the same
  number as the sampled log-ratio, is never negative and varies less.
  """

  def log_probs(params, sampled: Rollout):
    length = sampled.response_mask.shape[1]
    hidden: jax.Array = policy.apply(  # type: ignore[assignment]
        {"params": params}, sampled.tokens, sampled.mask, method="hidden")
    logits: jax.Array = policy.apply(  # type: ignore[assignment]
        {"params": params}, hidden[:, -length - 1:-1], method="logits")
    return jax.nn.log_softmax(logits / temperature, axis=-1)

  def kl(params, reference, sampled: Rollout):
    ours, theirs = log_probs(params, sampled), log_probs(reference, sampled)
    mask = sampled.response_mask
    per_token = (jnp.exp(ours) * (ours - theirs)).sum(-1)  # [B, T]
    picked = lambda x: jnp.take_along_axis(
        x, sampled.response_tokens[..., None], axis=-1)[..., 0]
    ratio = picked(ours) - picked(theirs)
    total = lambda x: jnp.where(mask, x, 0.0).sum(-1)
    return total(per_token), total(ratio)

  return kl
