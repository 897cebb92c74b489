"""Any damage to a checkpoint: what was saved, or one message, and no more."""

import copy
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap

import chex
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import checkpoint
from tests.hostile.conftest import ACCEPTED, ANSWERED

_ROOT = pathlib.Path(__file__).parents[2]
# PPO's items, small: trees, scalars, and an array of two chunks' size.
_SHAPES = {
    "params": {"embed": {"kernel": (16, 8)}, "mlp": {"up": {"kernel": (8, 4)}}},
    "opt_state": {"mu": {"kernel": (16, 8)}, "count": ()},
    "counters": {"step": (), "skipped": ()},
}
_LIMIT = 20 * 2**30  # bytes of address space; JAX itself maps a lot
_SECONDS = 200


def _leaf(shape):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  dtype = jnp.float32 if shape else jnp.int32
  return jax.ShapeDtypeStruct(shape, dtype, sharding=device)


def abstract():
  return jax.tree.map(_leaf, _SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def _items(step):
  """What is saved at a step: no two entries are alike."""
  rng = np.random.default_rng(step)
  return jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(0, 1e3, leaf.shape), leaf.dtype),
      abstract())


def save_good(folder):
  with checkpoint.Checkpoints(folder, keep=9) as saved:
    for step in (1, 2):
      saved.save(step, _items(step), {
          "stage": "ppo", "step": step, "key": [0, 7],
          "streams": {"prompts": {"seed": 3, "epoch": 0}}})


@pytest.fixture(name="good", scope="module")
def _good(tmp_path_factory):
  folder = tmp_path_factory.mktemp("good") / "ppo" / "checkpoints"
  save_good(folder)
  return folder


def outcome(folder):
  """What restoring the newest step comes to; a message names the folder."""
  try:
    with checkpoint.Reader(folder) as saved:
      found = saved.restore(abstract())
      step = saved.latest_step
      assert saved.meta(step)["step"] == step
  except checkpoint.CheckpointError as error:
    assert str(folder) in str(error), str(error)
    assert str(error).replace("\n", " ").isprintable(), repr(str(error))
    return ANSWERED
  chex.assert_trees_all_equal(found, _items(step))
  return ACCEPTED


# -------------------------------------------------------------------- damages


def _files(folder):
  return sorted(path for path in folder.rglob("*")
                if path.is_file() and not path.is_symlink())


def _flip(path, draw, unused_files):
  data = bytearray(path.read_bytes())
  if data:
    data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
  path.write_bytes(data)


def _truncate(path, draw, unused_files):
  data = path.read_bytes()
  path.write_bytes(data[:draw(st.integers(0, len(data)))])


def _replace(path, draw, unused_files):
  path.write_bytes(draw(st.binary(max_size=100)))


def _swap(path, draw, files):
  other = draw(st.sampled_from(files))
  ours, theirs = path.read_bytes(), other.read_bytes()
  path.write_bytes(theirs)
  other.write_bytes(ours)


def _delete(path, draw, unused_files):
  if draw(st.booleans()):
    shutil.rmtree(path.parent)
  else:
    path.unlink()


def _folder_in_its_place(path, unused_draw, unused_files):
  path.unlink()
  path.mkdir()


def _file_in_its_folders_place(path, draw, unused_files):
  shutil.rmtree(path.parent)
  path.parent.write_bytes(draw(st.binary(max_size=9)))


def _link(path, draw, files):
  target = draw(st.sampled_from(
      ("/dev/zero", "/dev/null", "nowhere", path.name, "..", *map(str, files))))
  path.unlink()
  path.symlink_to(target)


def _pipe(path, unused_draw, unused_files):
  """Whoever opens it waits for ever."""
  path.unlink()
  os.mkfifo(path)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=5),
    st.sampled_from((
        -1, 0, 2**31, 2**63, 10**12, 10**400, [10**12], [0], [-1], {}, [], [[]],
        "jax.Array", "np.ndarray", "scalar", "string", "os.system",
        "orbax.checkpoint.type_handlers.ArrayHandler", "/etc/passwd", "../..",
        "float64", "<f8", "\udc80", "\0")))


def _places(tree, path=()):
  """The paths of all values in nested lists and objects."""
  children = (tree.items() if isinstance(tree, dict)
              else enumerate(tree) if isinstance(tree, list) else ())
  for key, value in children:
    yield (*path, key)
    yield from _places(value, (*path, key))


def _json(path):
  """The content of a file of JSON, {} where it is none."""
  try:
    return json.loads(path.read_bytes())
  except ValueError:
    return {}


def _change_json(path, draw, unused_files):
  tree = _json(path)
  if places := list(_places(tree)):
    *parents, last = draw(st.sampled_from(places))
    inside = tree
    for key in parents:
      inside = inside[key]
    inside[last] = draw(_VALUES)
    path.write_text(json.dumps(tree))


def _double_keys(path, draw, unused_files):
  tree = _json(path)
  if isinstance(tree, dict) and tree:
    key, text = draw(st.sampled_from(sorted(tree))), json.dumps(tree)
    path.write_text(f"{text[:-1]}, {json.dumps(key)}: "
                    f"{json.dumps(draw(_VALUES))}}}")


_DAMAGES = (_flip, _truncate, _replace, _swap, _delete, _folder_in_its_place,
            _file_in_its_folders_place, _link, _pipe, _change_json,
            _double_keys)


@st.composite
def damaged(draw, good, damages, names=""):
  """A copy of a good folder with one to three damages; the caller removes it.

  Args:
    good: the folder.
    damages: of which one is drawn each time.
    names: only files of which the name has this; "" for all.
  """
  folder = pathlib.Path(tempfile.mkdtemp()) / "ppo" / "checkpoints"
  shutil.copytree(good, folder)
  for _ in range(draw(st.integers(1, 3))):
    files = [path for path in _files(folder) if names in path.name]
    if files:
      draw(st.sampled_from(damages))(
          draw(st.sampled_from(files)), draw, files)
  return folder


def _law(folder):
  try:
    return outcome(folder)
  finally:
    shutil.rmtree(folder.parents[1])


@pytest.mark.parametrize(
    "damage", _DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage(attempt, good, damage):
  attempt(damaged(good, (damage,)), _law, 8)


def test_damages_together(attempt, good):
  attempt(damaged(good, _DAMAGES), _law, 20)


def test_what_is_good_is_taken(good):
  assert outcome(good) == ACCEPTED
