"""The state of a training loop, and gradients accumulated over microbatches."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlhf_jax import tree
from rlhf_jax.sharding import constrain


@flax.struct.dataclass
class TrainState:
  """One model in training."""

  step: jax.Array  # int32 scalar: optimizer steps done
  skipped: jax.Array  # int32 scalar: updates not applied so far
  skipped_in_a_row: jax.Array  # int32 scalar: up to the newest
  params: Any
  opt_state: Any


def create(params: Any, tx: optax.GradientTransformation) -> TrainState:
  return TrainState(
      step=jnp.zeros((), jnp.int32), **no_skips(), params=params,
      opt_state=tx.init(params))


@flax.struct.dataclass
class Update:
  """An optimizer update; the trees are the old ones where it is not applied."""

  params: Any
  opt_state: Any
  grad_norm: jax.Array  # float32 scalar, before clipping
  is_applied: jax.Array  # bool scalar


def apply_gradients(
    params: Any, opt_state: Any, grads: Any,
    tx: optax.GradientTransformation, loss: jax.Array,
) -> Update:
  """One optimizer update, or none where the loss, a gradient or a resulting
  parameter is not finite: one bad batch must not end in the parameters."""
  grad_norm = tree.global_norm(grads)
  updates, new_opt_state = tx.update(grads, opt_state, params)
  new_params = optax.apply_updates(params, updates)
  is_applied = jnp.isfinite(
      jnp.stack([loss, grad_norm, tree.global_norm(new_params)])).all()
  params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(is_applied, new, old),
      (new_params, new_opt_state), (params, opt_state))
  return Update(params, opt_state, grad_norm, is_applied)


def update(
    state: TrainState, grads: Any, tx: optax.GradientTransformation,
    loss: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """(the state a step later, what metrics.jsonl says of the update)."""
  done = apply_gradients(state.params, state.opt_state, grads, tx, loss)
  skips = count_skips(state, done.is_applied)
  state = TrainState(
      step=state.step + 1, **skips, params=done.params,
      opt_state=done.opt_state)
  return state, {"train/grad_norm": done.grad_norm, **skip_values(state)}


def no_skips() -> dict[str, jax.Array]:
  """The counters of a state at the start."""
  return {"skipped": jnp.zeros((), jnp.int32),
          "skipped_in_a_row": jnp.zeros((), jnp.int32)}


def count_skips(state: Any, is_applied: jax.Array) -> dict[str, jax.Array]:
  """The counters after one more update."""
  return {
      "skipped": state.skipped + ~is_applied,
      "skipped_in_a_row": jnp.where(
          is_applied, 0, state.skipped_in_a_row + 1)}


def skip_values(state: Any) -> dict[str, jax.Array]:
  """What metrics.jsonl says of them."""
  return {"train/skipped": state.skipped,
          "train/skipped_in_a_row": state.skipped_in_a_row}


_SCALARS = "scalars"


def to_items(state: Any) -> dict[str, Any]:
  """What a checkpoint holds of a state: an item a field, and the counters and
  coefficients together in one."""
  fields = {field.name: getattr(state, field.name)
            for field in dataclasses.fields(state)}
  scalars = {name for name, value in fields.items() if hasattr(value, "shape")}
  return {
      **{name: fields[name] for name in fields if name not in scalars},
      _SCALARS: {name: fields[name] for name in sorted(scalars)}}


def from_items(like: Any, items: Mapping[str, Any]) -> Any:
  """The state, of the type of `like`, whose `to_items` these are."""
  trees = {name: item for name, item in items.items() if name != _SCALARS}
  return type(like)(**trees, **items[_SCALARS])


def split_rows(batch: Any, num_parts: int) -> Any:
  """[B, ...] -> [num_parts, B / num_parts, ...] for every leaf.

  Part i holds rows i, num_parts + i, ...: every device keeps its own rows of
  every part, so cutting a sharded batch moves no data.

  Raises:
    ValueError: the rows do not divide.
  """

  def split(x):
    if x.shape[0] % num_parts:
      raise ValueError(
          f"a batch of {x.shape[0]} rows does not divide into {num_parts}")
    x = x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:])
    x = jnp.swapaxes(x, 0, 1)
    return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

  return jax.tree.map(split, batch)


def merge_rows(batch: Any) -> Any:
  """The inverse of `split_rows`."""

  def merge(x):
    x = jnp.swapaxes(x, 0, 1)
    x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return constrain(x, "batch", *(None,) * (x.ndim - 1))

  return jax.tree.map(merge, batch)


def accumulate(
    function: Callable[..., Any], batch: Any, num_parts: int
) -> Any:
  """Combines `function(part, number)` over the microbatches of `batch`.

  Leaves are summed, those under a "max" key are maximised. The function must
  return sums, or means over a *global* count: then the number of microbatches
  cannot change the result.
  """
  if num_parts == 1:
    return function(batch, jnp.zeros((), jnp.int32))
  parts = split_rows(batch, num_parts)
  one_part = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(function, one_part, jnp.int32(0))

  def add(total, numbered):
    part, number = numbered
    return combine(total, function(part, number)), None

  # From neutral elements, not from the first part's result: a part outside
  # the loop could run beside the one inside, and two would need no less
  # memory than the whole.
  total, _ = jax.lax.scan(
      add, neutral(shapes), (parts, jnp.arange(num_parts)))
  return total


def neutral(shapes: Any) -> Any:
  """What `combine` leaves any tree of these shapes as it is with."""

  def one_leaf(path, x):
    return jnp.full(x.shape, -jnp.inf if is_max(path) else 0, x.dtype)

  return jax.tree_util.tree_map_with_path(one_leaf, shapes)


def combine(left: Any, right: Any) -> Any:
  """Adds two trees; leaves below a "max" key take the larger."""

  def one_leaf(path, a, b):
    return jnp.maximum(a, b) if is_max(path) else a + b

  return jax.tree_util.tree_map_with_path(one_leaf, left, right)


def is_max(path: tuple[Any, ...]) -> bool:
  """Whether a leaf is combined by its maximum."""
  return any(getattr(p, "key", None) == "max" for p in path)
