"""Sampling in which a finished response makes room for a waiting prompt.

Responses end at different lengths. A batch that is decoded until its last row
has ended spends most of its steps on rows that ended long ago; here there are
fewer rows, slots, than prompts, and where enough slots are free the next
prompts are read into them, inside the compiled loop.

The keys and values of a slot lie in a ring of P + T columns, and all slots
write to the same column in a step, so that a token costs no more than in
`rollout.make_generate`. A prompt that comes in later lies in the columns just
before the newest. Noise is a function of (key, row id, token index) there as
here: a prompt gets the response that it would get there.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import rollout
from rlhf_jax.models import transformer
from rlhf_jax.models.policy import Policy
from rlhf_jax.rollout import Rollout
from rlhf_jax.sharding import constrain

# A prompt is read with others: as many as this part of the slots.
_REFILL_SHARE = 8


@flax.struct.dataclass
class Slots:
  """Rows that are decoded together, G groups of B / G."""

  prompt: jax.Array  # int32 [G, B / G]: number in the group, N / G for none
  row_id: jax.Array  # int32 [G, B / G]
  token: jax.Array  # int32 [G, B / G], the newest
  count: jax.Array  # int32 [G, B / G], tokens sampled so far
  position: jax.Array  # int32 [G, B / G], of the newest token
  is_live: jax.Array  # bool [G, B / G]
  key_mask: jax.Array  # bool [B, S]
  key_positions: jax.Array  # int32 [B, S]
  caches: Any  # a pair of [B, H, S, K] a block


@flax.struct.dataclass
class State:
  """What sampling carries from token to token."""

  time: jax.Array  # steps so far, and P
  waiting: jax.Array  # int32 [G]: the first prompt that waits
  slots: Slots
  tokens: jax.Array  # int32 [G, N / G, T]
  mask: jax.Array  # bool [G, N / G, T]
  logprobs: jax.Array  # float32 [G, N / G, T]


def make_generate(
    model: Policy, *, response_length: int, temperature: float, eos_id: int,
    num_parts: int, num_groups: int = 1,
) -> Callable[..., Rollout]:
  """`rollout.make_generate` of N prompts, N / `num_parts` rows at a time.

  Args:
    model: the policy.
    response_length: T, the most tokens a response may have.
    temperature: divides the logits; 0 takes the most likely token.
    eos_id: ends a response; part of it.
    num_parts: N / B, for B slots: one at least in a group.
    num_groups: G, parts of the prompts that keep to their own slots: the
      batch shards, so that no data moves between them. N is a multiple.

  Returns:
    generate(params, key, prompt_tokens [N, P], prompt_mask, row_ids [N]) ->
    Rollout, as of `rollout.make_generate`.
  """
  config = model.config

  def generate(params, key, prompt_tokens, prompt_mask, row_ids):
    num_prompts, prompt_length = prompt_tokens.shape
    prompts_here = num_prompts // num_groups
    slots_here = max(prompts_here // num_parts, 1)
    num_slots = slots_here * num_groups
    num_read = max(slots_here // _REFILL_SHARE, 1)
    ring = prompt_length + response_length
    if ring > config.context_length:
      raise ValueError(
          f"prompts of {prompt_length} and responses of {response_length} "
          f"tokens exceed context_length={config.context_length}")
    if num_prompts % num_groups:
      raise ValueError(
          f"{num_prompts} prompts do not divide over {num_groups} groups")
    grouped = lambda x: x.reshape(num_groups, prompts_here, *x.shape[1:])
    prompt_tokens, prompt_mask, row_ids = (
        grouped(constrain(x, "batch", *("length",) * (x.ndim - 1)))
        for x in (prompt_tokens, prompt_mask, row_ids))
    forward = rollout.make_cached_forward(model, params)

    def sample(row_id, count, logits):
      """(tokens, log-probabilities), [G, X], of logits [G * X, V]."""
      key_of = lambda row, token: jax.random.fold_in(
          jax.random.fold_in(key, row), token)
      found = rollout.sample_token(
          jax.vmap(key_of)(row_id.reshape(-1), count.reshape(-1)), logits,
          temperature)
      return tuple(x.reshape(row_id.shape) for x in found)

    def record(state, prompt, count, is_real, token, logprob):
      """Puts tokens [G, X] where they belong; others are dropped."""
      rows = jnp.where(is_real, prompt, prompts_here)
      put = jax.vmap(lambda out, row, at, value: out.at[row, at].set(
          value, mode="drop"))
      return state.replace(
          tokens=put(state.tokens, rows, count, token),
          mask=put(state.mask, rows, count, is_real),
          logprobs=put(state.logprobs, rows, count, logprob))

    def goes_on(token, count):
      return (token != eos_id) & (count < response_length)

    def refill(state: State) -> State:
      """Reads waiting prompts, `num_read` a group, into free slots."""
      slots = state.slots
      is_free = ~slots.is_live
      number = jnp.arange(num_read)[None]
      free = jnp.argsort(slots.is_live, axis=1, stable=True)[:, :num_read]
      prompt = state.waiting[:, None] + number
      is_real = (number < is_free.sum(1, keepdims=True)) & (
          prompt < prompts_here)
      take = lambda x: jax.vmap(lambda x, rows: x[rows])(
          x, jnp.minimum(prompt, prompts_here - 1))
      flat = lambda x: x.reshape(-1, *x.shape[2:])
      tokens, mask = flat(take(prompt_tokens)), flat(take(prompt_mask))
      positions = transformer.positions_of(mask)
      masks = transformer.attention_masks(
          config, query_positions=positions, key_positions=positions,
          key_mask=mask, causal=transformer.causal_mask(prompt_length))
      logits, read = forward(
          tokens, positions, masks,
          rollout.empty_caches(config, len(tokens), prompt_length), 0)
      count = jnp.zeros_like(prompt)
      row_id = take(row_ids)
      token, logprob = sample(row_id, count, logits)
      state = record(state, prompt, count, is_real, token, logprob)

      target = jnp.where(is_real, free, slots_here)  # past the end: dropped

      def put(old, new):
        """[G, B / G, ...] and [G, X, ...]."""
        return jax.vmap(lambda old, new, at: old.at[at].set(
            new.astype(old.dtype), mode="drop"))(old, new, target)

      def put_ring(old, new, axis):
        """[B, ...] and [G * X, ...] with P columns, the last before now."""
        padded = jnp.pad(new, [(0, response_length * (number == axis))
                               for number, _ in enumerate(new.shape)])
        rolled = jnp.roll(padded, state.time - prompt_length, axis)
        split = lambda x: x.reshape(num_groups, -1, *x.shape[1:])
        return flat(put(split(old), split(rolled)))

      caches = tuple(
          tuple(put_ring(old, new, 2) for old, new in zip(*pair))
          for pair in zip(slots.caches, read))
      num_tokens = mask.sum(-1).astype(jnp.int32).reshape(prompt.shape)
      return state.replace(
          waiting=state.waiting + is_real.sum(1),
          slots=Slots(
              prompt=put(slots.prompt, prompt),
              row_id=put(slots.row_id, row_id),
              token=put(slots.token, token),
              count=put(slots.count, count + 1),
              position=put(slots.position, num_tokens),
              is_live=put(slots.is_live, goes_on(token, count + 1)),
              key_mask=put_ring(slots.key_mask, mask, 1),
              key_positions=put_ring(slots.key_positions, positions, 1),
              caches=caches))

    def decode(state: State) -> State:
      """Feeds the newest tokens, samples the next."""
      slots = state.slots
      column = state.time % ring
      rows = lambda x: x.reshape(num_slots, 1)
      put = lambda x, new: jax.lax.dynamic_update_slice(
          x, rows(new).astype(x.dtype), (0, column))
      key_mask = put(slots.key_mask, slots.is_live)
      key_positions = put(slots.key_positions, slots.position)
      positions = rows(slots.position)
      masks = transformer.attention_masks(
          config, query_positions=positions, key_positions=key_positions,
          key_mask=key_mask, causal=jnp.ones((1, 1, 1), jnp.bool_))
      logits, caches = forward(
          rows(slots.token), positions, masks, slots.caches, column)
      token, logprob = sample(slots.row_id, slots.count, logits)
      state = record(state, slots.prompt, slots.count, slots.is_live, token,
                     logprob)
      count = slots.count + slots.is_live
      return state.replace(
          time=state.time + 1,
          slots=slots.replace(
              token=token, count=count,
              position=slots.position + slots.is_live,
              is_live=slots.is_live & goes_on(token, count),
              key_mask=key_mask, key_positions=key_positions, caches=caches))

    def can_refill(state: State):
      """Whether a group has enough free slots for its waiting prompts."""
      num_free = (~state.slots.is_live).sum(1)
      num_waiting = prompts_here - state.waiting
      return ((num_waiting > 0) & (
          num_free >= jnp.minimum(num_read, num_waiting))).any()

    def until_room(state: State) -> State:
      return jax.lax.while_loop(
          lambda s: ~can_refill(s) & s.slots.is_live.any(), decode,
          refill(state))

    state = jax.lax.while_loop(
        lambda s: (s.waiting < prompts_here).any() | s.slots.is_live.any(),
        until_room, _empty_state(
            config, num_groups, slots_here, prompts_here, prompt_length,
            response_length))
    ungrouped = lambda x: constrain(
        x.reshape(num_prompts, -1), "batch", "length")
    return Rollout(*map(ungrouped, (
        prompt_tokens, prompt_mask, state.tokens, state.mask, state.logprobs)))

  return generate


def _empty_state(
    config, num_groups: int, slots_here: int, prompts_here: int,
    prompt_length: int, response_length: int) -> State:
  """No slot is taken, and all prompts wait."""
  num_slots, ring = num_groups * slots_here, prompt_length + response_length
  whole = lambda: jnp.zeros((num_groups, slots_here), jnp.int32)
  out = (num_groups, prompts_here, response_length)
  in_rows = lambda dtype: constrain(
      jnp.zeros((num_slots, ring), dtype), "batch", "length")
  return State(
      time=jnp.asarray(prompt_length, jnp.int32),
      waiting=jnp.zeros((num_groups,), jnp.int32),
      slots=Slots(
          prompt=whole() + prompts_here, row_id=whole(), token=whole(),
          count=whole(), position=whole(), is_live=whole() > 0,
          key_mask=in_rows(jnp.bool_), key_positions=in_rows(jnp.int32),
          caches=rollout.empty_caches(config, num_slots, ring)),
      tokens=jnp.full(out, config.vocab_size, jnp.int32),
      mask=jnp.zeros(out, jnp.bool_), logprobs=jnp.zeros(out, jnp.float32))
