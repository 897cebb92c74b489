"""Items of a benchmark, read from JSON lines (`.gz` or not) and checked.

A row that is not of its format ends the command with the file and line, the
field and what it should be.
"""

from collections.abc import Callable, Sequence
import os
import re
from typing import Any, TypeVar

from rlhf_jax.data import fields, sources
from rlhf_jax.data.fields import DataError, short

Item = TypeVar("Item")


def read(path: str, parse: Callable[[dict[str, Any], str], Item]) -> list[Item]:
  """`parse(row, "PATH:LINE")` of each row of a file.

  Raises:
    DataError: the file cannot be read, or a row is no JSON object.
  """
  return [parse(_object(row, origin), origin)
          for row, origin in sources.json_lines(path)]


def _object(row: Any, origin: str) -> dict[str, Any]:
  if not isinstance(row, dict):
    raise DataError(f"{origin}: expected a JSON object, got {short(row)}")
  return row


def field(row: dict[str, Any], name: str, origin: str) -> Any:
  """A field that has to be there."""
  if name not in row:
    raise DataError(
        f"{origin}: no field {name!r} among {short(str(sorted(row)))}; "
        "docs/evaluations.md has the formats")
  return row[name]


def text(row: dict[str, Any], name: str, origin: str) -> str:
  """A field of text that is not blank."""
  return fields.text(field(row, name, origin), name, origin)


def texts(row: dict[str, Any], name: str, origin: str, least: int = 1
          ) -> tuple[str, ...]:
  """A field that is a list of texts."""
  found = field(row, name, origin)
  if not isinstance(found, list) or len(found) < least:
    raise DataError(
        f"{origin}: {name!r} must be a list of at least {least} text(s), got "
        f"{short(found)}")
  return tuple(fields.text(value, f"{name}[{i}]", origin)
               for i, value in enumerate(found))


def parts(row: dict[str, Any], name: str, origin: str, separator: str
          ) -> tuple[str, ...]:
  """A field of texts with a separator between them; blank ones are none."""
  pieces = re.split(re.escape(separator), text(row, name, origin))
  found = tuple(dict.fromkeys(p.strip() for p in pieces if p.strip()))
  if not found:
    raise DataError(
        f"{origin}: {name!r} has nothing between its {separator!r}")
  return found


def one_of(row: dict[str, Any], name: str, origin: str,
           values: Sequence[Any]) -> Any:
  """A field with one of some values; a number may be given as text."""
  found = field(row, name, origin)
  for value in values:
    if found == value or str(found) == str(value):
      return value
  raise DataError(
      f"{origin}: {name!r} is {short(found)}; it is one of "
      f"{short(str(list(values)))}")


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
  """At most `limit` items (None: all), evenly spaced, so that they are of all
  parts of a file."""
  if limit is None or len(items) <= limit:
    return list(items)
  return [items[i * len(items) // limit] for i in range(limit)]


def locate(path: str, root: str) -> str:
  """A path, relative ones from the data folder."""
  return os.path.join(root, os.path.expanduser(path))
