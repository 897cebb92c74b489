"""Which split a row belongs to: a pure function of its user's id.

InstructGPT splits train, validation and test by user id (paper, section 3.2),
so that no person's prompts are on both sides. A hash keeps the assignment
fixed when rows are added, removed or reordered.
"""

import hashlib

SPLITS = ("train", "validation", "test")


def unit_hash(text: str) -> float:
  """A stable hash of `text` as a number in [0, 1)."""
  digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64


def split_of(
    group: str, *, validation_fraction: float, test_fraction: float
) -> str:
  """The split of every row of `group` (a user id, or a text without one).

  Args:
    group: what must not be divided between splits.
    validation_fraction: share of groups for validation, in [0, 1).
    test_fraction: share of groups for test, in [0, 1).

  Returns:
    "train", "validation" or "test".
  """
  position = unit_hash(group)
  if position < test_fraction:
    return "test"
  if position < test_fraction + validation_fraction:
    return "validation"
  return "train"


def half_of(group: str) -> int:
  """0 or 1: cuts rows into two halves that share no group."""
  return int(unit_hash(f"half/{group}") < 0.5)
