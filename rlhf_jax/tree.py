"""Names, sizes and arithmetic of pytrees of arrays."""

import math

import chex
import jax
import jax.numpy as jnp


def names(tree: chex.ArrayTree) -> list[str]:
  """Returns the path of every leaf, as "mlp/up/kernel", in leaf order."""
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, _ in paths_and_leaves
  ]


def num_params(tree: chex.ArrayTree) -> int:
  """Counts entries; leaves may be abstract (`jax.eval_shape`)."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: chex.ArrayTree) -> int:
  """Counts bytes before sharding; leaves may be abstract."""
  return sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
  )


def global_norm(tree: chex.ArrayTree) -> jax.Array:
  """Returns the Euclidean norm over all leaves, summed in float32."""
  squares = [
      jnp.sum(jnp.square(leaf.astype(jnp.float32)))
      for leaf in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def ema(
    old: chex.ArrayTree, new: chex.ArrayTree, decay: float | jax.Array
) -> chex.ArrayTree:
  """Returns `decay * old + (1 - decay) * new` (InstructGPT C.4: decay .992).

  Leaves keep the dtype of `old`. Keep that float32: in bfloat16 a step of
  1 - .992 falls below half a unit in the last place and the average stalls.
  """
  chex.assert_trees_all_equal_shapes(old, new)

  def one_leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    # In this form `old == new` is a fixed point to the last bit.
    average = x + (1.0 - decay) * (y - x)
    return average.astype(x.dtype)

  return jax.tree.map(one_leaf, old, new)


def add(left: chex.ArrayTree, right: chex.ArrayTree) -> chex.ArrayTree:
  """Returns `left + right`, leaf by leaf."""
  chex.assert_trees_all_equal_shapes(left, right)
  return jax.tree.map(jnp.add, left, right)


def scale(
    tree: chex.ArrayTree, factor: float | jax.Array
) -> chex.ArrayTree:
  """Returns `factor * tree`, each leaf in its own dtype."""
  return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def all_finite(tree: chex.ArrayTree) -> jax.Array:
  """Returns a bool scalar: no leaf holds a NaN or an infinity."""
  finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.array(finite, bool))
