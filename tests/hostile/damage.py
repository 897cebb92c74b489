"""Damages to a checkpoint's files, as Hypothesis draws them."""

import json
import os
import pathlib
import shutil
import tempfile

from hypothesis import strategies as st


def files_of(folder):
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
      # Reading the first would never end.
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


def places(tree, path=()):
  """The paths of all values in nested lists and objects."""
  children = (tree.items() if isinstance(tree, dict)
              else enumerate(tree) if isinstance(tree, list) else ())
  for key, value in children:
    yield (*path, key)
    yield from places(value, (*path, key))


def read_json(path):
  """The content of a file of JSON, {} where it is none."""
  try:
    return json.loads(path.read_bytes())
  except ValueError:
    return {}


def _change_json(path, draw, unused_files):
  tree = read_json(path)
  if found := list(places(tree)):
    put(tree, draw(st.sampled_from(found)), draw(_VALUES))
    path.write_text(json.dumps(tree))


def put(tree, place, value):
  """Sets the value at a path of nested lists and objects."""
  *parents, last = place
  for key in parents:
    tree = tree[key]
  tree[last] = value


def _double_keys(path, draw, unused_files):
  tree = read_json(path)
  if isinstance(tree, dict) and tree:
    key, text = draw(st.sampled_from(sorted(tree))), json.dumps(tree)
    path.write_text(f"{text[:-1]}, {json.dumps(key)}: "
                    f"{json.dumps(draw(_VALUES))}}}")


ALL = (_flip, _truncate, _replace, _swap, _delete, _folder_in_its_place,
       _file_in_its_folders_place, _link, _pipe, _change_json, _double_keys)


@st.composite
def damaged(draw, good, damages):
  """A copy of a good folder with one to three of some damages; the caller
  removes it."""
  folder = pathlib.Path(tempfile.mkdtemp()) / "ppo" / "checkpoints"
  shutil.copytree(good, folder)
  for _ in range(draw(st.integers(1, 3))):
    if files := files_of(folder):
      draw(st.sampled_from(damages))(
          draw(st.sampled_from(files)), draw, files)
  return folder
