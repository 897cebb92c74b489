"""The policy: a transformer and its unembedding, by default the embedding."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import losses
from rlhf_jax.models.attention import MASKED
from rlhf_jax.models.transformer import (
    Transformer, TransformerConfig, normal_init,
)
from rlhf_jax.sharding import constrain


class Policy(nn.Module):
  """tokens -> logits over the true vocabulary.

  >>> model = Policy(TransformerConfig(
  ...     vocab_size=50, num_layers=2, d_model=16, num_heads=2,
  ...     context_length=32))
  >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
  >>> mask = jnp.ones_like(tokens, bool)
  >>> params = jax.jit(model.init)(jax.random.key(0), tokens, mask)["params"]
  >>> logits = model.apply({"params": params}, tokens, mask)
  >>> logits.shape, bool((logits[:, :, 50:] < -1e9).all())  # the padded rows
  ((1, 5, 128), True)
  >>> losses.token_logprobs(logits[:, :-1], tokens[:, 1:]).shape
  (1, 4)
  """

  config: TransformerConfig

  def setup(self):
    c = self.config
    self.transformer = Transformer(c)
    if not c.tied_unembedding:
      self.unembedding = nn.Embed(
          c.padded_vocab_size, c.d_embedding,
          embedding_init=normal_init(c.init_stddev))

  def __call__(self, tokens, mask, *, deterministic=True):
    """tokens, mask [B, L] -> logits [B, L, V_padded], float32."""
    return self.logits(
        self.transformer(tokens, mask, deterministic=deterministic))

  def hidden(self, tokens, mask, *, places=None, deterministic=True):
    """tokens, mask [B, L] -> hidden [B, L, D], or of the places (first, end)
    alone [B, end - first, D]."""
    return self.transformer(
        tokens, mask, places=places, deterministic=deterministic)

  def logits(self, hidden):
    """hidden [B, L, D] -> float32 logits [B, L, V_padded].

    Rows of the table past the true vocabulary get a huge negative logit: they
    are never sampled and carry no probability.
    """
    return _logits(hidden, self._table(), self.config.vocab_size)

  def logprobs(self, hidden, tokens, temperature=1.0):
    """The log-probability of each token after its hidden state.

    With `logit_parts` above 1 logits are formed for so many parts of the
    length, one after the other, and again in the gradient's computation: of
    [B, L, V_padded], with 50,000 tokens the largest array of all, a part is
    held.

    Args:
      hidden: [B, L, D], aligned: `hidden[:, t]` predicts `tokens[:, t]`.
      tokens: [B, L] ids.
      temperature: divides the logits.

    Returns:
      [B, L] float32.
    """
    table, parts = self._table(), self.config.logit_parts

    def part_logprobs(part):
      hidden, tokens = part
      return losses.token_logprobs(
          _logits(hidden, table, self.config.vocab_size), tokens, temperature)

    if parts == 1:
      return part_logprobs((hidden, tokens))
    batch, length = tokens.shape
    fill = -length % parts

    def split(x):
      x = jnp.pad(x, [(0, 0), (0, fill)] + [(0, 0)] * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(batch, parts, -1, *x.shape[2:]), 1, 0)

    found = jax.lax.map(
        jax.checkpoint(part_logprobs), (split(hidden), split(tokens)))
    return jnp.moveaxis(found, 0, 1).reshape(batch, -1)[:, :length]

  def _table(self):
    """The unembedding [V_padded, D]."""
    return (self.transformer.token_embedding if self.config.tied_unembedding
            else self.unembedding).embedding


def _logits(hidden, table, vocab_size: int):
  logits = jnp.einsum(
      "bld,vd->blv", hidden, table.astype(hidden.dtype),
      preferred_element_type=jnp.float32)
  logits = constrain(logits, "batch", "length", "vocab")
  real = jnp.arange(logits.shape[-1]) < vocab_size
  return jnp.where(real, logits, MASKED)
