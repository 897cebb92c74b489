"""Sums, means and whitening over the real entries of padded arrays.

Every function takes a mask of the same shape as the array (true = real),
computes in float32, never lets a padded entry reach the arithmetic (it may be
NaN), and is finite for an empty mask. Under `jit` with sharded arguments the
reductions are global: a sum over all tokens divided by their count, never a
mean of means.
"""

import chex
import jax
import jax.numpy as jnp

# The N Implementation Details of RLHF with PPO: whiten adds this to the
# variance, inside the root.
_WHITEN_EPS = 1e-8


def zero_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns `x` in float32, with 0 where `mask` is false."""
  chex.assert_equal_shape([x, mask])
  # A product with the mask would turn a NaN under padding into a NaN sum.
  return jnp.where(mask.astype(bool), x.astype(jnp.float32), 0.0)


def total(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the float32 scalar sum of `x` where `mask` is true."""
  return jnp.sum(zero_padding(x, mask))


def mean(
    x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None
) -> jax.Array:
  """Returns sum over real entries / their number; 0 where there are none.

  >>> print(mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1, 1, 0])))
  1.5

  Args:
    x: any shape.
    mask: shape of `x`, true = real.
    axis: axes to reduce, all by default.
  """
  count = jnp.sum(mask.astype(bool), axis=axis, dtype=jnp.float32)
  return jnp.sum(zero_padding(x, mask), axis=axis) / jnp.maximum(count, 1.0)


def var(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the biased (divide by n) variance of the real entries, a scalar."""
  deviation = x.astype(jnp.float32) - mean(x, mask)
  return mean(jnp.square(zero_padding(deviation, mask)), mask)


def whiten(
    x: jax.Array, mask: jax.Array, shift_mean: bool = True
) -> jax.Array:
  """Scales the real entries to unit variance.

  `(x - mean) * rsqrt(var + 1e-8)` with the biased variance, as in Ziegler et
  al. 2019.

  Args:
    x: any shape.
    mask: shape of `x`, true = real.
    shift_mean: whether the result has mean 0 (advantages) or keeps the mean of
      `x` (rewards).

  Returns:
    Float32 of the shape of `x`, 0 on padding.
  """
  center = mean(x, mask)
  whitened = (zero_padding(x, mask) - center) * jax.lax.rsqrt(
      var(x, mask) + _WHITEN_EPS)
  if not shift_mean:
    whitened += center
  return zero_padding(whitened, mask)
