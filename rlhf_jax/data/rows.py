"""A row on its way from its source to disk."""

import dataclasses
import hashlib
import json

import numpy as np

from rlhf_jax.data import records

_HASH_BYTES = 16
_sorted_json = json.JSONEncoder(sort_keys=True).encode


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Row:
  """A record with what cleaning needs to know of it.

  Attributes:
    record: its fields.
    origin: where it stands, "PATH:LINE".
    tokens: int32 arrays: the text of a pretraining row with its end token, or
      the prompt and after it each response with its end token.
    split: "train", "validation" or "test".
    order: what rows are sorted by, as from `order`.
  """

  record: records.Record
  origin: str
  tokens: list[np.ndarray]
  split: str
  order: bytes

  @property
  def owner(self) -> bytes:
    """The same for the rows of one user's one prompt."""
    return self.order[:_HASH_BYTES]

  @property
  def content(self) -> bytes:
    """The same for rows with equal fields, wherever their prompts are from."""
    return self.order[_HASH_BYTES : 2 * _HASH_BYTES]


def order(record: records.Record) -> bytes:
  """Hashes of prompt and user, of all but the provenance, and of all.

  The rows of one prompt stay together, and of these the rows that say the same.
  """
  owner = (prompt(record), record.get("user_id", ""))
  said = {k: v for k, v in record.items() if k not in records.PROVENANCE}
  return b"".join(
      short_hash(text.encode())
      for text in (json.dumps(owner), _sorted_json(said), _sorted_json(record))
  )


def short_hash(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


def prompt(record: records.Record) -> str:
  """The prompt, or the text of a pretraining record."""
  return record["prompt"] if "prompt" in record else record["text"]


def responses(record: records.Record) -> list[str]:
  if "response" in record:
    return [record["response"]]
  return record.get("responses", [])
