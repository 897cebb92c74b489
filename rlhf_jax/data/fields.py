"""One field of a row, checked: what every reader of rows says of a bad one."""

import json
from typing import Any


class DataError(ValueError):
  """Data or a data setting that the user has to correct."""


def text(
    value: Any, name: str, origin: str, may_be_empty: bool = False
) -> str:
  """`value`, if it is text that can be stored.

  Raises:
    DataError: it is no text, blank, or no UTF-8.
  """
  if not isinstance(value, str):
    raise DataError(
        f"{origin}: {name!r} must be text, got {short(value)}"
        f" ({type(value).__name__})"
    )
  if not value.strip() and not may_be_empty:
    raise DataError(
        f"{origin}: {name!r} is empty ({value[:80]!r}); fill it in or remove"
        " the row"
    )
  try:
    value.encode("utf-8")
  except UnicodeEncodeError:  # "\ud800" alone is legal JSON but no text.
    raise DataError(
        f"{origin}: {name!r} holds half a surrogate pair, which is no UTF-8:"
        f" {ascii(value)[:80]}; replace the character"
    ) from None
  return value


def short(value: Any) -> str:
  """A value as messages show it: JSON on one line, cut at 80 characters."""
  try:
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
  except RecursionError:
    shown = f"(a {type(value).__name__} nested too deep to show)"
  shown = shown.strip()
  return printable(shown if len(shown) <= 80 else shown[:77] + "...")


def printable(text: str) -> str:
  """`text` with escapes for what a terminal would obey or could not show."""
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
