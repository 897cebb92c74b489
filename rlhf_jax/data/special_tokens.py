"""Which of a tokenizer's tokens are special, by the files beside it.

Hugging Face's names for them: tokenizer_config.json says what is what, older
folders have special_tokens_map.json, and some models only a number in their
config.
"""

import json

from etils import epath

from rlhf_jax.data.records import DataError

FILE = "tokenizer_config.json"
_FILES = (FILE, "special_tokens_map.json")
_MODEL_FILES = ("generation_config.json", "config.json")


def names(folder: epath.Path) -> dict[str, str]:
  """Special tokens by what they are for; "start" where one is to be put."""
  found = {}
  for file in _FILES:
    values = _object(folder / file)
    for name in ("eos_token", "bos_token", "pad_token", "unk_token"):
      value = values.get(name)
      value = value.get("content") if isinstance(value, dict) else value
      if isinstance(value, str):
        found.setdefault(name, value)
    if values.get("add_bos_token") is True and "bos_token" in found:
      found["start"] = found["bos_token"]
  return found


def end_id(folder: epath.Path) -> int | None:
  """The first of the ids at which a model's config says that a text ends."""
  for file in _MODEL_FILES:
    found = _object(folder / file).get("eos_token_id")
    found = found[0] if isinstance(found, list) and found else found
    if isinstance(found, int) and found >= 0:
      return found
  return None


def _object(path: epath.Path) -> dict:
  """A JSON file's object; empty where there is no file."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise DataError(f"{str(path)!r} is no JSON ({error})") from None
  if not isinstance(found, dict):
    raise DataError(f"{str(path)!r} must hold an object")
  return found
