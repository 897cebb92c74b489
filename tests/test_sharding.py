"""Laws of placement: one table, every array in it, each device its part."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from experiments import ppo_ptx
from rlhf_jax import (
    optimizer, ppo_step, rollout, run, sharding, train_state, tree,
)
from rlhf_jax.models import scalar
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.trainers import ppo
from tests import tiny

# Path of a parameter -> how each of its axes is cut: "wide" ones of the model's
# width, "split" ones of its heads, its hidden layer and its vocabulary.
BLOCK = {
    "attention/qkv_kernel": (None, "wide", "split"),
    "attention/qkv_bias": (None, "split"),
    "attention/out_kernel": (None, "split", None, "wide"),
    "attention/out_bias": (),
    "attention_norm/scale": (),
    "attention_norm/bias": (),
    "mlp/up_kernel": (None, "wide", "split"),
    "mlp/up_bias": (None, "split"),
    "mlp/down_kernel": (None, "split", "wide"),
    "mlp/down_bias": (),
    "mlp_norm/scale": (),
    "mlp_norm/bias": (),
}
TRANSFORMER = {
    "token_embedding/embedding": ("split", "wide"),
    "position_embedding/embedding": (None, "wide"),
    **{f"blocks/{name}": axes for name, axes in BLOCK.items()},
    "final_norm/scale": (),
    "final_norm/bias": (),
}
TABLE = {
    **{f"transformer/{name}": axes for name, axes in TRANSFORMER.items()},
    "head/kernel": ("wide",),
    "head/bias": (),
}
# Kind of axis rules, as in tiny.RULES and DECODE_RULES -> mesh axes of the two.
CUTS = {
    "small": {"wide": ("fsdp",), "split": ("tensor",)},
    "large": {"wide": ("data", "fsdp"), "split": ("tensor",)},
    "large decode": {"wide": (), "split": ("fsdp", "tensor")},
}
KINDS = {**tiny.RULES, "large decode": tiny.DECODE_RULES["large"]}
# All that is cut divides over eight.
POLICY, SCALAR = tiny.policy(num_heads=8), tiny.scalar(num_heads=8)


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
      ppo_step.init_state, tx=tiny.adam(), critic_tx=tiny.adam(), kl_coef=0.05)
  return init, tiny.params(POLICY), tiny.params(SCALAR)


def _states():
  """Every state there is."""
  init, policy, critic = _ppo_state()
  return {
      "ppo": init(policy, critic),
      "frozen": ppo_step.Frozen(reference=policy, reward_model=critic),
      "lm": train_state.create(policy, tiny.adam()),
      "rm": train_state.create(critic, tiny.adam()),
  }


def _expected_shard(path, leaf, mesh, kind):
  """The shape of a device's part, by TABLE and CUTS alone."""
  if leaf.ndim == 0:
    return ()
  # moments and averages end as the path of their parameter does
  [cuts] = [cuts for end, cuts in TABLE.items() if path.endswith("/" + end)]
  cuts += (None,) * (leaf.ndim - len(cuts))
  return tuple(
      size // math.prod(mesh.shape[axis] for axis in CUTS[kind].get(cut, ()))
      for size, cut in zip(leaf.shape, cuts))


class TableTest(parameterized.TestCase):

  def test_of_every_parameter(self):
    mesh, _ = tiny.use_mesh("all_axes")
    found = {}
    for model in (POLICY, SCALAR):
      _, shardings = tiny.shard(tiny.params(model), mesh)
      found |= {
          name: _trim(s.spec) for name, s in zip(
              tree.names(shardings), jax.tree.leaves(shardings))}
    mesh_axis = {"wide": "fsdp", "split": "tensor"}
    self.assertEqual(found, {
        name: tuple(mesh_axis.get(cut) for cut in cuts)
        for name, cuts in TABLE.items()})

  @parameterized.product(name=tuple(tiny.MESHES), kind=tuple(KINDS))
  def test_shards_of_every_array_of_every_state(self, name, kind):
    mesh, num_large = tiny.make_mesh(name), 0
    for what, state in _states().items():
      placed, _ = tiny.shard(state, mesh, KINDS[kind])
      for path, leaf in zip(tree.names(placed), jax.tree.leaves(placed)):
        expected = _expected_shard(path, leaf, mesh, kind)
        self.assertEqual(
            leaf.addressable_shards[0].data.shape, expected, (what, path))
        self.assertLen(leaf.addressable_shards, mesh.size)
        num_large += leaf.nbytes > 1000
    # six a model; ppo has a policy with two moments and an average, a critic
    # with two, frozen has two models, lm and rm one with two moments each
    self.assertEqual(num_large, 6 * (7 + 2 + 3 + 3))

  def test_a_state_is_created_in_its_shards(self):
    mesh = tiny.make_mesh("all_axes")
    state, shardings = sharding.init_sharded(
        _ppo_state()[0], mesh, tiny.RULES["large"], *_ppo_state()[1:])
    self.assertEqual(sharding.shardings_of(state), shardings)
    for path, leaf in zip(tree.names(state), jax.tree.leaves(state)):
      self.assertEqual(
          leaf.addressable_shards[0].data.shape,
          _expected_shard(path, leaf, mesh, "large"), path)

  @parameterized.product(name=tuple(tiny.MESHES), kind=tuple(tiny.DECODE_RULES))
  def test_shards_of_caches(self, name, kind):
    mesh, config = tiny.make_mesh(name), POLICY.config
    data, fsdp, tensor = tiny.MESHES[name]
    with sharding.use(mesh, tiny.DECODE_RULES[kind]):
      caches = jax.jit(lambda: rollout.empty_caches(config, 16, 32))()
    batch, heads = (
        (data * fsdp, tensor) if kind == "small" else (data, fsdp * tensor))
    for cache in jax.tree.leaves(caches):
      self.assertEqual(cache.shape, (16, 8, 32, 2))
      self.assertGreater(cache.nbytes, 1000)
      self.assertEqual(
          cache.addressable_shards[0].data.shape,
          (16 // batch, 8 // heads, 32, 2))

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

  def test_mesh_axes_can_be_kept_for_a_later_axis(self):
    """As an embedding's width is, while its rows are looked up."""
    spec = lambda *logical: sharding.spec_for(
        logical, tiny.AXIS_RULES, first="embed")
    self.assertEqual(
        spec("batch", "length", "embed"), PartitionSpec("data", None, "fsdp"))
    self.assertEqual(spec("batch", "length"), PartitionSpec("data", None))


class MemoryTest(parameterized.TestCase):

  def test_eight_devices_hold_an_eighth_of_the_main_run(self):
    """Each at most a sixth: biases and scales are on every device."""
    tiny.in_a_hurry(self)
    config = ppo_ptx.get_config("mini")
    mesh = sharding.make_mesh(**config.mesh)
    self.assertEqual(dict(mesh.shape), {"data": 1, "fsdp": 8, "tensor": 1})
    policy, critic = (
        make(run.transformer_config(config[name], 0.0))
        for make, name in ((Policy, "model"), (Scalar, "rm_model")))
    settings = ppo_step.PPOSettings(**config.ppo.method, eos_id=0)
    tx, critic_tx = ppo.make_optimizers(config.ppo, settings)

    def frozen(key):
      return ppo_step.Frozen(reference=run.init_params(policy, key),
                        reward_model=run.init_params(critic, key))

    def ppo_state(models):
      return ppo_step.init_state(
          models.reference, models.reward_model, tx=tx, critic_tx=critic_tx,
          kl_coef=settings.kl_coef)

    def train(stage):
      return functools.partial(
          train_state.create,
          tx=optimizer.cosine_adam(100, **config[stage].optimizer))

    init = lambda start, given: sharding.init_sharded(
        start, mesh, config.axis_rules, given)[0]
    models = init(frozen, jax.random.key(0))
    for what, state in {
        "frozen": models,
        "ppo": init(ppo_state, models),
        "lm": init(train("sft"), models.reference),
        "rm": init(train("rm"), models.reward_model),
    }.items():
      leaves = jax.tree.leaves(state)
      whole = sum(x.nbytes for x in leaves)
      self.assertGreater(whole, 7e6)
      for device in range(8):
        held = sum(x.addressable_shards[device].data.nbytes for x in leaves)
        self.assertLess(held, whole / 6, what)


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
      placed = jax.jit(double)(x)
    self.assertEqual(placed.addressable_shards[0].data.shape, (2, 8))
    np.testing.assert_array_equal(placed, alone)
    self.assertEqual(placed.sharding.mesh.shape, mesh.shape)

  def test_in_place_keeps_shards_and_takes_buffers(self):
    mesh = tiny.make_mesh("all_axes")
    given, shardings = tiny.shard(tiny.params(SCALAR), mesh)
    kernel = np.asarray(given["head"]["kernel"])
    half = functools.partial(scalar.shift_and_scale, bias=0.0, scale=0.5)
    found = sharding.in_place(half, given)
    self.assertEqual(sharding.shardings_of(found), shardings)
    np.testing.assert_allclose(found["head"]["kernel"], kernel / 2, rtol=1e-6)
    for leaf in jax.tree.leaves(given):
      self.assertTrue(leaf.is_deleted())

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
