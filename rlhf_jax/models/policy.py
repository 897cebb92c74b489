"""The policy: a transformer and its unembedding, by default the embedding."""

import flax.linen as nn
import jax.numpy as jnp

from rlhf_jax.models.transformer import (
    MASKED, Transformer, TransformerConfig, normal_init,
)
from rlhf_jax.sharding import constrain


class Policy(nn.Module):
  """tokens -> logits over the true vocabulary."""

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

  def hidden(self, tokens, mask, *, deterministic=True):
    """tokens, mask [B, L] -> hidden [B, L, D]."""
    return self.transformer(tokens, mask, deterministic=deterministic)

  def logits(self, hidden):
    """hidden [B, L, D] -> float32 logits [B, L, V_padded].

    Rows of the table past the true vocabulary get a huge negative logit: they
    are never sampled and carry no probability.
    """
    table = (self.transformer.token_embedding if self.config.tied_unembedding
             else self.unembedding).embedding
    logits = jnp.einsum(
        "bld,vd->blv", hidden, table.astype(hidden.dtype),
        preferred_element_type=jnp.float32)
    logits = constrain(logits, "batch", "length", "vocab")
    real = jnp.arange(logits.shape[-1]) < self.config.vocab_size
    return jnp.where(real, logits, MASKED)
