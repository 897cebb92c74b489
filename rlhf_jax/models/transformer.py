"""The GPT-3 decoder: pre-LayerNorm, learned positions, tanh-GELU.

Brown et al. 2020, section 2.1 (the GPT-2 architecture with modified
initialisation and, as an option, alternating dense and locally banded
attention). Where GPT-2's relatives and OPT (Zhang et al. 2022) differ, a
setting says so; their weights come in through `rlhf_jax/hf`. Parameters of all
blocks are stacked on a leading axis and scanned over; decoding unrolls the same
blocks (`rlhf_jax/rollout.py`), because a scanned stack would be copied for
every token.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.models import attention
from rlhf_jax.sharding import constrain

REMAT_POLICIES = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
ATTENTION_PATTERNS = ("dense", "alternating")
ACTIVATIONS = {
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
}
NORM_ORDERS = ("pre", "post")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Sizes and numerics of one decoder.

  `vocab_size` is the true vocabulary; the table has `padded_vocab_size` rows,
  so that the padding id `vocab_size` lies inside the table and the table
  divides over the tensor axis. Ids past the vocabulary are never predicted.
  `init_stddev` is that of the matrices and token embeddings, and twice that of
  the position embeddings: .02 in GPT-2, whose width is 768 and up; in narrow
  models such embeddings are too alike to be told apart, and copying from the
  prompt is learnt late or never.

  `mlp_size` is None for 4 x d_model, `embedding_size` None for d_model; of
  another size, embeddings are projected to d_model and the last hidden states
  back. `norm_order` "post" normalises the sum after each half of a block
  instead of the half's input. The position table has `position_offset` rows
  before that of position 0. With `scale_by_layer` the attention scores of
  block n, from 1, are divided by n.

  What is not given is GPT-3's, in float32; an experiment gives everything.

  >>> xl = TransformerConfig(vocab_size=50257, num_layers=24, d_model=2048,
  ...                        num_heads=16, context_length=2048)
  >>> f"{xl.num_params:,}"
  '1,315,723,264'
  """

  vocab_size: int
  vocab_multiple: int = 128
  num_layers: int
  d_model: int
  num_heads: int
  context_length: int
  init_stddev: float = 0.02
  dropout_rate: float = 0.0
  dtype: str = "float32"
  remat: str = "none"
  scan_unroll: int = 1
  attention_pattern: str = "dense"
  band_width: int = 256
  mlp_size: int | None = None
  activation: str = "gelu_tanh"
  norm_order: str = "pre"
  norm_epsilon: float = 1e-5
  final_norm: bool = True
  tied_unembedding: bool = True
  embedding_size: int | None = None
  position_offset: int = 0
  scale_by_layer: bool = False
  logit_parts: int = 1
  attention_kernel: str = "plain"

  @property
  def head_dim(self) -> int:
    return self.d_model // self.num_heads

  @property
  def d_mlp(self) -> int:
    return self.mlp_size or 4 * self.d_model

  @property
  def d_embedding(self) -> int:
    return self.embedding_size or self.d_model

  @property
  def padded_vocab_size(self) -> int:
    return -(-(self.vocab_size + 1) // self.vocab_multiple) * (
        self.vocab_multiple
    )

  @property
  def num_block_weights(self) -> int:
    """Numbers in the matrices of one block."""
    return 4 * self.d_model**2 + 2 * self.d_model * self.d_mlp

  @property
  def num_params(self) -> int:
    """A policy's parameters, with the true vocabulary."""
    d, mlp, embedding = self.d_model, self.d_mlp, self.d_embedding
    tables = 1 if self.tied_unembedding else 2
    projections = 2 if embedding != d else 0
    return (
        tables * self.vocab_size * embedding + projections * embedding * d
        + (self.context_length + self.position_offset) * d
        + self.num_layers * (self.num_block_weights + 9 * d + mlp)
        + 2 * d * self.final_norm
    )


def normal_init(stddev: float):
  return nn.initializers.normal(stddev)


class Attention(nn.Module):
  """Multi-head causal self-attention, with or without a cache."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x, layer, mask, cache, cache_index, places):
    """x [B, L, D], mask [B, L, S] -> (out [B, L, D], cache).

    With places (first, end) they alone attend, to all: out [B, end - first,
    D]. The kernel "flash", which takes the texts' numbers [B, L] in the mask's
    place, has no such form.

    Without a cache (None) S = L. With one, a pair of [B, H, C, K], this
    call's keys and values are written at `cache_index`, and the first S of
    all are read: S <= C, as the mask has it.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    qkv_kernel = self.param(
        "qkv_kernel", normal_init(c.init_stddev),
        (c.d_model, c.num_heads, 3, c.head_dim))
    qkv_bias = self.param(
        "qkv_bias", nn.initializers.zeros, (c.num_heads, 3, c.head_dim))
    out_kernel = self.param(
        "out_kernel", normal_init(c.init_stddev / (2 * c.num_layers) ** 0.5),
        (c.num_heads, c.head_dim, c.d_model))
    out_bias = self.param("out_bias", nn.initializers.zeros, (c.d_model,))

    def project(x, first, end):
      """Of query, key, value those from `first` to `end`, each [B, H, L, K]."""
      rows = x.reshape(-1, c.d_model)  # plain matrices, as in Mlp
      kernel, bias = qkv_kernel[:, :, first:end], qkv_bias[:, first:end]
      out = rows @ kernel.astype(dtype).reshape(c.d_model, -1)
      out = out + bias.astype(dtype).reshape(-1)
      # heads are the outer axis, so that the flat one still divides over them
      out = out.reshape(*x.shape[:2], c.num_heads, -1, c.head_dim)
      return (
          constrain(jnp.swapaxes(out[:, :, :, i], 1, 2),
                    "batch", "heads", "length", None)
          for i in range(end - first))

    if places is None:
      query, key, value = project(x, 0, 3)
    else:
      (query,), (key, value) = project(at(x, places), 0, 1), project(x, 1, 3)
      mask = at(mask, places)
    if cache is not None:
      start = (0, 0, cache_index, 0)
      key = jax.lax.dynamic_update_slice(cache[0], key, start)
      value = jax.lax.dynamic_update_slice(cache[1], value, start)
      cache = (key, value)
      read = mask.shape[-1]
      key, value = key[:, :, :read], value[:, :, :read]
    heads = self.attend(query, key, value, layer, mask, cache)
    heads = jnp.swapaxes(heads, 1, 2)
    rows = heads.reshape(-1, c.d_model)
    out = rows @ out_kernel.astype(dtype).reshape(c.d_model, c.d_model)
    out = (out + out_bias.astype(dtype)).reshape(*heads.shape[:2], c.d_model)
    return out, cache

  def attend(self, query, key, value, layer, mask, cache):
    """[B, H, L, K] of each; with a cache there is no kernel to choose."""
    c = self.config
    scale = c.head_dim**-0.5
    if cache is not None or c.attention_kernel == "plain":
      if c.scale_by_layer:
        scale = scale / (layer + 1)
      return attention.plain(query, key, value, mask, scale=scale)
    if c.scale_by_layer:  # a kernel's scale is part of its program
      query = (query / (layer + 1)).astype(query.dtype)
    kernel = getattr(attention, c.attention_kernel)
    return kernel(query, key, value, mask, scale=scale)


class Mlp(nn.Module):
  config: TransformerConfig

  @nn.compact
  def __call__(self, x):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    up_kernel = self.param(
        "up_kernel", normal_init(c.init_stddev), (c.d_model, c.d_mlp))
    up_bias = self.param("up_bias", nn.initializers.zeros, (c.d_mlp,))
    down_kernel = self.param(
        "down_kernel", normal_init(c.init_stddev / (2 * c.num_layers) ** 0.5),
        (c.d_mlp, c.d_model))
    down_bias = self.param("down_bias", nn.initializers.zeros, (c.d_model,))
    # As plain matrices: XLA's CPU backend takes the gradients of batched
    # products nearly twice as long.
    rows = x.reshape(-1, c.d_model)
    hidden = rows @ up_kernel.astype(dtype) + up_bias.astype(dtype)
    hidden = constrain(hidden, "batch", "mlp")

    def down(hidden, kernel):
      return ACTIVATIONS[c.activation](hidden) @ kernel

    # The gradient keeps what goes into the activation and computes it again:
    # to store and load the half dozen arrays inside it takes longer.
    out = jax.checkpoint(down, prevent_cse=False)(
        hidden, down_kernel.astype(dtype))
    return (out + down_bias.astype(dtype)).reshape(x.shape)


class Block(nn.Module):
  """Attention and an MLP, each added to its input."""

  config: TransformerConfig

  @nn.compact
  def __call__(
      self, x, layer, masks, cache, cache_index, deterministic, places=None):
    """x [B, L, D]; masks: one [B, L, S] a pattern; layer: this block's number.

    Returns:
      (x [B, L, D], or of the places (first, end) alone [B, end - first, D];
      cache)
    """
    c = self.config
    dropout = nn.Dropout(c.dropout_rate, deterministic=deterministic)
    attend, mlp = Attention(c, name="attention"), Mlp(c, name="mlp")
    attention_norm, mlp_norm = (
        layer_norm(c, name=f"{part}_norm") for part in ("attention", "mlp"))
    mask = masks[0]
    if len(masks) > 1:  # alternating: every second block is banded
      mask = jnp.where(layer % 2 == 1, masks[1], masks[0])
    x = constrain(x, "batch", "length", "embed")
    if c.norm_order == "pre":
      attended, cache = attend(
          attention_norm(x), layer, mask, cache, cache_index, places)
      x = at(x, places) + dropout(attended)
      return x + dropout(mlp(mlp_norm(x))), cache
    attended, cache = attend(x, layer, mask, cache, cache_index, places)
    x = attention_norm(at(x, places) + dropout(attended))
    return mlp_norm(x + dropout(mlp(x))), cache


def at(x, places: tuple[int, int] | None):
  """x [B, L, ...] -> its places first to end, or all."""
  return x if places is None else x[:, slice(*places)]


def layer_norm(config: TransformerConfig, **kwargs) -> nn.LayerNorm:
  return nn.LayerNorm(
      epsilon=config.norm_epsilon, dtype=jnp.dtype(config.dtype), **kwargs)


class Transformer(nn.Module):
  """Token ids -> final hidden states."""

  config: TransformerConfig

  def setup(self):
    c = self.config
    self.token_embedding = nn.Embed(
        c.padded_vocab_size, c.d_embedding,
        embedding_init=normal_init(c.init_stddev))
    self.position_embedding = nn.Embed(
        c.context_length + c.position_offset, c.d_model,
        embedding_init=normal_init(c.init_stddev / 2))
    if c.d_embedding != c.d_model:
      project = functools.partial(
          nn.Dense, use_bias=False, dtype=jnp.dtype(c.dtype),
          kernel_init=normal_init(c.init_stddev))
      self.project_in = project(c.d_model)
      self.project_out = project(c.d_embedding)
    block = Block
    if c.remat != "none":
      block = nn.remat(
          Block, prevent_cse=False, policy=REMAT_POLICIES[c.remat],
          static_argnums=(6,))  # deterministic
    self.blocks = nn.scan(
        block, length=c.num_layers, unroll=c.scan_unroll,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0,) + (nn.broadcast,) * 4,
    )(c)
    if c.final_norm:
      self.final_norm = layer_norm(c)
    self.dropout = nn.Dropout(c.dropout_rate)

  def __call__(self, tokens, mask, *, places=None, deterministic=True):
    """Final hidden states [B, L, E], in the compute dtype; E is D but where
    `embedding_size` says otherwise.

    Args:
      tokens: [B, L].
      mask: [B, L]; 0 is padding, other numbers the texts packed into the
        row: one number a text, rising along the row (1 or True where a row
        holds one). Texts do not see each other.
      places: (first, end): the hidden states of these places alone, [B, end -
        first, E]. Where blocks are unrolled the last one computes no others.
      deterministic: no dropout.
    """
    positions = positions_of(mask)
    x = self.embed(tokens, positions, deterministic=deterministic)
    if self.config.attention_kernel == "flash":
      masks = (mask.astype(jnp.int32),)
    else:
      masks = attention_masks(
          self.config, query_positions=positions, key_positions=positions,
          key_mask=mask,
          causal=causal_mask(tokens.shape[1]) & same_text(mask))
    if self._narrows(places, deterministic):
      return self.finish(self._narrowed(x, masks, places))
    x, _ = self.blocks(
        x, jnp.arange(self.config.num_layers), masks, None, None,
        deterministic)
    return self.finish(at(x, places))

  def _narrows(self, places, deterministic) -> bool:
    """Whether the last block is taken out of the stack to be cut to places:
    of one that is scanned over, a cut would copy all the others."""
    c = self.config
    return (places is not None and deterministic and c.remat == "none"
            and c.scan_unroll >= c.num_layers
            and c.attention_kernel != "flash")

  def _narrowed(self, x, masks, places):
    """All blocks, the last for places (first, end) alone."""
    c = self.config
    layers = unstacked(self.blocks.variables["params"], c.num_layers)
    x, _ = apply_each(c, layers, x, masks, (None,) * c.num_layers, None, places)
    return x

  def embed(self, tokens, positions, *, deterministic=True):
    """tokens, positions [B, L] -> [B, L, D] in the compute dtype."""
    c = self.config
    x = lookup(self.token_embedding, tokens)
    if c.d_embedding != c.d_model:
      x = self.project_in(x)
    x = x + lookup(self.position_embedding, positions + c.position_offset)
    x = x.astype(jnp.dtype(c.dtype))
    return self.dropout(x, deterministic=deterministic)

  def finish(self, x):
    """What follows the blocks: x [B, L, D] -> [B, L, E]."""
    c = self.config
    if c.final_norm:
      x = self.final_norm(x)
    if c.d_embedding != c.d_model:
      x = self.project_out(x)
    return constrain(x, "batch", "length", "embed")


def unstacked(blocks, num_layers: int) -> tuple:
  """Parameters of blocks on one leading axis -> those of each by itself."""
  leaves, treedef = jax.tree.flatten(blocks)
  cut = lambda x: jax.lax.split(x, (1,) * num_layers)
  layers = zip(*([part[0] for part in cut(leaf)] for leaf in leaves))
  return tuple(jax.tree.unflatten(treedef, layer) for layer in layers)


def apply_each(config, layers, x, masks, caches, cache_index, places):
  """Blocks one by one, the last for places (first, end) alone, or all (None).

  Args:
    config: of the blocks.
    layers: their parameters, as of `unstacked`.
    x: [B, L, D].
    masks: as a Block takes them.
    caches: one a block, or None of each.
    cache_index: where they are written.
    places: of the last block.

  Returns:
    (x, or its places [B, end - first, D]; the new caches)
  """
  block, new_caches = Block(config, parent=None), []
  for number, (layer, cache) in enumerate(zip(layers, caches)):
    is_last = number == config.num_layers - 1
    x, cache = block.apply(
        {"params": layer}, x, number, masks, cache, cache_index, True,
        places if is_last else None)
    new_caches.append(cache)
  return x, tuple(new_caches)


def lookup(table: nn.Embed, ids):
  """Rows of an embedding, [B, L] -> [B, L, D].

  Every device looks its part of the width up, for the rows of all devices that
  the table is cut over, and gets whole rows of its own batch in exchange: of a
  large table and its gradient no device ever holds more than its part.
  """
  ids = constrain(ids, "batch", "length", first="embed")
  x = jnp.take(table.embedding, ids, axis=0)
  x = constrain(x, "batch", "length", "embed", first="embed")
  return constrain(x, "batch", "length", "embed")


def positions_of(mask):
  """Position ids [B, L]: the number of the text's real tokens before, so that
  neither padding on the left nor texts packed before it move a text.

  mask [B, L]: 0 is padding; one number a text, rising along the row.
  """
  texts = mask.astype(jnp.int32)
  real = (texts > 0).astype(jnp.int32)
  before = jnp.cumsum(real, axis=-1) - real
  latest = jax.lax.cummax(texts, axis=1)  # padding belongs to what it follows
  starts = jnp.diff(latest, axis=-1, prepend=0) > 0
  start = jax.lax.cummax(jnp.where(starts, before, 0), axis=1)
  return before - start


def same_text(mask):
  """[B, L, L], or True for all: whether two places are of one packed text."""
  if mask.dtype == jnp.bool_:
    return True
  return mask[:, :, None] == mask[:, None, :]


def causal_mask(length: int):
  """[1, L, L] lower triangle."""
  return jnp.tril(jnp.ones((1, length, length), jnp.bool_))


def attention_masks(
    config, *, query_positions, key_positions, key_mask, causal
):
  """The masks [B, L, S] of the pattern: (dense,) or (dense, banded)."""
  dense = causal & key_mask.astype(jnp.bool_)[:, None, :]
  if config.attention_pattern == "dense":
    return (dense,)
  distance = query_positions[:, :, None] - key_positions[:, None, :]
  return dense, dense & (distance < config.band_width)

