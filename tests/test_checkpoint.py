"""Laws of checkpoints: what was saved comes back, or says why not."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checkpoint, sharding, train_state
from rlhf_jax.trainers import ppo
from tests import tiny


def _folder(test) -> pathlib.Path:
  return pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))


def _scrambled(tree):
  """A tree of the same shapes, every entry another number."""
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(treedef, [
      jnp.asarray(rng.normal(0, 100, x.shape), x.dtype) for x in leaves])


def _ppo_state(mesh):
  """(a state in which no two numbers are alike, its shardings)."""
  state = ppo.init_state(
      tiny.params(tiny.policy()), tiny.params(tiny.scalar()),
      tx=tiny.adam(), critic_tx=tiny.adam(), kl_coef=0.05)
  state = _scrambled(state).replace(step=jnp.int32(3))
  return tiny.shard(state, mesh)


class RoundTripTest(parameterized.TestCase):

  @parameterized.product(
      written=("one_device", "all_axes"), read=("one_device", "fsdp"))
  def test_ppo_state_comes_back_on_any_mesh(self, written, read):
    state, _ = _ppo_state(tiny.use_mesh(written)[0])
    _, shardings = _ppo_state(tiny.use_mesh(read)[0])
    abstract = sharding.abstract_with(state, shardings)
    with checkpoint.Checkpoints(_folder(self), keep=1) as saved:
      ppo.save(saved, 3, state)
      restored, found = ppo.restore(saved, abstract)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    self.assertEqual(sharding.shardings_of(restored), shardings)
    self.assertEqual(found, shardings)

  def test_train_state_comes_back(self):
    mesh, _ = tiny.use_mesh("fsdp")
    state = train_state.create(tiny.params(tiny.scalar()), tiny.adam())
    state = _scrambled(state).replace(step=jnp.int32(7))
    state, shardings = tiny.shard(state, mesh)
    with checkpoint.Checkpoints(_folder(self), keep=1) as saved:
      train_state.save(saved, 7, state)
      restored, found = train_state.restore(
          saved, sharding.abstract_with(state, shardings))
    chex.assert_trees_all_equal(restored, state)
    self.assertEqual(sharding.shardings_of(restored), shardings)
    self.assertEqual(found, shardings)

  def test_one_item_alone_and_the_newest(self):
    folder = _folder(self) / "sft" / "checkpoints"
    trees = [{"w": jnp.full(4, float(step))} for step in range(4)]
    with checkpoint.Checkpoints(folder, keep=2) as saved:
      self.assertEqual(saved.latest_step, 0)
      for step in (1, 2, 3):
        saved.save(step, {"params": trees[step], "ema": trees[0]}, {})
    abstract = sharding.abstract_with(
        trees[0], {"w": jax.sharding.SingleDeviceSharding(jax.devices()[0])})
    restored = checkpoint.restore_item(folder, "params", abstract)
    chex.assert_trees_all_equal(restored, trees[3])
    with checkpoint.Checkpoints(folder, keep=2) as saved:
      self.assertEqual(saved.latest_step, 3)
    steps = {p.name for p in folder.iterdir() if p.name.isdigit()}
    self.assertEqual(steps, {"2", "3"})


class MessageTest(parameterized.TestCase):

  def test_stage_that_never_ran(self):
    folder = _folder(self) / "sft" / "checkpoints"
    with self.assertRaisesRegex(
        checkpoint.CheckpointError, "run the stage 'sft' first.*inputs.sft"):
      checkpoint.restore_item(folder, "params", {})

  def test_no_checkpoint(self):
    folder = _folder(self)
    with checkpoint.Checkpoints(folder, keep=1) as saved:
      with self.assertRaisesRegex(
          checkpoint.CheckpointError, f"no checkpoint in {folder}"):
        saved.restore({"params": {}})

  @parameterized.parameters(
      ("params", {"w": (5,)}),  # another size
      ("params", {"w": (4,), "b": (4,)}),  # a parameter too many
      ("params", {"v": (4,)}),  # another name
      ("critic", {"w": (4,)}))  # another item
  def test_what_does_not_fit_names_the_folder(self, item, shapes):
    folder = _folder(self)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device)
        for name, shape in shapes.items()}
    with checkpoint.Checkpoints(folder, keep=1) as saved:
      saved.save(2, {"params": {"w": jnp.ones(4)}}, {})
      with self.assertRaisesRegex(
          checkpoint.CheckpointError, f"{folder}, step 2.*{item}"):
        saved.restore({item: abstract})


class JsonTest(parameterized.TestCase):

  def test_done_round_trip(self):
    folder = _folder(self)
    self.assertIsNone(checkpoint.read_done(folder))
    checkpoint.write_done(folder / "sft", {"figures": {"loss": 0.5}})
    self.assertEqual(
        checkpoint.read_done(folder / "sft"), {"figures": {"loss": 0.5}})

  def test_is_written_whole_or_not_at_all(self):
    path = epath.Path(_folder(self)) / "new" / "state.json"
    checkpoint.write_json(path, {"step": 1})

    def half(self, text):
      pathlib.Path(self).write_bytes(text[:5].encode())
      raise KeyboardInterrupt

    with mock.patch.object(type(path), "write_text", half):
      with self.assertRaises(KeyboardInterrupt):
        checkpoint.write_json(path, {"step": 2})
    self.assertEqual(json.loads(path.read_text()), {"step": 1})
    checkpoint.write_json(path, {"step": 3})
    self.assertEqual(json.loads(path.read_text()), {"step": 3})
    self.assertEqual([p.name for p in path.parent.iterdir()], ["state.json"])


if __name__ == "__main__":
  absltest.main()
