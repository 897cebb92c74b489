"""Where records come from: JSON lines, TFDS datasets, Smallworld.

A source is named by one string::

  smallworld                     the built-in world
  jsonl:PATH[,PATH...]           JSON lines, globs allowed, `.gz` or not
  jsonl:PATH=NUMBER[,...]        the same as a mixture: each file with a weight
  tfds:NAME/SPLIT                a TFDS dataset built on this machine

A mixture is for demonstrations. The weights of its files are to each other as
their shares of the training rows; a glob gives its weight to every file it
matches. All paths have one or none has. What follows the last "=" of a path is
no weight but part of the name if it holds a "/" or an extension, as in
"lang=en/a.jsonl" or "lang=en.jsonl".

A line that is no record ends the run with one message: file and line, the
value, and what to do.
"""

from collections.abc import Callable, Iterator
import glob
import gzip
import hashlib
import json
import math
import os
import re
from typing import Any, BinaryIO
import zlib

from rlhf_jax import storage
from rlhf_jax.data import few_shot
from rlhf_jax.data import records
from rlhf_jax.data import tfds_files
from rlhf_jax.data.fields import DataError, short
from rlhf_jax.data.records import Record

_WEIGHTED = re.compile(r"(?P<path>.*\S)\s*=(?P<weight>[^=/]*)")
_EXTENSION = re.compile(r"\.[A-Za-z]")
# Of one line of a file, its end counted; no more is read at a time.
MAX_LINE_BYTES = 8 * 2**20
_MAX_COUNTED_LINE_BYTES = 32 * MAX_LINE_BYTES  # No further, for a message.
# A few bytes of gzip can stand for a thousand times as many: what unpacks to
# more than the first, and to so many times its own size, is not read on.
_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES = 16 * 2**20, 100


def read(
    source: str,
    kind: str,
    *,
    root: str = "",
    smallworld: Callable[[str], Iterator[Record]] | None = None,
) -> Iterator[tuple[Record, str]]:
  """Reads and checks the rows of a source, in its own order.

  Args:
    source: "smallworld", "jsonl:PATH[,PATH...]" or "tfds:NAME/SPLIT"; weights
      of paths change nothing here.
    kind: one of `records.KINDS`.
    root: folder that relative JSON paths start from, and the data folder of
      TFDS datasets; "" for the current folder and TFDS's own.
    smallworld: gives the rows of a kind, for the source "smallworld".

  Yields:
    (record, origin): the fields of the kind, and "PATH:LINE" for messages.
    A few-shot set gives several records of one origin.

  Raises:
    DataError: the source or a row is not as described above.
  """
  if kind not in records.KINDS:
    raise DataError(
        f"unknown kind of records {kind!r}; one of {records.KINDS}")
  form, _, rest = source.partition(":")
  if source == "smallworld":
    if smallworld is None:
      raise DataError(f"nothing gives the smallworld rows of kind {kind!r}")
    rows = _read_iterator(smallworld(kind))
  elif form == "jsonl" and rest:
    check_weights(source, kind)
    rows = _read_jsonl(path for path, _ in _paths(rest, root))
  elif form == "tfds" and rest:
    rows = _read_tfds(rest, root)
  else:
    raise DataError(
        f"unknown source of {kind} {source!r}; write 'smallworld',"
        " 'jsonl:PATH[,PATH...]' or 'tfds:NAME/SPLIT'"
    )
  for row, origin in rows:
    for one in few_shot.expand(row, kind, origin):
      yield records.check(one, kind, origin), origin


def fingerprint(source: str, *, root: str = "") -> str:
  """`source` plus a digest of the files it names, to notice changed files.

  Weights are left out: they choose among rows that are prepared alike.
  """
  form, _, rest = source.partition(":")
  if form != "jsonl":
    return source
  digest = hashlib.sha256()
  for path, _ in _paths(rest, root):
    try:
      with open(path, "rb") as f:
        digest.update(hashlib.file_digest(f, "sha256").digest())
    except OSError as error:
      raise DataError(f"{path}: cannot be read ({error.strerror})") from None
  patterns = ",".join(pattern for pattern, _ in weighted_paths(source))
  return f"jsonl:{patterns}#{digest.hexdigest()[:16]}"


def weighted_paths(source: str) -> list[tuple[str, str | None]]:
  """The paths of a "jsonl:" source, each with its weight as written, if any."""
  found = []
  for path in source.removeprefix("jsonl:").split(","):
    match = _WEIGHTED.fullmatch(path)
    if match and not _EXTENSION.search(match["weight"]):
      found.append((match["path"], match["weight"].strip()))
    else:
      found.append((path, None))
  return found


def check_weights(source: str, kind: str) -> None:
  """Checks the weights of a "jsonl:" source without looking for its files.

  Raises:
    DataError: another kind than demonstrations has some, not every path has
      one, or one is not a number above 0.
  """
  paths = weighted_paths(source)
  weighted = [(path, weight) for path, weight in paths if weight is not None]
  if not weighted:
    return
  path, weight = weighted[0]
  if kind != "demonstrations":
    raise DataError(
        f"{path.strip()!r} has the weight {weight!r}, but only demonstrations"
        f" are mixed by weight; write {path.strip()!r} alone, or rename a file"
        " whose name ends so"
    )
  if len(weighted) < len(paths):
    bare = next(path for path, weight in paths if weight is None)
    raise DataError(
        f"{path.strip()!r} has the weight {weight!r} and {bare.strip()!r} has"
        " none; give every path a weight, such as"
        f" {bare.strip() + '=1'!r}, or none"
    )
  for path, weight in weighted:
    if not _is_weight(weight):
      raise DataError(
          f"{path.strip()!r} has the weight {weight!r}; write a number above"
          f" 0, such as {path.strip() + '=0.5'!r}, or leave the path out"
      )


def file_weights(source: str, *, root: str = "") -> dict[str, float]:
  """The files of a mixture, as `file_of` names them -> weight; else {}.

  Raises:
    DataError: a path names no file, or two name the same; or as
      `check_weights`.
  """
  form, _, rest = source.partition(":")
  if form != "jsonl":
    return {}
  check_weights(source, "demonstrations")
  weights = {}
  for path, weight in _paths(rest, root):
    if weight is None:
      return {}
    name = file_of(f"{path}:1", root)
    if name in weights:
      raise DataError(
          f"{name!r} is named twice, with weights {weights[name]:g} and"
          f" {float(weight):g}; name each file of a mixture once"
      )
    weights[name] = float(weight)
  return weights


def file_of(origin: str, root: str = "") -> str:
  """The file of an origin "PATH:LINE", below `root` where it lies there."""
  path = origin.rpartition(":")[0]
  return path.removeprefix(os.path.join(root, ""))


def _is_weight(text: str) -> bool:
  try:
    return 0 < float(text) < math.inf
  except ValueError:
    return False


def _read_iterator(rows):
  for index, row in enumerate(rows):
    yield row, f"smallworld:{index}"


def _paths(patterns: str, root: str) -> list[tuple[str, str | None]]:
  """The files that comma-separated globs name, each pattern's in order, with
  the weights of their patterns."""
  paths = []
  for pattern, weight in weighted_paths(patterns):
    path = os.path.join(root, os.path.expanduser(pattern.strip()))
    found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    if not found:
      raise DataError(
          f"no file matches {path!r}; relative paths start from"
          f" {os.path.abspath(root)!r}"
      )
    paths.extend((path, weight) for path in found)
  return paths


def _read_jsonl(paths):
  for path in paths:
    is_empty = True
    for number, line in _lines(path):
      if not line.strip():
        continue
      is_empty = False
      origin = f"{path}:{number}"
      yield _parsed(line, origin), origin
    if is_empty:
      raise DataError(f"{path}: the file is empty; expected JSON lines")


def _parsed(line: bytes, origin: str) -> Any:
  """The JSON value that a line holds."""
  try:
    text = line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
        f"{origin}: byte {error.start + 1} of the line is not UTF-8;"
        " convert the file, e.g. with iconv -t utf-8"
    ) from None
  if "\0" in text:
    raise DataError(
        f"{origin}: byte {line.index(0) + 1} of the line is null; the file is"
        " damaged or not UTF-8: copy it again, or convert it with iconv"
    )
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    reason = f"{error.msg} at column {error.colno}"
  except RecursionError:
    reason = "too many brackets within each other"
  except ValueError:  # What else it cannot read.
    reason = "a number with thousands of digits"
  raise DataError(
      f"{origin}: not JSON ({reason}): {short(text)}; write one JSON object a"
      " line"
  )


def json_lines(path: str) -> Iterator[tuple[Any, str]]:
  """(value, "PATH:LINE") of each line of a file, `.gz` or not; blank ones not.
  That of rosters and ranked tasks may lie in a bucket.

  Raises:
    DataError: the file cannot be read or unpacks to something enormous, or a
      line is longer than `MAX_LINE_BYTES` or not JSON in UTF-8.
  """
  return _read_jsonl([path])


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Numbered lines; the errors of a file or of its compression get a name."""
  number, size = 0, 0
  opener = gzip.open if path.endswith(".gz") else open
  try:
    local = storage.local_copy(path)
    limit = _size_limit(local, opener)
    with opener(local, "rb") as f:
      while line := f.readline(MAX_LINE_BYTES + 1):
        number += 1
        size += len(line)
        if len(line) > MAX_LINE_BYTES:
          raise DataError(_too_long(path, number, line, f))
        if size > limit:
          raise DataError(
              f"{path}:{number}: unpacks to more than {limit} bytes,"
              f" and {_MAX_UNPACKED_TIMES} times its size; unpack"
              " it with gunzip if it is what you want to read"
          )
        yield number, line
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise DataError(
        f"{path}:{number + 1}: broken gzip file after line {number} ({error});"
        " copy or download it again"
    ) from None
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _size_limit(path: os.PathLike | str, opener: Callable) -> float:
  """How many bytes may be read of a file."""
  if opener is open:
    return math.inf
  packed = os.stat(path).st_size
  return max(_MAX_UNPACKED_BYTES, packed * _MAX_UNPACKED_TIMES)


def _too_long(path: str, number: int, line: bytes, f: BinaryIO) -> str:
  """The message for a line that starts with `line` and goes on in `f`."""
  size = len(line)
  while (
      size < _MAX_COUNTED_LINE_BYTES and not line.endswith(b"\n")
      and (line := f.readline(MAX_LINE_BYTES))
  ):
    size += len(line)
  known = "" if line.endswith(b"\n") or not line else "at least "
  return (
      f"{path}:{number}: the line has {known}{size} bytes, more than the"
      f" {MAX_LINE_BYTES} that a row may have; split its text into several"
      " rows"
  )


def _read_tfds(name_and_split: str, root: str):
  import tensorflow_datasets as tfds  # Slow to import, and seldom needed.

  name, _, split = name_and_split.rpartition("/")
  if not name:
    raise DataError(
        f"'tfds:{name_and_split}' has no split; write 'tfds:NAME/SPLIT'"
    )
  dataset = re.split("[/:]", name)[0]
  tfds_files.check(
      os.path.join(root or tfds.core.constants.DATA_DIR, dataset))
  try:
    builder = tfds.builder(name, data_dir=root or None)
    rows = builder.as_data_source(split)
  except Exception as error:  # TFDS raises its own and many other types.
    reason = str(error).strip().partition("\n")[0]
    raise DataError(
        f"the TFDS dataset {name!r}, split {split!r}, cannot be read"
        f" ({reason}); build it first, with file_format='array_record'"
    ) from None
  for index in range(len(rows)):
    yield _plain(rows[index]), f"tfds:{name_and_split}:{index}"


def _plain(value):
  """A TFDS example as JSON would give it; an empty optional text is absent."""
  if isinstance(value, dict):
    plain = {k: _plain(v) for k, v in value.items()}
    return {k: v for k, v in plain.items() if v != ""}
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  return value
