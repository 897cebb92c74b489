"""Any damage to a checkpoint: what was saved, or one message, and no more."""

import contextlib
import copy
import functools
import json
import operator
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import checkpoint, item_files
from tests.hostile import damage
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


def to_go_on(folder):
  """As a stage opens its own, which reads all steps' metrics."""
  return checkpoint.Checkpoints(folder, keep=9, keep_best=("max", "score"))


def save_good(folder):
  with to_go_on(folder) as saved:
    for step in (1, 2):
      saved.save(step, _items(step), {
          "stage": "ppo", "step": step, "key": [0, 7],
          "streams": {"prompts": {"seed": 3, "epoch": 0}}}, {"score": 1.0})


@pytest.fixture(name="good", scope="module")
def _good(tmp_path_factory):
  folder = tmp_path_factory.mktemp("good") / "ppo" / "checkpoints"
  save_good(folder)
  return folder


def outcome(folder, opened=checkpoint.Reader):
  """What restoring the newest step comes to; a message names the folder."""
  try:
    with opened(folder) as saved:
      found = saved.restore(abstract())
      step = saved.latest_step
      assert saved.meta(step)["step"] == step
  except checkpoint.CheckpointError as error:
    assert str(folder) in str(error), str(error)
    assert str(error).replace("\n", " ").isprintable(), repr(str(error))
    return ANSWERED
  chex.assert_trees_all_equal(found, _items(step))
  return ACCEPTED


def _law(folder, opened=checkpoint.Reader):
  try:
    return outcome(folder, opened)
  finally:
    shutil.rmtree(folder.parents[1])


@pytest.mark.parametrize(
    "kind", damage.ALL, ids=lambda kind: kind.__name__.strip("_"))
def test_damage(attempt, good, kind):
  attempt(damage.damaged(good, (kind,)), _law, 8)


def test_damages_together(attempt, good):
  attempt(damage.damaged(good, damage.ALL), _law, 20)


def test_damages_before_a_run_goes_on(attempt, good):
  attempt(damage.damaged(good, damage.ALL),
          lambda folder: _law(folder, to_go_on), 20)


@pytest.mark.parametrize("item", _SHAPES)
def test_an_item_of_another_step(good, tmp_path, item):
  """Whole and readable in all its files: only its content tells."""
  folder = tmp_path / "checkpoints"
  shutil.copytree(good, folder)
  shutil.rmtree(folder / "2" / item)
  shutil.copytree(good / "1" / item, folder / "2" / item)
  assert outcome(folder) == ANSWERED


def test_what_is_good_is_taken(good):
  assert outcome(good) == ACCEPTED


# ---------------------------------------------------- crafted, not only damaged


def _seal(content):
  """`meta` as somebody would write it who knows how."""
  return json.dumps(item_files.sealed(content))


def _crafted(content):
  nested = "[" * 400 + "]" * 400
  arrays = content["arrays"]
  without = {k: v for k, v in content.items() if k != "arrays"}
  return {
      "no arrays": _seal(without),
      "arrays of a list": _seal(content | {"arrays": [1]}),
      "items of a list": _seal(content | {"arrays": {"params": [1]}}),
      "fingerprints of numbers": _seal(
          content | {"arrays": arrays | {"params": {"embed": 1}}}),
      "fingerprints without a kind": _seal(content | {"arrays": arrays | {
          "params": dict.fromkeys(arrays["params"], "")}}),
      "an item's name is a path": _seal(
          content | {"arrays": {"../../../etc": {}}}),
      "huge shapes": _seal(content | {"arrays": arrays | {
          "params": dict.fromkeys(
              arrays["params"], "float32[1000000000000] 00")}}),
      "as deep as a digest can be": _seal(content | {
          "stage": json.loads("[" * 300 + "]" * 300)}),
      "a wrong digest": _seal(content).replace('"sha256": "', '"sha256": "0'),
      "a digest that is no text": json.dumps(
          {"content": content, "sha256": 10**400}),
      "deep": f'{{"content": {nested}, "sha256": ""}}',
      "deeper": "[" * 100_000 + "]" * 100_000,
      "a long number": f'{{"content": {"9" * 5000}, "sha256": ""}}',
      "a lone surrogate": _seal(content | {"\udc80": "\ud800"}).replace(
          '"sha256": "', '"sha256": "0'),
      "control characters": _seal(content | {
          "arrays": {"\x1b[2J\x07\n": {}}}),
      "content of null": json.dumps(item_files.sealed({}) | {"content": None}),
      "a list": "[]", "a number": "1", "nothing": "", "two": "{}{}",
  }


def test_crafted_meta(good, tmp_path, account):
  meta = pathlib.PurePath("2", "meta", "metadata")
  content = json.loads((good / meta).read_text())["content"]
  texts = _crafted(content)
  for number, (name, text) in enumerate(texts.items()):
    folder = tmp_path / str(number) / "checkpoints"
    shutil.copytree(good, folder)
    (folder / meta).write_text(text)
    assert outcome(folder) == ANSWERED, name
  account("crafted meta", tried=len(texts), accepted=0, answered=len(texts))


# In a process of its own, for a limit of its memory and of its time.
_HUGE = textwrap.dedent("""
    import json, pathlib, resource, shutil, sys, time
    from tests.hostile import test_checkpoints as t

    good, folder = map(pathlib.Path, sys.argv[1:])
    t.save_good(good)
    assert t.outcome(good) == t.ACCEPTED
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (t._LIMIT, t._LIMIT))
    counts = {"accepted": 0, "answered": 0}
    for number, (path, place, value) in enumerate(t.huge_numbers(good)):
      copied = folder / str(number) / "checkpoints"
      shutil.copytree(good, copied)
      tree = t.damage.read_json(copied / path)
      t.damage.put(tree, place, value)
      (copied / path).write_text(json.dumps(tree))
      started = time.monotonic()
      counts[t.outcome(copied)] += 1
      assert time.monotonic() - started < 30, (path, place, value)
      shutil.rmtree(copied.parent)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(counts | {"tried": number + 1, "grown": after - before}))
""")


def _at(tree, place):
  return functools.reduce(operator.getitem, place, tree)


def huge_numbers(folder):
  """(file, path in its JSON, number) for numbers in the newest step's notes."""
  for path in damage.files_of(folder / "2"):
    tree = damage.read_json(path)
    for place in damage.places(tree):
      if isinstance(_at(tree, place), int):
        yield path.relative_to(folder), place, 10**12


def test_huge_numbers_take_no_memory(tmp_path, account):
  ended = subprocess.run(
      [sys.executable, "-c", _HUGE, str(tmp_path / "good"),
       str(tmp_path / "copies")],
      cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
      capture_output=True, text=True, timeout=_SECONDS, check=False)
  assert ended.returncode == 0, ended.stderr[-3000:]
  counts = json.loads(ended.stdout.splitlines()[-1])
  assert counts.pop("grown") < 200_000, counts  # kB
  assert counts["answered"] > 10
  account("huge numbers in a checkpoint", **counts)


# -------------------------------------------------------------- nothing is run


_EVENTS = ("pickle.find_class", "exec", "compile", "import", "os.system",
           "os.exec", "os.posix_spawn", "subprocess.Popen", "os.remove",
           "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.symlink")
_seen, _watching = set(), False


def _hook(event, arguments):
  """Stays for the life of the process: Python has no way to remove it."""
  if not _watching:
    return
  if event in _EVENTS:
    _seen.add(f"{event} {arguments!r:.150}")
  if event == "open" and isinstance(arguments[2], int) and arguments[2] & (
      os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
    _seen.add(f"open for writing {arguments[0]!r}")


@contextlib.contextmanager
def _watched():
  """The set of what is run, removed or written meanwhile."""
  global _watching
  _seen.clear()
  _watching = True
  try:
    yield _seen
  finally:
    _watching = False


_HANDLERS = (
    "os.system", "builtins.eval", "tests.hostile.crafted.run",
    "subprocess.Popen",
    "orbax.checkpoint._src.handlers.pytree_checkpoint_handler."
    "PyTreeCheckpointHandler")


def _notes(good):
  """(file, its JSON with other types or handlers named in it)."""
  for path in damage.files_of(good / "2"):
    tree = damage.read_json(path)
    for place in list(damage.places(tree)):
      if isinstance(_at(tree, place), str):
        for name in _HANDLERS:
          changed = copy.deepcopy(tree)
          damage.put(changed, place, name)
          yield path.relative_to(good), changed


def test_no_name_in_a_note_is_run(good, tmp_path, account):
  sys.addaudithook(_hook)
  for _ in range(2):  # what imports or compiles at first does so now
    assert outcome(good) == ACCEPTED
  with _watched() as usual:
    outcome(good)
    usual = set(usual)
  counts = dict(tried=0, accepted=0, answered=0)
  changes = list(_notes(good))
  for path, tree in changes[::max(1, len(changes) // 40)]:
    folder = tmp_path / str(counts["tried"]) / "checkpoints"
    shutil.copytree(good, folder)
    (folder / path).write_text(json.dumps(tree))
    before = sorted(folder.rglob("*"))
    with _watched() as seen:
      counts[outcome(folder)] += 1
      found = {event for event in seen - usual
               if not _is_harmless(event)}
    assert not found, (path, tree, found)
    assert sorted(folder.rglob("*")) == before
    counts["tried"] += 1
  with _watched() as seen:
    eval("1")  # would be seen
    (tmp_path / "written").write_text("")
    assert len(seen) >= 2
  account("names in a checkpoint's notes", **counts)


def _is_harmless(event):
  """What the libraries import late, by names of their own."""
  return event.startswith("import ") and "hostile" not in event
