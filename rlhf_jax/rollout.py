"""Sampling responses: prefill, decode with a KV cache, stop when all ended.

Plain ancestral sampling, as in the paper: no top-k, no top-p. The noise of a
token is a function of (key, row id, token index) alone, so the mesh, a resume
or the company of other rows in a batch cannot change a sample.
"""

from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import train_state
from rlhf_jax.models import transformer
from rlhf_jax.models.policy import Policy
from rlhf_jax.sharding import constrain


@flax.struct.dataclass
class Rollout:
  """A batch of prompts with one response each.

  The response mask is True through the end token; what follows is padding.
  `logprobs` are the sampler's own, for comparison with the scorer.
  """

  prompt_tokens: jax.Array  # int32 [B, P], left-padded
  prompt_mask: jax.Array  # bool [B, P]
  response_tokens: jax.Array  # int32 [B, T], right-padded
  response_mask: jax.Array  # bool [B, T]
  logprobs: jax.Array  # float32 [B, T]

  @property
  def tokens(self) -> jax.Array:  # [B, P + T]
    return jnp.concatenate([self.prompt_tokens, self.response_tokens], axis=1)

  @property
  def mask(self) -> jax.Array:  # [B, P + T]
    return jnp.concatenate([self.prompt_mask, self.response_mask], axis=1)


@flax.struct.dataclass
class SamplingState:
  """What decoding carries from token to token."""

  step: jax.Array  # tokens sampled so far
  done: jax.Array  # bool [B]: the end token was sampled
  tokens: jax.Array  # int32 [B, T]
  mask: jax.Array  # bool [B, T]
  logprobs: jax.Array  # float32 [B, T]
  caches: Any  # a pair of [B, H, P + T, K] a block


def make_generate(
    model: Policy, *, response_length: int, temperature: float, eos_id: int
) -> Callable[..., Rollout]:
  """Builds `generate(params, key, prompt_tokens, prompt_mask, row_ids)`.

  >>> import numpy as np
  >>> from rlhf_jax.data import batches
  >>> model = Policy(transformer.TransformerConfig(
  ...     vocab_size=50, num_layers=1, d_model=16, num_heads=2,
  ...     context_length=16))
  >>> tokens, mask = batches.left_padded([[5, 6, 7], [8]], length=4, pad_id=50)
  >>> params = jax.jit(model.init)(jax.random.key(0), tokens, mask)["params"]
  >>> generate = jax.jit(make_generate(
  ...     model, response_length=8, temperature=1.0, eos_id=49))
  >>> sampled = generate(params, jax.random.key(1), tokens, mask, np.arange(2))
  >>> sampled.response_tokens.shape, sampled.tokens.shape
  ((2, 8), (2, 12))
  >>> again = generate(params, jax.random.key(1), tokens, mask, np.arange(2))
  >>> bool((sampled.response_tokens == again.response_tokens).all())
  True

  Args:
    model: the policy.
    response_length: T, the most tokens a response may have.
    temperature: divides the logits; 0 takes the most likely token.
    eos_id: ends a response; part of it.

  Returns:
    A pure function to be jitted. `row_ids` int32 [B] name the noise of a row:
    two rows with the same key and id share it, others do not. Rows, caches
    and logits lie as the axis rules say that are current when it is traced.
  """
  config = model.config
  pad_id = config.vocab_size

  def generate(params, key, prompt_tokens, prompt_mask, row_ids):
    batch, prompt_length = prompt_tokens.shape
    chex.assert_equal_shape([prompt_tokens, prompt_mask])
    total = prompt_length + response_length
    if total > config.context_length:
      raise ValueError(
          f"prompts of {prompt_length} and responses of {response_length} "
          f"tokens exceed context_length={config.context_length}")
    prompt_tokens, prompt_mask = (
        constrain(x, "batch", "length") for x in (prompt_tokens, prompt_mask))
    row_ids = constrain(row_ids, "batch")
    forward = make_cached_forward(model, params)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)

    def masks_of(positions, key_mask, first):
      """[B, L, S] of queries whose first stands in slot `first`, and of the S
      first slots as keys."""
      queries = first + jnp.arange(positions.shape[1])
      slots = jnp.arange(key_mask.shape[1])
      return transformer.attention_masks(
          config, query_positions=positions,
          key_positions=transformer.positions_of(key_mask), key_mask=key_mask,
          causal=(slots[None, :] <= queries[:, None])[None])
    num_prompt_tokens = prompt_mask.sum(-1).astype(jnp.int32)  # [B]

    def sample(state: SamplingState, logits) -> SamplingState:
      """One token from logits [B, V] for every row that has not ended."""
      keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, state.step)
      token, logprob = sample_token(keys, logits, temperature)
      live = ~state.done
      put = lambda buffer, value: jax.lax.dynamic_update_slice(
          buffer, value[:, None], (0, state.step))
      return state.replace(
          step=state.step + 1,
          done=state.done | (token == eos_id),
          tokens=put(state.tokens, jnp.where(live, token, pad_id)),
          mask=put(state.mask, live),
          logprobs=put(state.logprobs, jnp.where(live, logprob, 0.0)),
      )

    def decode(state: SamplingState) -> SamplingState:
      """Feeds the newest token, samples the next."""
      newest = state.step - 1
      token = jax.lax.dynamic_slice_in_dim(state.tokens, newest, 1, axis=1)
      key_mask = jnp.concatenate([prompt_mask, state.mask], axis=1)
      positions = (num_prompt_tokens + newest)[:, None]
      slot = prompt_length + newest
      logits, caches = forward(
          token, positions, masks_of(positions, key_mask, slot),
          state.caches, slot)
      return sample(state.replace(caches=caches), logits)

    empty = jnp.zeros((batch, response_length), jnp.bool_)
    state = SamplingState(
        step=jnp.zeros((), jnp.int32),
        done=jnp.zeros((batch,), jnp.bool_),
        tokens=jnp.full((batch, response_length), pad_id, jnp.int32),
        mask=empty,
        logprobs=jnp.zeros((batch, response_length), jnp.float32),
        caches=empty_caches(config, batch, total),
    )
    with jax.named_scope("prefill"):
      positions = transformer.positions_of(prompt_mask)
      logits, caches = forward(
          prompt_tokens, positions, masks_of(positions, prompt_mask, 0),
          state.caches, 0)
      state = sample(state.replace(caches=caches), logits)
    with jax.named_scope("decode"):
      state = jax.lax.while_loop(
          lambda s: (s.step < response_length) & ~s.done.all(), decode, state)
    # or the loop would take the shards that the caller wants of the result
    sampled = (constrain(x, "batch", "length")
               for x in (state.tokens, state.mask, state.logprobs))
    return Rollout(prompt_tokens, prompt_mask, *sampled)

  return generate


def in_parts(generate: Callable[..., Rollout], num_parts: int):
  """The same of `num_parts` parts of the rows, one after the other.

  It takes the memory of one part, and a sample is the same in any number of
  them. Every device keeps its own rows: no data moves.
  """
  if num_parts == 1:
    return generate

  def generate_parts(params, key, *rows):
    parts = train_state.split_rows(rows, num_parts)
    return train_state.merge_rows(
        jax.lax.map(lambda part: generate(params, key, *part), parts))

  return generate_parts


def sample_token(keys, logits, temperature):
  """keys [B], logits [B, V] -> (token [B], its log-probability [B]).

  The log-probability is that of the distribution sampled from, temperature
  included.
  """
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    token = first_largest(logits)
  else:
    logits = logits / temperature
    # jax.random.categorical, but for its argmax
    noise = jax.vmap(
        lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    token = first_largest(logits + noise)
  chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def first_largest(x):
  """x [B, V] -> [B] int32, the argmax; of NaN alone V - 1.

  Two plain reductions, which XLA vectorizes: it takes the one of pairs that
  `jnp.argmax` is one number at a time.
  """
  last = x.shape[-1] - 1
  numbers = jnp.arange(x.shape[-1], dtype=jnp.int32)
  is_largest = x == x.max(-1, keepdims=True)
  return jnp.where(is_largest, numbers, last).min(-1)


def empty_caches(config, batch: int, length: int):
  """Zeroed keys and values, [B, H, S, K] a block, in the compute dtype,
  created in their shards."""
  shape = (batch, config.num_heads, length, config.head_dim)
  zeros = lambda: constrain(
      jnp.zeros(shape, jnp.dtype(config.dtype)),
      "batch", "heads", "length", None)
  return tuple((zeros(), zeros()) for _ in range(config.num_layers))


def unstacked(params: Any, num_layers: int) -> Any:
  """Parameters with a tuple of blocks, each by itself; new dicts on the way
  there, and the same arrays where they are unstacked already."""
  body = dict(params["transformer"])
  if not isinstance(body["blocks"], tuple):
    body["blocks"] = transformer.unstacked(body["blocks"], num_layers)
  return {**params, "transformer": body}


def make_cached_forward(model: Policy, params: Any) -> Callable[..., Any]:
  """Builds the forward pass that prefill and decode share.

  Args:
    model: the policy.
    params: its parameters. Blocks still in their stack are taken out once,
      outside the loop over tokens, which copies all; give `unstacked` ones
      where that is too much memory.

  Returns:
    forward(tokens [B, L], positions [B, L], masks, caches, index) -> (logits
    of the last position [B, V], caches), where `masks` are those of
    `transformer.attention_masks`, [B, L, S], keys go to slots `index` on, and
    the first S slots are read.
  """
  config = model.config
  params = unstacked(params, config.num_layers)
  layers = params["transformer"].pop("blocks")

  def forward(tokens, positions, masks, caches, index):
    x = model.apply(
        {"params": params}, tokens, positions,
        method=lambda m, *args: m.transformer.embed(*args))
    length = tokens.shape[1]
    # the last block computes nothing but what the next token comes from
    newest = None if length == 1 else (length - 1, length)
    x, caches = transformer.apply_each(
        config, layers, x, masks, caches, index, newest)
    logits = model.apply(
        {"params": params}, x,
        method=lambda m, x: m.logits(m.transformer.finish(x)))
    return logits[:, 0], caches

  return forward
