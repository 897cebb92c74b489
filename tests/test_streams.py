"""Which comparisons a reward model learns from, and what is refused."""

import dataclasses
import itertools

import ml_collections
import numpy as np
import pytest

from experiments import common
from rlhf_jax import config as config_lib
from rlhf_jax import streams
from rlhf_jax.data import batches, splits
from rlhf_jax.data.records import DataError


def row(number, labeler, ranks=(1, 2, 2), prompt=None):
  tokens = lambda *ids: np.asarray(ids, np.int32)
  return {
      "prompt": prompt or f"prompt {number}", "labeler_id": labeler,
      "ranks": list(ranks), "prompt_tokens": tokens(number),
      "response_tokens": [tokens(k, 99) for k in range(len(ranks))]}


TRAIN = [row(i, "edcba"[i % 5]) for i in range(40)]
VALIDATION = [row(100 + i, "abcdez"[i % 6]) for i in range(12)]


@dataclasses.dataclass
class Rows:
  """A run as far as streams of comparisons ask for one."""

  config: ml_collections.ConfigDict
  train: list
  validation: list

  def comparisons(self, stage, split):
    assert stage == "rm"
    return getattr(self, split)

  def data_seed(self, stage, stream):
    return 7

  def batches(self, examples, batch_size):
    return batches.Batches(examples, batch_size)


def make(train=TRAIN, validation=VALIDATION, **changes):
  config = common.base("rm", "mini", ("rm",))
  config.rm = common.rm("mini")
  config.rm.update(batch_size=1, block_rows=2)
  config.rm.update(changes)
  return Rows(config, train, validation)


def comparisons(**arguments):
  return streams.training_comparisons(make(**arguments), "rm")


# ---------------------------------------------------------------- which rows


def test_all_are_learnt_from_unless_told_otherwise():
  assert comparisons() == TRAIN


def test_the_first_prompts_are_the_rows_of_the_first_distinct_prompts():
  twice = [row(i, "a", prompt=f"p{i // 2 % 5}") for i in range(20)]
  found = comparisons(train=twice, max_prompts=2)
  assert found == [r for r in twice if r["prompt"] in ("p0", "p1")]
  assert len(found) == 8
  assert comparisons(train=twice, max_prompts=5) == twice
  with pytest.raises(
      DataError, match="max_prompts = 6, but 'rm' has 5 prompts .*lower it"):
    comparisons(train=twice, max_prompts=6)


def test_the_first_prompts_are_counted_within_a_half():
  half = [r for r in TRAIN if splits.half_of(r["prompt"]) == 1]
  assert comparisons(half=1, max_prompts=3) == half[:3]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_are_disjoint_complete_and_even(count):
  groups = streams.labeler_groups((r["labeler_id"] for r in TRAIN), count)
  assert len(groups) == count
  assert sorted(itertools.chain(*groups)) == list("abcde")
  sizes = [len(group) for group in groups]
  assert max(sizes) - min(sizes) <= 1
  left_out = []
  for index, group in enumerate(groups):
    found = comparisons(fold=(index, count))
    assert not {r["labeler_id"] for r in found} & group
    left_out += [r for r in TRAIN if r not in found]
  key = lambda r: r["prompt"]
  assert sorted(left_out, key=key) == sorted(TRAIN, key=key)


def test_folds_stay_when_rows_are_added_or_reordered():
  ids = [r["labeler_id"] for r in TRAIN]
  groups = streams.labeler_groups(ids, 3)
  assert groups == streams.labeler_groups(ids[::-1] + ["c"] * 100, 3)
  assert groups == [{"a", "d"}, {"b", "e"}, {"c"}]


def test_folds_are_dealt_before_the_other_limits():
  found = comparisons(fold=(0, 5), half=0, max_prompts=4)
  assert found == [
      r for r in TRAIN if r["labeler_id"] != "a"
      and splits.half_of(r["prompt"]) == 0][:4]
  fold = streams.labeler_fold(make(fold=(0, 5)), "rm")
  assert (fold.inside, fold.heldout) == (set("bcde"), {"a"})


@pytest.mark.parametrize("changes, message", [
    (dict(train=TRAIN + [row(50, "")]),
     r"fold = \(0, 5\) needs a 'labeler_id' .* 'prompt 50' has none; add it"),
    (dict(fold=(5, 6)),
     r"fold = \(5, 6\) makes 6 groups of 5 .*use a count of 5 at most"),
    (dict(validation=VALIDATION[1:6]),
     r"fold = \(0, 5\): no validation .* by the left-out labelers \(a\)"),
    (dict(validation=[row(0, "a"), row(1, "b", (1, 1))]),
     r"no validation .* by the other labelers \(b, c, d, e\)"),
    (dict(train=[row(0, "a", (1, 1, 1)), row(1, "b", (2, 2))], fold=None),
     "all 2 comparisons that 'rm' would learn from are ties; check"),
    (dict(validation=[row(0, "a", (1, 1))], fold=None),
     "no validation comparison to measure 'rm' by; raise config.data.valid"),
])
def test_what_cannot_be_used_is_refused(changes, message):
  with pytest.raises(DataError, match=message):
    comparisons(**dict(fold=(0, 5)) | changes)


def test_messages_lead_to_settings_for_sixteen_responses():
  rows = TRAIN + [row(40, "a", range(1, 17))]
  with pytest.raises(DataError, match="max_responses = 9; set it to 16"):
    comparisons(train=rows)
  run = make(train=rows, max_responses=16, batch_size=8, init_from="")
  run.config.data.update(comparisons="jsonl:ranked.jsonl")
  message = r"block_rows = 2 rows of 128 .* hold 16 responses .* use 8\."
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.validate(run.config, 1, check_inputs=False)
  run.config.rm.block_rows = 8
  config_lib.validate(run.config, 1, check_inputs=False)
  at = streams.comparisons(run, "rm", comparisons(
      train=rows, max_responses=16))
  sizes = [np.count_nonzero(ranks) for step in range(at.count(1))
           for ranks in at(step)["ranks"].reshape(-1, 16)]
  assert max(sizes) == 16
  with pytest.raises(DataError, match="= 16; it can be 16 at most, so leave"):
    comparisons(train=[row(0, "a", range(1, 18))], max_responses=16)


# -------------------------------------------------------------------- batches


def pairs_of(batch):
  """(prompt, better response, worse response) of each pair of a batch, whose
  prompts and responses but for their ends are one token long."""
  for block in range(len(batch["tokens"])):
    tokens = batch["tokens"][block].reshape(-1)
    for slot in np.flatnonzero(batch["response_mask"][block].any(-1)):
      assert batch["ranks"][block, slot].tolist() == [1, 2]
      better, worse = batch["last_token"][block, slot]
      assert tokens[better - 2] == tokens[worse - 2]
      yield tuple(map(int, (
          tokens[better - 2], tokens[better - 1], tokens[worse - 1])))


def untied(rows):
  return sorted(
      (int(r["prompt_tokens"][0]), i, j) for r in rows
      for i, j in itertools.permutations(range(len(r["ranks"])), 2)
      if r["ranks"][i] < r["ranks"][j])


RANKED = [row(i, "a", np.random.default_rng(i).integers(1, 4, 2 + i % 5))
          for i in range(30)]


def test_an_epoch_of_pairs_has_each_untied_pair_once_and_no_tie():
  run = make(batching="pairs")
  at = streams.comparisons(run, "rm", RANKED)
  assert 1 < at.count(1) == at.count(2) // 2
  for epoch in range(2):
    seen = [pair for step in range(at.count(1))
            for pair in pairs_of(at(epoch * at.count(1) + step))]
    assert sorted(seen) == untied(RANKED)


def test_pairs_are_shuffled_together_and_anew_each_epoch():
  at = streams.comparisons(
      make(batching="pairs", block_rows=1), "rm", RANKED)
  epochs = [[[p for p, _, _ in pairs_of(at(epoch * at.count(1) + step))]
             for step in range(at.count(1))] for epoch in range(2)]
  assert epochs[0] != epochs[1]
  flat = list(itertools.chain(*epochs[0]))
  assert sorted(flat) != flat
  for prompts in epochs[0]:  # most pairs of a block are of other prompts
    assert len(set(prompts)) > len(prompts) / 2


def test_kwise_batches_have_every_prompt_whole():
  at = streams.comparisons(make(), "rm", RANKED)
  ranks = [
      tuple(slot[slot > 0].tolist()) for step in range(at.count(1))
      for slot in at(step)["ranks"].reshape(-1, 9) if slot.any()]
  assert sorted(ranks) == sorted(tuple(map(int, r["ranks"])) for r in RANKED)
