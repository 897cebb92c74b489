"""What a dataset's files would have TFDS do.

TFDS imports whatever module `features.json` names as a feature's class. Only
its own are let through: a dataset is data, and no reason to run a program.
"""

from collections.abc import Iterator
import itertools
import json
from typing import Any

from etils import epath

from rlhf_jax.data import fields
from rlhf_jax.data.fields import DataError

# A version of a dataset, its versions, or those of its configurations.
_ABOVE = ("", "*/", "*/*/")
_OWN = "tensorflow_datasets.core.features."
# As the file may write the key: old files, and both spellings of new ones.
_KEYS = ("type", "pythonClassName", "python_class_name")


def check(folder: epath.PathLike) -> None:
  """Looks through a dataset's folder, before TFDS does.

  Args:
    folder: of one version, or of all.

  Raises:
    DataError: a `features.json` is not JSON, or names a class of others.
  """
  found = (epath.Path(folder).glob(f"{above}features.json") for above in _ABOVE)
  for path in itertools.chain.from_iterable(found):
    try:
      tree = json.loads(path.read_text())
    except (ValueError, RecursionError):
      raise DataError(f"{path}: not JSON; prepare the dataset anew") from None
    for name in _classes(tree):
      if not (isinstance(name, str) and name.startswith(_OWN)):
        raise DataError(
            f"{path}: names the class {fields.short(name)}, whose module TFDS"
            f" would import and so run; datasets have those of {_OWN}* only,"
            " prepare it anew"
        )


def _classes(tree: Any) -> Iterator[Any]:
  """All that the file gives as a class, wherever it stands."""
  if isinstance(tree, dict):
    for key, value in tree.items():
      if key in _KEYS and not isinstance(value, dict):
        yield value
      yield from _classes(value)
  elif isinstance(tree, list):
    for value in tree:
      yield from _classes(value)
