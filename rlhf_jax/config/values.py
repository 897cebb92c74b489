"""Whether a value is a number, a text or names, and how messages show it."""

import numbers
from typing import Any

# Whole numbers up to here are exact as a float; no size is larger.
_LARGEST = 2**53
_LARGEST_REAL = 1e300


def is_whole(value: Any) -> bool:
  return (isinstance(value, numbers.Integral) and not isinstance(value, bool)
          and -_LARGEST <= value <= _LARGEST)  # type: ignore[operator]


def is_real(value: Any) -> bool:
  """A number that is neither infinite nor NaN, and no claim."""
  return (isinstance(value, numbers.Real) and not isinstance(value, bool)
          and -_LARGEST_REAL <= value  # type: ignore[operator]
          and value <= _LARGEST_REAL)


def is_text(value: Any) -> bool:
  """Text that a file name or a tokenizer can take."""
  return isinstance(value, str) and not any(
      c == "\0" or "\ud800" <= c <= "\udfff" for c in value)


def is_names(value: Any) -> bool:
  return isinstance(value, (tuple, list)) and all(map(is_text, value))


def shown(value: Any) -> str:
  """The repr, cut at 200 characters, of anything."""
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # thousands of digits, or of brackets
    text = f"(a {type(value).__name__} too large to show)"
  return text if len(text) <= 200 else text[:197] + "..."
