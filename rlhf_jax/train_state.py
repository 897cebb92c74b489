"""The state of a training loop, and gradients accumulated over microbatches."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlhf_jax import sharding
from rlhf_jax.sharding import constrain


@flax.struct.dataclass
class TrainState:
  """One model in training."""

  step: jax.Array  # int32 scalar: optimizer steps done
  params: Any
  opt_state: Any


def create(params: Any, tx: optax.GradientTransformation) -> TrainState:
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def apply_gradients(
    params: Any, opt_state: Any, grads: Any, tx: optax.GradientTransformation
) -> tuple[Any, Any]:
  """One optimizer update: (params, opt_state)."""
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def save(saved: Any, step: int, state: TrainState) -> None:
  """Saves the state's parts as separate items of `saved` (Checkpoints)."""
  saved.save(
      step, {"params": state.params, "opt_state": state.opt_state},
      {"next_batch": step})


def restore(saved: Any, abstract: TrainState) -> tuple[TrainState, Any]:
  """(the newest saved state, its shardings), straight into its shards.

  No state is created first: two would need twice the memory.
  """
  items = saved.restore(
      {"params": abstract.params, "opt_state": abstract.opt_state})
  step = jax.device_put(jnp.int32(saved.latest_step), abstract.step.sharding)
  return TrainState(step=step, **items), sharding.shardings_of(abstract)


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
