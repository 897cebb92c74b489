"""What a checkpoint's items may be as files: plain ones, with a sealed `meta`.

All of this is asked before the checkpoint library opens anything.
"""

from collections.abc import Iterator, Mapping
import hashlib
import json
import os
import stat
from typing import Any

from etils import epath

from rlhf_jax import storage

_DEPTH = 32  # of nested objects; settings have six


def strange(step: epath.Path, name: str) -> str | None:
  """What lies in an item, or beside the items of its step, that no save
  leaves, in words; None without.

  A link may lead to another run's bytes or to a device without an end, and who
  opens a pipe may wait for ever. The folder of a step, and those above it, may
  be links: that is how people move runs.
  """
  if storage.is_bucket(step):
    return None  # objects only
  try:
    for path, mode in _modes(os.fspath(step), name):
      if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
        return (f"{os.path.relpath(path, step)!a} is {kind}, and no save "
                "leaves such")
  except NotADirectoryError:
    return "it is no folder"
  except FileNotFoundError:
    return None  # the run that writes here removes an old step meanwhile
  return None


def _modes(step: str, name: str) -> Iterator[tuple[str, int]]:
  """The files of the step itself, the item and all below it."""
  with os.scandir(step) as entries:
    for entry in entries:
      if entry.name == name or not entry.is_dir():
        yield entry.path, entry.stat(follow_symlinks=False).st_mode
  for folder, folders, files in os.walk(os.path.join(step, name)):
    for inside in (*folders, *files):
      path = os.path.join(folder, inside)
      yield path, os.lstat(path).st_mode


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """The content of `meta` with its own digest; "arrays" are among it."""
  return {"content": dict(content), "sha256": _sha256(content)}


def opened(found: Any) -> dict[str, Any] | None:
  """The content of `sealed`; None where it has changed, or where it was never
  one of a checkpoint: anybody can make a digest."""
  if not isinstance(found, dict) or set(found) != {"content", "sha256"}:
    return None
  content = found["content"]
  try:
    is_whole = found["sha256"] == _sha256(content)
  except (RecursionError, ValueError):  # nested or numbers beyond all measure
    return None
  is_whole = is_whole and _has_arrays(content) and _is_shallow(content)
  return content if is_whole else None


def _has_arrays(content: Any) -> bool:
  """Whether content["arrays"] is item -> array -> fingerprint."""
  items = content.get("arrays") if isinstance(content, dict) else None
  return isinstance(items, dict) and all(
      isinstance(arrays, dict)
      and all(isinstance(text, str) for text in arrays.values())
      for arrays in items.values())


def _is_shallow(value: Any, depth: int = _DEPTH) -> bool:
  """Whether who walks through it comes to an end before Python does."""
  inside = (value.values() if isinstance(value, dict)
            else value if isinstance(value, list) else ())
  return depth > 0 and all(_is_shallow(child, depth - 1) for child in inside)


def _sha256(content: Any) -> str:
  return hashlib.sha256(
      json.dumps(content, sort_keys=True).encode()).hexdigest()
