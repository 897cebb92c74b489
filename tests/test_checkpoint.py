"""Laws of checkpoints: what was saved comes back, or says why not."""

import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checkpoint, fingerprints, ppo_step, sharding, train_state
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
  state = ppo_step.init_state(
      tiny.params(tiny.policy()), tiny.params(tiny.scalar()),
      tx=tiny.adam(), critic_tx=tiny.adam(), kl_coef=0.05)
  state = _scrambled(state).replace(step=jnp.int32(3))
  return tiny.shard(state, mesh)


def _round_trip(folder, state, abstract):
  """A state saved as the stages do, and restored as `abstract`."""
  with checkpoint.Checkpoints(folder, keep=1) as saved:
    saved.save(3, train_state.to_items(state), {})
    items = saved.restore(train_state.to_items(abstract))
  return train_state.from_items(abstract, items)


def _on_one_device(shapes):
  """Abstract float32 arrays."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return {
      name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device)
      for name, shape in shapes.items()}


class RoundTripTest(parameterized.TestCase):

  @parameterized.product(
      written=("one_device", "all_axes"), read=("one_device", "fsdp"))
  def test_ppo_state_comes_back_on_any_mesh(self, written, read):
    state, _ = _ppo_state(tiny.use_mesh(written)[0])
    _, shardings = _ppo_state(tiny.use_mesh(read)[0])
    abstract = sharding.abstract_with(state, shardings)
    restored = _round_trip(_folder(self), state, abstract)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    self.assertEqual(sharding.shardings_of(restored), shardings)

  def test_train_state_comes_back(self):
    mesh, _ = tiny.use_mesh("fsdp")
    state = train_state.create(tiny.params(tiny.scalar()), tiny.adam())
    state = _scrambled(state).replace(step=jnp.int32(7))
    state, shardings = tiny.shard(state, mesh)
    restored = _round_trip(
        _folder(self), state, sharding.abstract_with(state, shardings))
    chex.assert_trees_all_equal(restored, state)
    self.assertEqual(sharding.shardings_of(restored), shardings)

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
    abstract = _on_one_device(shapes)
    with checkpoint.Checkpoints(folder, keep=1) as saved:
      saved.save(2, {"params": {"w": jnp.ones(4)}}, {})
      with self.assertRaisesRegex(
          checkpoint.CheckpointError, f"{folder}/2, item .{item}"):
        saved.restore({item: abstract})


class KeepTest(parameterized.TestCase):

  @parameterized.parameters(("max", [2, 4, 5]), ("min", [3, 4, 5]))
  def test_the_newest_and_the_best_are_kept(self, mode, kept):
    values = {1: 5.0, 2: 9.0, 3: 1.0, 4: 2.0, 5: None}
    with checkpoint.Checkpoints(
        _folder(self), keep=2, keep_best=(mode, "score")) as saved:
      for step, value in values.items():
        saved.save(step, {"params": {"w": jnp.ones(2)}}, {},
                   {} if value is None else {"score": value, "loss": -value})
      self.assertEqual(saved.finished_steps(), kept)

  def test_what_a_killed_save_left_is_removed(self):
    folder = _folder(self)
    with checkpoint.Checkpoints(folder, keep=1) as saved:
      saved.save(1, {"params": {"w": jnp.ones(2)}}, {})
    left = folder / "2.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    with checkpoint.Checkpoints(folder, keep=1) as saved:
      self.assertEqual(saved.latest_step, 1)
      saved.save(3, {"params": {"w": jnp.ones(2)}}, {})
      saved.wait()
      self.assertFalse(left.exists())
      left.mkdir()
    with checkpoint.Reader(folder) as reading:  # another may be writing
      self.assertEqual(reading.latest_step, 3)
    self.assertTrue(left.exists())


class DamageTest(parameterized.TestCase):
  """Bytes that change on the disk are noticed, and the way out is named."""

  def saved(self, steps=(1, 2, 3)):
    folder = _folder(self) / "ppo" / "checkpoints"
    rng = np.random.default_rng(0)
    with checkpoint.Checkpoints(folder, keep=9) as saved:
      for step in steps:
        tree = {"w": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
                "b": jnp.arange(3.0)}
        saved.save(step, {"params": tree, "ema": tree}, {"step": step})
    return folder

  def restore(self, folder, *names):
    abstract = _on_one_device({"w": (8, 8), "b": (3,)})
    with checkpoint.Reader(folder) as saved:
      return saved.restore(dict.fromkeys(names or ("params", "ema"), abstract))

  def test_a_missing_item(self):
    folder = self.saved()
    shutil.rmtree(folder / "3" / "ema")
    with self.assertRaisesRegex(
        checkpoint.DamagedError,
        r"3, item 'ema': the item is missing(.|\n)*newest older checkpoint "
        "that is whole is step 2. To go on from there remove "
        rf"{folder}/3, and"):
      self.restore(folder)
    self.restore(folder, "params")  # the others are as good as before

  @parameterized.parameters("params", "meta")
  def test_every_changed_byte_is_noticed_or_changes_nothing(self, item):
    """Of the files of an item one byte in seven is flipped, each alone."""
    folder = self.saved(steps=(1,))
    good = self.restore(folder)
    noticed = unchanged = 0
    for path in sorted((folder / "1" / item).rglob("*")):
      content = path.read_bytes() if path.is_file() else b""
      for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
          chex.assert_trees_all_equal(self.restore(folder), good)
          unchanged += 1
        except checkpoint.DamagedError as error:
          self.assertIn(f"{folder}/1, item {item!r}", str(error))
          self.assertIn("no older checkpoint that is whole", str(error))
          noticed += 1
      if content:
        path.write_bytes(content)
    self.assertGreater(noticed, 30)
    self.assertGreater(unchanged, 0)  # of notes that nothing depends on

  def test_every_truncated_file_is_noticed_or_changes_nothing(self):
    folder = self.saved(steps=(1,))
    good, noticed = self.restore(folder), 0
    for path in sorted((folder / "1" / "params").rglob("*")):
      if not path.is_file():
        continue
      content = path.read_bytes()
      for size in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        try:
          chex.assert_trees_all_equal(self.restore(folder), good)
        except checkpoint.DamagedError:
          noticed += 1
      path.write_bytes(content)
    self.assertGreater(noticed, 6)

  def test_steps_that_are_damaged_as_well_are_no_way_out(self):
    folder = self.saved()
    for step in ("2", "3"):
      shutil.rmtree(folder / step / "meta")
    with self.assertRaisesRegex(
        checkpoint.DamagedError,
        rf"is step 1. To go on from there remove {folder}/3, {folder}/2, and"):
      self.restore(folder)

  def test_nothing_is_taken_in_its_place(self):
    """Not until a person has removed what is damaged."""
    folder = self.saved()
    shutil.rmtree(folder / "3" / "params")
    for _ in range(2):
      with self.assertRaises(checkpoint.DamagedError):
        self.restore(folder)
    shutil.rmtree(folder / "3")
    self.restore(folder)


class FingerprintTest(parameterized.TestCase):

  @parameterized.parameters(
      "float32", "bfloat16", "int32", "uint8", "bool", "float16")
  def test_any_changed_entry_changes_it(self, dtype):
    x = np.zeros((3, 5), jnp.dtype(dtype))
    before = fingerprints.of({"x": jnp.asarray(x)})
    found = {before["x"]}
    for place in np.ndindex(x.shape):
      changed = x.copy()
      changed[place] = 1
      found.add(fingerprints.of({"x": jnp.asarray(changed)})["x"])
    self.assertLen(found, 1 + x.size)
    self.assertStartsWith(before["x"], f"{dtype}[3, 5] ")

  def test_signs_of_zero_and_nan_are_told_apart(self):
    values = [0.0, -0.0, np.nan, np.inf, -np.inf]
    found = {fingerprints.of({"x": jnp.float32(v)})["x"] for v in values}
    self.assertLen(found, len(values))

  @parameterized.parameters("data", "fsdp", "all_axes")
  def test_it_is_the_same_on_every_mesh(self, name):
    state, _ = _ppo_state(tiny.use_mesh("one_device")[0])
    other, _ = _ppo_state(tiny.use_mesh(name)[0])
    self.assertEqual(fingerprints.of(other), fingerprints.of(state))


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
