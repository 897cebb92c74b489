"""Laws of placement: one table, every array in it, each device its part."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import sharding, tree
from rlhf_jax.trainers import ppo
from tests import tiny

# Path of a parameter -> the mesh axis over which each of its axes is cut.
BLOCK = {
    "attention/qkv_kernel": (None, "fsdp", "tensor"),
    "attention/qkv_bias": (None, "tensor"),
    "attention/out_kernel": (None, "tensor", None, "fsdp"),
    "attention/out_bias": (),
    "attention_norm/scale": (),
    "attention_norm/bias": (),
    "mlp/up_kernel": (None, "fsdp", "tensor"),
    "mlp/up_bias": (None, "tensor"),
    "mlp/down_kernel": (None, "tensor", "fsdp"),
    "mlp/down_bias": (),
    "mlp_norm/scale": (),
    "mlp_norm/bias": (),
}
TRANSFORMER = {
    "token_embedding/embedding": ("tensor", "fsdp"),
    "position_embedding/embedding": (None, "fsdp"),
    **{f"blocks/{name}": axes for name, axes in BLOCK.items()},
    "final_norm/scale": (),
    "final_norm/bias": (),
}
TABLE = {
    **{f"transformer/{name}": axes for name, axes in TRANSFORMER.items()},
    "head/kernel": ("fsdp",),
    "head/bias": (),
}


def _trim(spec):
  """A PartitionSpec as a tuple without the Nones at its end."""
  axes = tuple(spec)
  while axes and axes[-1] is None:
    axes = axes[:-1]
  return axes


@functools.cache
def _ppo_state():
  """A function that builds the largest state there is, and its arguments."""
  init = functools.partial(
      ppo.init_state, tx=tiny.adam(), critic_tx=tiny.adam(), kl_coef=0.05)
  return init, tiny.params(tiny.policy()), tiny.params(tiny.scalar())


class TableTest(parameterized.TestCase):

  def test_of_every_parameter(self):
    mesh, _ = tiny.use_mesh("all_axes")
    found = {}
    for model in (tiny.policy(), tiny.scalar()):
      _, shardings = tiny.shard(tiny.params(model), mesh)
      found |= {
          name: _trim(s.spec) for name, s in zip(
              tree.names(shardings), jax.tree.leaves(shardings))}
    self.assertEqual(found, TABLE)

  @parameterized.parameters("data", "fsdp", "all_axes")
  def test_shards_of_every_array_of_a_state(self, name):
    mesh, _ = tiny.use_mesh(name)
    state, _ = sharding.init_sharded(
        _ppo_state()[0], mesh, tiny.AXIS_RULES, *_ppo_state()[1:])
    paths, leaves = tree.names(state), jax.tree.leaves(state)
    num_large = 0
    for path, leaf in zip(paths, leaves):
      # moments and averages end as the path of their parameter does
      axes = next(
          (axes for end, axes in TABLE.items() if path.endswith("/" + end)),
          None)
      if leaf.ndim == 0:
        axes = ()
      self.assertIsNotNone(axes, path)
      axes += (None,) * (leaf.ndim - len(axes))
      expected = tuple(
          size // (mesh.shape[axis] if axis else 1)
          for size, axis in zip(leaf.shape, axes))
      self.assertEqual(
          leaf.addressable_shards[0].data.shape, expected, path)
      self.assertLen(leaf.addressable_shards, 8)
      if leaf.nbytes > 1000:
        num_large += 1
        is_whole = math.prod(expected) == leaf.size
        self.assertEqual(is_whole, name == "data", path)
    # six a model: policy with two moments and an average, critic with two
    self.assertEqual(num_large, 6 * 7)

  def test_decoding_takes_blocks_out_of_their_stack(self):
    self.assertEqual(
        sharding.logical_axes("blocks/mlp/up_kernel", 3),
        ("layers", "embed", "mlp"))
    self.assertEqual(
        sharding.logical_axes("mlp/up_kernel", 2), ("embed", "mlp"))
    with self.assertRaisesRegex(ValueError, "mlp/up_kernel.*1 axes"):
      sharding.logical_axes("mlp/up_kernel", 1)

  def test_unknown_path_raises(self):
    mesh, _ = tiny.use_mesh("fsdp")
    params = {"mlp": {"sideways_kernel": jnp.zeros((2, 16, 64))}}
    with self.assertRaisesRegex(ValueError, "mlp/sideways_kernel.*PARAM_RULES"):
      sharding.shardings_for(params, mesh, tiny.AXIS_RULES)

  def test_axis_that_does_not_divide_raises(self):
    mesh, _ = tiny.use_mesh("fsdp")
    params = {"mlp": {"up_kernel": jnp.zeros((2, 12, 64))}}
    with self.assertRaisesRegex(
        ValueError, r"mlp/up_kernel.*\(2, 12, 64\).*12.*fsdp.*8 devices"):
      sharding.shardings_for(params, mesh, tiny.AXIS_RULES)


class NamesTest(parameterized.TestCase):

  def test_misspelt_rule_raises(self):
    mesh, _ = tiny.use_mesh("fsdp")
    rules = (("batch", "fsdp"), ("embedd", "fsdp"))
    with self.assertRaisesRegex(ValueError, "embedd"):
      with sharding.use(mesh, rules):
        pass
    with self.assertRaisesRegex(ValueError, "embedd"):
      sharding.spec_for(("batch", "embedd"), tiny.AXIS_RULES)

  @parameterized.parameters(True, False)
  def test_misspelt_activation_raises_with_and_without_mesh(self, has_mesh):
    _, mesh_in_use = tiny.use_mesh("fsdp")
    constrain = lambda: sharding.constrain(jnp.ones((8, 2)), "bacth", None)
    with self.assertRaisesRegex(ValueError, "bacth"):
      if has_mesh:
        with mesh_in_use:
          constrain()
      constrain()

  def test_activation_needs_a_name_an_axis(self):
    with self.assertRaisesRegex(ValueError, r"\(8, 2\)"):
      sharding.constrain(jnp.ones((8, 2)), "batch")

  def test_mesh_axis_is_used_once(self):
    self.assertEqual(
        sharding.spec_for(("batch", "length", "embed"), tiny.AXIS_RULES),
        PartitionSpec(("data", "fsdp"), None, None))
    self.assertEqual(
        sharding.spec_for(("vocab", "embed"), tiny.AXIS_RULES),
        PartitionSpec("tensor", "fsdp"))


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(
      ((1, -1, 1), (1, 8, 1)), ((-1, 2, 2), (2, 2, 2)), ((2, 4, 1), (2, 4, 1)))
  def test_one_size_may_be_the_rest(self, sizes, expected):
    data, fsdp, tensor = sizes
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    self.assertEqual(tuple(mesh.shape.values()), expected)

  @parameterized.parameters(
      ((2, 2, 1), "needs 4 devices, but 8"),
      ((3, -1, 1), "needs 6 devices, but 8"),
      ((-1, -1, 1), "at most one is -1"),
      ((0, 8, 1), "sizes are positive"))
  def test_wrong_sizes_raise(self, sizes, message):
    data, fsdp, tensor = sizes
    with self.assertRaisesRegex(ValueError, message):
      sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


class PlacementTest(parameterized.TestCase):

  @parameterized.parameters(("fsdp", 8), ("all_axes", 4))
  def test_batch_is_cut_over_its_axes(self, name, num_parts):
    mesh, _ = tiny.use_mesh(name)
    self.assertEqual(
        sharding.batch_shards(mesh.shape, tiny.AXIS_RULES), num_parts)
    rows = np.arange(48).reshape(16, 3)
    placed = sharding.put_batch({"x": rows}, mesh, tiny.AXIS_RULES)["x"]
    np.testing.assert_array_equal(placed, rows)
    shards = {s.index[0].indices(16)[:2] for s in placed.addressable_shards}
    self.assertLen(shards, num_parts)
    for shard in placed.addressable_shards:
      np.testing.assert_array_equal(shard.data, rows[shard.index])

  def test_constrain_acts_under_a_mesh_only(self):
    mesh, mesh_in_use = tiny.use_mesh("all_axes")
    double = lambda x: sharding.constrain(2 * x, "batch", "mlp")
    x = jnp.ones((8, 16))
    alone = jax.jit(double)(x)
    self.assertLen(alone.addressable_shards, 1)
    with mesh_in_use:
      placed = jax.jit(lambda x: double(x))(x)
    self.assertEqual(placed.addressable_shards[0].data.shape, (2, 8))
    np.testing.assert_array_equal(placed, alone)
    self.assertEqual(placed.sharding.mesh.shape, mesh.shape)

  def test_start_does_not_depend_on_the_mesh(self):

    def init(key):
      return {"mlp": {"up_kernel": jax.random.normal(key, (2, 16, 64))},
              "step": jnp.zeros((), jnp.int32)}

    starts = []
    for name in tiny.MESHES:
      mesh, _ = tiny.use_mesh(name)
      state, shardings = sharding.init_sharded(
          init, mesh, tiny.AXIS_RULES, jax.random.key(0))
      self.assertEqual(
          state["mlp"]["up_kernel"].sharding, shardings["mlp"]["up_kernel"])
      starts.append(np.asarray(state["mlp"]["up_kernel"]))
    for start in starts[1:]:
      np.testing.assert_array_equal(start, starts[0])


if __name__ == "__main__":
  absltest.main()
