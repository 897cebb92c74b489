"""What arrays hold, in 64 bits each, wherever their shards lie.

A fingerprint is a sum of integers over all entries, so neither the mesh nor
the number of processes changes it; a changed entry always does.
"""

from collections.abc import Iterable
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import tree as tree_lib

_SEEDS = (0x243F6A88, 0x85A308D3)  # of the two halves of a fingerprint


def of(tree: chex.ArrayTree) -> dict[str, str]:
  """Leaf name -> "dtype[shape] fingerprint"; all processes call it."""
  leaves = jax.tree.leaves(tree)
  if not leaves:
    return {}
  halves = jax.device_get(_jitted(leaves[0].sharding)(leaves))
  return {
      name: f"{kind} {first:08x}{second:08x}"
      for (name, kind), (first, second) in zip(
          kinds(tree).items(), np.asarray(halves), strict=True)}


def kinds(tree: chex.ArrayTree) -> dict[str, str]:
  """Leaf name -> "dtype[shape]"; leaves may be abstract."""
  return {
      name: f"{leaf.dtype}{list(leaf.shape)}"
      for name, leaf in zip(
          tree_lib.names(tree), jax.tree.leaves(tree), strict=True)}


@functools.lru_cache(maxsize=8)
def _jitted(sharding: jax.sharding.Sharding):
  """`_sums` for arrays on the devices of `sharding`, known to all processes."""
  mesh = getattr(sharding, "mesh", None)
  everywhere = mesh and jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec())
  return jax.jit(_sums, out_shardings=everywhere)


def _sums(leaves: Iterable[jax.Array]) -> jax.Array:
  """uint32 [leaves, 2]."""
  return jnp.stack([
      jnp.stack([_sum(_lanes(leaf), seed) for seed in _SEEDS])
      for leaf in leaves])


def _lanes(x: jax.Array) -> jax.Array:
  """The bits of an array as uint32, a lane or (of 8 bytes) two an entry."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  size = min(x.dtype.itemsize, 4)
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * size}"))
  return bits.astype(jnp.uint32)


def _sum(lanes: jax.Array, seed: int) -> jax.Array:
  """Sums a mix of every lane with its place, modulo 2^32.

  For any place the mix maps different lanes to different numbers, so one
  changed lane changes the sum.
  """
  place = jnp.full(lanes.shape, np.uint32(seed))
  for axis in range(lanes.ndim):
    stride = math.prod(lanes.shape[axis + 1:]) * 0x9E3779B1 % 2**32
    place += jax.lax.broadcasted_iota(
        jnp.uint32, lanes.shape, axis) * np.uint32(stride)
  mixed = lanes ^ place
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
