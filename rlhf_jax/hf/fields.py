"""The fields of somebody's config.json, each checked as it is read."""

from collections.abc import Mapping
from typing import Any


class FolderError(ValueError):
  """A checkpoint in Hugging Face's form that cannot be read or written."""


class Fields:
  """A config.json; every method raises FolderError by file and field."""

  def __init__(self, values: Mapping[str, Any], place: str):
    """
    Args:
      values: what the file holds.
      place: the file, for messages.
    """
    self._values = values
    self.place = place

  def get(self, name: str, default: Any = None) -> Any:
    return self._values.get(name, default)

  def whole(self, name: str, default: int | None) -> int:
    """A number of at least 1; JSON's null is the default."""
    value = self._values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      self.refuse(name, value, "it must be a whole number of at least 1")
    return value

  def positive(self, name: str, default: float) -> float:
    value = self._values.get(name, default)
    if (isinstance(value, bool) or not isinstance(value, (int, float))
        or not 0 < value < float("inf")):
      self.refuse(name, value, "it must be a number above 0")
    return float(value)

  def flag(self, name: str, default: bool) -> bool:
    value = self._values.get(name, default)
    if not isinstance(value, bool):
      self.refuse(name, value, "it must be true or false")
    return value

  def choice(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
    """What `choices` says of the field."""
    value = self._values.get(name, default)
    if not isinstance(value, str) or value not in choices:
      self.refuse(
          name, value, f"the model knows {', '.join(sorted(choices))}")
    return choices[value]

  def must_be(self, name: str, wanted: Any, why: str) -> None:
    """Refuses a field that is there with another value."""
    value = self._values.get(name, wanted)
    if value != wanted:
      self.refuse(name, value, why)

  def refuse(self, name: str, value: Any, why: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise FolderError(f"{self.place}: {name} = {shown}: {why}")
