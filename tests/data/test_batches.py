"""Batch N is a function of (seed, N, global row), whoever asks."""

import subprocess
import sys

import numpy as np
import pytest

from rlhf_jax.data import batches
from rlhf_jax.data.records import DataError

PAD = 100
EOS = 99


def _array(*values):
  return np.asarray(values, np.int32)


DEMONSTRATIONS = [
    {"prompt_tokens": _array(1, 2, 3), "response_tokens": _array(4, EOS)},
    {"prompt_tokens": _array(5), "response_tokens": _array(6, 7, 8, EOS)},
]
COMPARISONS = [
    {
        "prompt_tokens": _array(1, 2),
        "response_tokens": [_array(3, EOS), _array(EOS), _array(4, 5, EOS)],
        "ranks": _array(2, 1, 2),
    },
    {
        "prompt_tokens": _array(6),
        "response_tokens": [_array(7, EOS), _array(8, EOS)],
        "ranks": _array(1, 2),
    },
]


def _windows(n=37):
  return [{"tokens": _array(i, i + 1000)} for i in range(n)]


def _ids(batch):
  return batch["tokens"][:, 0].tolist()


def test_demonstrations_are_padded_right_and_end_in_eos():
  examples = batches.demonstration_examples(
      DEMONSTRATIONS, None, length=6, pad_id=PAD
  )
  batch = batches.Batches(examples, 2)(0)
  np.testing.assert_array_equal(
      batch["tokens"], [[1, 2, 3, 4, EOS, PAD], [5, 6, 7, 8, EOS, PAD]]
  )
  np.testing.assert_array_equal(batch["mask"], batch["tokens"] != PAD)
  np.testing.assert_array_equal(
      batch["loss_mask"], [[0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0]]
  )
  assert batch["tokens"].dtype == np.int32
  assert batch["mask"].dtype == np.int32
  assert batch["loss_mask"].dtype == bool


def test_packed_demonstrations_share_a_row():
  examples = batches.demonstration_examples(
      DEMONSTRATIONS + DEMONSTRATIONS[:1], None, length=12, pad_id=PAD,
      packed=True)
  batch = batches.Batches(examples, 2)(0)
  np.testing.assert_array_equal(batch["tokens"], [
      [1, 2, 3, 4, EOS, 5, 6, 7, 8, EOS, PAD, PAD],
      [1, 2, 3, 4, EOS] + [PAD] * 7])
  np.testing.assert_array_equal(batch["mask"], [
      [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0], [1] * 5 + [0] * 7])
  np.testing.assert_array_equal(batch["loss_mask"], [
      [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1] + [0] * 7])


def _comparisons(length=5, max_responses=3, num_rows=3, max_prompts=1):
  return batches.comparison_examples(
      COMPARISONS, None, length=length, max_responses=max_responses,
      num_rows=num_rows, max_prompts=max_prompts, pad_id=PAD)


def test_comparisons_fill_slots_and_keep_ties():
  batch = batches.Batches(_comparisons(), 2)(0)
  np.testing.assert_array_equal(batch["tokens"], [
      [[1, 2, 4, 5, EOS], [1, 2, 3, EOS, PAD], [1, 2, EOS, PAD, PAD]],
      [[6, 7, EOS, PAD, PAD], [6, 8, EOS, PAD, PAD], [PAD] * 5]])
  np.testing.assert_array_equal(batch["mask"], batch["tokens"] != PAD)
  np.testing.assert_array_equal(
      batch["last_token"], [[[8, 12, 4]], [[2, 7, 0]]])
  np.testing.assert_array_equal(batch["ranks"], [[[2, 1, 2]], [[1, 2, 0]]])
  np.testing.assert_array_equal(
      batch["response_mask"], [[[1, 1, 1]], [[1, 1, 0]]])


def test_prompts_that_fit_share_a_block():
  examples = _comparisons(length=12, num_rows=2, max_prompts=2)
  batch = batches.Batches(examples, 1)(0)
  np.testing.assert_array_equal(batch["tokens"], [[
      [1, 2, 4, 5, EOS, 1, 2, 3, EOS, 1, 2, EOS],
      [6, 7, EOS, 6, 8, EOS] + [PAD] * 6]])
  np.testing.assert_array_equal(batch["mask"], [[
      [1] * 5 + [6] * 4 + [10] * 3, [1] * 3 + [4] * 3 + [0] * 6]])
  np.testing.assert_array_equal(
      batch["last_token"], [[[8, 11, 4], [14, 17, 0]]])
  np.testing.assert_array_equal(batch["ranks"], [[[2, 1, 2], [1, 2, 0]]])


def test_an_epoch_is_its_blocks():
  assert batches.Batches(_comparisons(), 2).count(num_epochs=3) == 3
  shared = _comparisons(length=12, num_rows=2, max_prompts=2)
  assert batches.Batches(shared, 2).count(num_epochs=3) == 1
  assert batches.Batches(shared, 2).count(num_epochs=1) == 1  # at least one


def test_prompts_are_padded_left():
  examples = batches.prompt_examples(
      DEMONSTRATIONS, None, prompt_length=4, pad_id=PAD
  )
  batch = batches.Batches(examples, 2)(0)
  want = [[PAD, 1, 2, 3], [PAD, PAD, PAD, 5]]
  np.testing.assert_array_equal(batch["prompt_tokens"], want)
  np.testing.assert_array_equal(batch["prompt_mask"], np.array(want) != PAD)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", [3, None])
def test_processes_together_see_the_global_batch(count, seed):
  examples = batches.lm_examples(_windows(), seed)
  whole = batches.Batches(examples, 8)
  parts = [
      batches.Batches(examples, 8, rows=np.arange(8).reshape(count, -1)[i])
      for i in range(count)
  ]
  for n in range(5):  # Past the end of the first epoch, or the last batch.
    slices = [part(n) for part in parts]
    for name, value in whole(n).items():
      joined = np.concatenate([s[name] for s in slices])
      np.testing.assert_array_equal(joined, value)


def test_a_batch_does_not_depend_on_those_asked_before():
  first = batches.Batches(batches.lm_examples(_windows(), 3), 8)
  series = [_ids(first(n)) for n in range(12)]
  resumed = batches.Batches(batches.lm_examples(_windows(), 3), 8)
  assert [_ids(resumed(n)) for n in (7, 11, 2)] == [
      series[7], series[11], series[2]
  ]


def test_batches_are_the_same_in_another_process():
  program = (
      "from tests.data import test_batches as t;"
      "print(t._ids(t.batches.Batches("
      "t.batches.lm_examples(t._windows(), 3), 8)(6)))"
  )
  result = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True,
      check=True, cwd=__file__.rpartition("/tests/")[0],
  )
  here = batches.Batches(batches.lm_examples(_windows(), 3), 8)(6)
  assert result.stdout.strip() == str(_ids(here))


def test_each_epoch_is_a_new_permutation():
  def epochs(seed):
    batch = batches.Batches(batches.lm_examples(_windows(), seed), 37)
    assert batch.num_batches is None
    return [_ids(batch(n)) for n in range(3)]

  seen = epochs(3) + epochs(4)
  assert all(sorted(order) == list(range(37)) for order in seen)
  assert len({tuple(order) for order in seen + [list(range(37))]}) == 7


def test_without_a_seed_rows_come_once_and_in_order():
  batch = batches.Batches(batches.lm_examples(_windows(10), None), 4)
  assert batch.num_batches == 3
  parts = [batch(n) for n in range(3)]
  assert [i for p in parts for i in _ids(p)] == [*range(10), 9, 9]
  masks = np.concatenate([p["row_mask"] for p in parts])
  np.testing.assert_array_equal(masks, [True] * 10 + [False] * 2)
  for n in (-1, 3):
    with pytest.raises(IndexError, match=f"batch {n} of 3"):
      batch(n)


def test_what_does_not_fit_is_refused_with_both_numbers():
  with pytest.raises(DataError, match="no rows in a list"):
    batches.lm_examples([], 0)
  with pytest.raises(DataError, match="5 tokens .* more than the 4"):
    batches.demonstration_examples(DEMONSTRATIONS, 0, length=4, pad_id=PAD)
  with pytest.raises(DataError, match="3 responses, more than the 2"):
    _comparisons(max_responses=2)
  with pytest.raises(DataError, match="5 tokens .* more than the 4"):
    _comparisons(length=4)
  with pytest.raises(
      DataError, match="3 responses of 12 .* 2 rows of 5; raise block_rows"):
    _comparisons(num_rows=2)
  with pytest.raises(DataError, match="3 tokens .* more than the 2"):
    batches.prompt_examples(DEMONSTRATIONS, 0, prompt_length=2, pad_id=PAD)
  with pytest.raises(DataError, match="batch_size=0 must be at least 1"):
    batches.Batches(batches.lm_examples(_windows(), 3), 0)


def test_a_small_batch_is_filled_up_with_rows_that_count_for_nothing():
  examples = batches.lm_examples(_windows(), 3)
  whole, filled = batches.Batches(examples, 3), batches.Batches(
      examples, 3, filled_size=8)
  assert whole.count(2) == filled.count(2)
  for n in range(5):
    own, more = whole(n), filled(n)
    for name, value in own.items():
      np.testing.assert_array_equal(more[name][:3], value)
      assert len(more[name]) == 8
    assert own["loss_mask"].all() and not more["loss_mask"][3:].any()
    assert more["mask"].all()  # they are read, and their positions are sound


def test_held_out_rows_count_once_in_filled_batches():
  examples = batches.lm_examples(_windows(), None)
  at = batches.Batches(examples, 3, filled_size=8)
  counted = [
      row.tobytes() for n in range(at.num_batches) for row, is_own in
      zip(at(n)["tokens"], at(n)["row_mask"]) if is_own]
  assert counted == [examples[i]["tokens"].tobytes()
                     for i in range(len(examples))]
