"""Records as people keep them: JSON lines, TFDS datasets, Smallworld.

A source is named by one string:

  smallworld                     the built-in world
  jsonl:PATH[,PATH...]           JSON lines, globs allowed, `.gz` or not
  tfds:NAME/SPLIT                a TFDS dataset built on this machine

and its rows are dicts of one of four kinds:

  pretrain        {text, source?}
  demonstrations  {prompt, response, user_id?, labeler_id?, category?, source?}
  comparisons     {prompt, responses[], ranks[], user_id?, labeler_id?,
                   category?, source?, metadata?}     1 = best, equal = tie
  prompts         {prompt, user_id?, category?, source?}

Other fields are ignored. A comparison given as a demonstration stands for its
best-ranked response. A row that is not of its kind ends the run with one
message: file and line, the value, and what to do.
"""

import glob
import gzip
import hashlib
import json
import os
from typing import Any, BinaryIO, Callable, Iterator
import zlib

KINDS = ("pretrain", "demonstrations", "comparisons", "prompts")

# Kind -> (required text fields, optional fields carried along as text).
_FIELDS = {
    "pretrain": (("text",), ("source",)),
    "demonstrations": (
        ("prompt", "response"),
        ("user_id", "labeler_id", "category", "source"),
    ),
    "comparisons": (
        ("prompt",),
        ("user_id", "labeler_id", "category", "source"),
    ),
    "prompts": (("prompt",), ("user_id", "category", "source")),
}

# Of one line of a file, its end counted; no more is read at a time.
MAX_LINE_BYTES = 8 * 2**20

Record = dict[str, Any]


class DataError(ValueError):
  """Data or a data setting that the user has to correct."""


def text_fields(kind: str) -> tuple[str, ...]:
  """The required text fields of a kind, without a comparison's responses."""
  return _FIELDS[kind][0]


def optional_fields(kind: str) -> tuple[str, ...]:
  """The optional text fields that a kind carries."""
  return _FIELDS[kind][1]


def read(
    source: str,
    kind: str,
    *,
    root: str = "",
    smallworld: Callable[[str], Iterator[Record]] | None = None,
) -> Iterator[tuple[Record, str]]:
  """Reads and checks the rows of a source, in its own order.

  Args:
    source: "smallworld", "jsonl:PATH[,PATH...]" or "tfds:NAME/SPLIT".
    kind: one of `KINDS`.
    root: folder that relative JSON paths start from, and the data folder of
      TFDS datasets; "" for the current folder and TFDS's own.
    smallworld: gives the rows of a kind, for the source "smallworld".

  Yields:
    (record, origin): the fields of the kind, and "PATH:LINE" for messages.

  Raises:
    DataError: the source or a row is not as described above.
  """
  if kind not in KINDS:
    raise DataError(f"unknown kind of records {kind!r}; one of {KINDS}")
  form, _, rest = source.partition(":")
  if source == "smallworld":
    if smallworld is None:
      raise DataError(f"nothing gives the smallworld rows of kind {kind!r}")
    rows = _read_iterator(smallworld(kind))
  elif form == "jsonl" and rest:
    rows = _read_jsonl(_paths(rest, root))
  elif form == "tfds" and rest:
    rows = _read_tfds(rest, root)
  else:
    raise DataError(
        f"unknown source of {kind} {source!r}; write 'smallworld',"
        " 'jsonl:PATH[,PATH...]' or 'tfds:NAME/SPLIT'"
    )
  for row, origin in rows:
    yield check(row, kind, origin), origin


def fingerprint(source: str, *, root: str = "") -> str:
  """`source` plus a digest of the files it names, to notice changed files."""
  form, _, rest = source.partition(":")
  if form != "jsonl":
    return source
  digest = hashlib.sha256()
  for path in _paths(rest, root):
    try:
      with open(path, "rb") as f:
        digest.update(hashlib.file_digest(f, "sha256").digest())
    except OSError as error:
      raise DataError(f"{path}: cannot be read ({error.strerror})") from None
  return f"{source}#{digest.hexdigest()[:16]}"


def _read_iterator(rows):
  for index, row in enumerate(rows):
    yield row, f"smallworld:{index}"


def _paths(patterns: str, root: str) -> list[str]:
  """The files that comma-separated globs name, each pattern's in order."""
  paths = []
  for pattern in patterns.split(","):
    path = os.path.join(root, os.path.expanduser(pattern.strip()))
    found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    if not found:
      raise DataError(
          f"no file matches {path!r}; relative paths start from"
          f" {os.path.abspath(root)!r}"
      )
    paths.extend(found)
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
  except ValueError as error:  # A number with thousands of digits.
    reason = str(error)
  raise DataError(
      f"{origin}: not JSON ({reason}): {short(text)}; write one JSON object a"
      " line"
  )


def json_lines(path: str) -> Iterator[tuple[Any, str]]:
  """(value, "PATH:LINE") of each line of a file, `.gz` or not; blank ones not.

  Raises:
    DataError: the file cannot be read, or a line is longer than
      `MAX_LINE_BYTES` or not JSON in UTF-8.
  """
  return _read_jsonl([path])


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Numbered lines; the errors of a file or of its compression get a name."""
  number = 0
  opener = gzip.open if path.endswith(".gz") else open
  try:
    with opener(path, "rb") as f:
      while line := f.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
          raise DataError(_too_long(path, number, line, f))
        yield number, line
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise DataError(
        f"{path}:{number + 1}: broken gzip file after line {number} ({error});"
        " copy or download it again"
    ) from None
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _too_long(path: str, number: int, line: bytes, f: BinaryIO) -> str:
  """The message for a line that starts with `line` and goes on in `f`."""
  size = len(line)
  while not line.endswith(b"\n") and (line := f.readline(MAX_LINE_BYTES)):
    size += len(line)
  return (
      f"{path}:{number}: the line has {size} bytes, more than the"
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


def check(row: Any, kind: str, origin: str) -> Record:
  """The fields of `kind` in `row`, checked.

  Args:
    row: a parsed JSON value.
    kind: one of `KINDS`.
    origin: where the row stands, for messages.

  Returns:
    The required fields and those optional ones that are there; ids as text.

  Raises:
    DataError: the row is not of its kind.
  """
  if not isinstance(row, dict):
    raise DataError(
        f"{origin}: expected a JSON object, got {short(row)}; a row of"
        f" {kind} has the fields {_wanted(kind)}"
    )
  required, optional = _FIELDS[kind]
  if kind == "demonstrations" and "responses" in row and "response" not in row:
    row = _best_response(row, origin)
  record = {}
  for name in required:
    record[name] = _text(_field(row, name, kind, origin), name, origin)
  if kind == "comparisons":
    record |= _ranking(row, origin)
  for name in optional:
    value = row.get(name)
    if value is None or value == "":
      continue
    if isinstance(value, int) and not isinstance(value, bool):
      value = str(value)
    record[name] = _text(value, name, origin)
  if kind == "comparisons" and row.get("metadata") is not None:
    record["metadata"] = row["metadata"]
  return record


def _best_response(row: Record, origin: str) -> Record:
  """A comparison as a demonstration: its first response of rank 1."""
  ranked = _ranking(row, origin)
  best = ranked["ranks"].index(min(ranked["ranks"]))
  return row | {"response": ranked["responses"][best]}


def _wanted(kind: str) -> str:
  required, _ = _FIELDS[kind]
  ranked = ("responses", "ranks") if kind == "comparisons" else ()
  return ", ".join(required + ranked)


def _field(row: Record, name: str, kind: str, origin: str) -> Any:
  if name not in row:
    raise DataError(
        f"{origin}: no field {name!r} among {sorted(row)}; a row of {kind}"
        f" has the fields {_wanted(kind)}"
    )
  return row[name]


def _text(
    value: Any, name: str, origin: str, may_be_empty: bool = False
) -> str:
  if not isinstance(value, str):
    raise DataError(
        f"{origin}: {name!r} must be text, got {short(value)}"
        f" ({type(value).__name__})"
    )
  if not value.strip() and not may_be_empty:
    raise DataError(
        f"{origin}: {name!r} is empty ({value!r}); fill it in or remove the"
        " row"
    )
  try:
    value.encode("utf-8")
  except UnicodeEncodeError:  # "\ud800" alone is legal JSON but no text.
    raise DataError(
        f"{origin}: {name!r} holds half a surrogate pair, which is no UTF-8:"
        f" {ascii(value)[:80]}; replace the character"
    ) from None
  return value


def _ranking(row: Record, origin: str) -> Record:
  """The `responses` and `ranks` of a comparison."""
  responses = _field(row, "responses", "comparisons", origin)
  ranks = _field(row, "ranks", "comparisons", origin)
  for name, value in (("responses", responses), ("ranks", ranks)):
    if not isinstance(value, list):
      raise DataError(f"{origin}: {name!r} must be a list, got {short(value)}")
  if len(responses) < 2:
    raise DataError(
        f"{origin}: {len(responses)} response(s); a comparison needs at least"
        " 2, remove the row"
    )
  if len(ranks) != len(responses):
    raise DataError(
        f"{origin}: {len(responses)} responses but {len(ranks)} ranks"
        f" ({short(ranks)}); give one rank a response"
    )
  for rank in ranks:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
      raise DataError(
          f"{origin}: rank {short(rank)} in {short(ranks)}; ranks are whole"
          " numbers from 1 (the best), equal for a tie"
      )
  # A policy may end at once: an empty response is ranked like any other.
  responses = [
      _text(response, f"responses[{index}]", origin, may_be_empty=True)
      for index, response in enumerate(responses)
  ]
  return {"responses": responses, "ranks": list(ranks)}


def short(value: Any) -> str:
  """A value as messages show it: JSON, cut at 80 characters."""
  text = value if isinstance(value, str) else json.dumps(value, default=str)
  text = text.strip()
  return text if len(text) <= 80 else text[:77] + "..."
