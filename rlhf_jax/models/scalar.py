"""The scalar model: reward model and critic.

The unembedding is replaced by a projection to one number (InstructGPT,
section 3.5). The head starts at N(0, 1 / (D + 1)), bias 0 (Stiennon et al.).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.models.transformer import (
    Transformer, TransformerConfig, normal_init,
)


class Head(nn.Module):
  """hidden [..., D] -> [...], float32."""

  @nn.compact
  def __call__(self, hidden):
    size = hidden.shape[-1]
    kernel = self.param("kernel", normal_init((size + 1) ** -0.5), (size,))
    bias = self.param("bias", nn.initializers.zeros, ())
    return hidden.astype(jnp.float32) @ kernel + bias


class Scalar(nn.Module):
  """tokens -> one number at every position.

  >>> model = Scalar(TransformerConfig(
  ...     vocab_size=50, num_layers=2, d_model=16, num_heads=2,
  ...     context_length=32))
  >>> tokens = jnp.array([[3, 1, 4], [1, 5, 50]])  # 50 is padding
  >>> mask = tokens < 50
  >>> params = jax.jit(model.init)(jax.random.key(0), tokens, mask)["params"]
  >>> values = model.apply({"params": params}, tokens, mask)  # of a critic
  >>> scores = at_last_token(values, mask)  # of a reward model
  >>> values.shape, scores.shape
  ((2, 3), (2,))
  """

  config: TransformerConfig

  def setup(self):
    self.transformer = Transformer(self.config)
    self.head = Head()

  def __call__(self, tokens, mask, *, places=None, deterministic=True):
    """tokens, mask [B, L] -> values [B, L], float32, or of the places (first,
    end) alone [B, end - first]."""
    return self.head(self.transformer(
        tokens, mask, places=places, deterministic=deterministic))


def at_last_token(values: jax.Array, mask: jax.Array) -> jax.Array:
  """values, mask [B, L] -> [B]: the value at the last real token of a row."""
  length = mask.shape[-1]
  last = length - 1 - jnp.argmax(mask[:, ::-1].astype(jnp.int32), axis=-1)
  return jnp.take_along_axis(values, last[:, None], axis=-1)[:, 0]


def from_policy(scalar_params: Any, policy_params: Any) -> Any:
  """A scalar model's parameters with the body of a policy of the same size."""
  return {**scalar_params, "transformer": policy_params["transformer"]}


def shift_and_scale(params: Any, *, bias: float, scale: float) -> Any:
  """Folds score -> (score - bias) * scale into the head; the order of scores
  is untouched for every scale > 0."""
  head = params["head"]
  return {
      **params,
      "head": {
          "kernel": head["kernel"] * scale,
          "bias": (head["bias"] - bias) * scale,
      },
  }
