"""Packing keeps every text once, in one place, and fills the rows."""

import numpy as np
import pytest

from rlhf_jax.data import packing
from rlhf_jax.data.records import DataError


def test_every_text_is_in_one_group_and_the_rows_are_full():
  lengths = np.random.default_rng(0).integers(5, 56, 1000).tolist()
  groups = packing.pack(lengths, 128)
  assert sorted(i for group in groups for i in group) == list(range(1000))
  filled = [sum(lengths[i] for i in group) for group in groups]
  assert max(filled) <= 128
  assert np.mean(filled) > 0.9 * 128


def _lengths(num_prompts=400):
  rng = np.random.default_rng(0)
  return [rng.integers(10, 56, rng.integers(4, 10)).tolist()
          for _ in range(num_prompts)]


@pytest.mark.parametrize("max_prompts", [1, 2, 10])
def test_every_text_has_a_place_of_its_own(max_prompts):
  lengths = _lengths()
  blocks = packing.pack_prompts(
      lengths, num_rows=5, capacity=128, max_prompts=max_prompts)
  assert sorted(prompt for block in blocks for prompt, _ in block) == list(
      range(400))
  for block in blocks:
    assert len(block) <= max_prompts
    taken = np.zeros((5, 128), int)
    for prompt, places in block:
      assert len(places) == len(lengths[prompt])
      for (row, start), length in zip(places, lengths[prompt]):
        assert start + length <= 128
        taken[row, start:start + length] += 1
    assert taken.max() == 1
    # rows fill from the left, without a gap
    assert (np.diff(taken, axis=1) <= 0).all()


def test_blocks_are_full():
  lengths = _lengths()
  blocks = packing.pack_prompts(
      lengths, num_rows=5, capacity=128, max_prompts=10)
  assert sum(map(sum, lengths)) > 0.85 * len(blocks) * 5 * 128


def test_blocks_of_the_first_prompts_stay_when_prompts_follow():
  rule = dict(num_rows=5, capacity=128, max_prompts=10)
  few = packing.pack_prompts(_lengths()[:200], **rule)
  closed = len(few) - packing._OPEN_BLOCKS
  assert closed > 20
  assert packing.pack_prompts(_lengths(), **rule)[:closed] == few[:closed]


def test_as_many_of_the_longest_texts_as_the_rows_hold_fit():
  assert packing.pack_prompts(
      [[56] * 10], num_rows=5, capacity=128, max_prompts=1)
  with pytest.raises(DataError, match="11 responses of 616 tokens .* 5 rows"):
    packing.pack_prompts(
        [[56] * 11], num_rows=5, capacity=128, max_prompts=1)
