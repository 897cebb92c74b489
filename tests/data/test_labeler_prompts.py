"""Smallworld's labelers write three kinds of prompts, next to all there was."""

import collections
import functools
import hashlib
import json
import re

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections

from experiments import common
from rlhf_jax import datasets
from rlhf_jax.data import few_shot
from rlhf_jax.data import prepare
from rlhf_jax.data import records
from rlhf_jax.data import splits
from rlhf_jax.data import tokenizer
from rlhf_jax.data.smallworld import labeler_prompts
from rlhf_jax.data.smallworld import prompts as prompts_lib
from rlhf_jax.data.smallworld import Smallworld

FIELDS = ("prompt", "response", "user_id", "category", "labeler_id")
# Of 2,000 rows of FIELDS each, as they were before there were kinds.
DIGESTS = {
    "demonstrations":
        "a5d4035a00f8d94aa4fcdae286d55fbca1cb3799ef35b91c834616cf335e07db",
    "prompts":
        "f26f800bfc22075df868c5f9d6c61bd190520cb169314fb4818e86e828dd7bcb",
}


@functools.cache
def small_world():
  return datasets.make_world(config())


@functools.cache
def demonstration_rows():
  return tuple(small_world().demonstrations(2000))


@functools.cache
def set_rows():
  return tuple(small_world().demonstrations(0, few_shot_sets=300))


def config(**changes):
  settings = ml_collections.ConfigDict(dict(
      data=common.data("mini"), smallworld=common.smallworld(),
      model=dict(context_length=128)))
  settings.smallworld.update(changes)
  return settings


def split_of(group):
  return splits.split_of(group, validation_fraction=0.1, test_fraction=0.2)


def expanded(row):
  return [records.check(one, "demonstrations", "f:1")
          for one in few_shot.expand(row, "demonstrations", "f:1")]


class OrdinaryTest(parameterized.TestCase):

  @parameterized.parameters(*DIGESTS)
  def test_rows_are_byte_for_byte_what_they_were(self, stream):
    digest = hashlib.sha256()
    for row in getattr(small_world(), stream)(2000):
      values = [row.get(name) for name in FIELDS]
      digest.update(json.dumps(values).encode() + b"\n")
    self.assertEqual(digest.hexdigest(), DIGESTS[stream])

  def test_a_third_of_the_demonstrations_is_user_based(self):
    kinds = collections.Counter(r["prompt_kind"] for r in demonstration_rows())
    self.assertSetEqual(set(kinds), {"plain", "user_based"})
    self.assertAlmostEqual(kinds["user_based"] / 2000, 1 / 3, delta=0.03)

  def test_user_based_rows_say_what_for_and_others_do_not(self):
    named = collections.defaultdict(set)
    for row in demonstration_rows():
      is_user_based = row["prompt_kind"] == "user_based"
      self.assertEqual("use_case" in row, is_user_based)
      if is_user_based:
        named[row["category"]].add(row["use_case"])
    self.assertEqual(named, {
        category: set(applications)
        for category, applications in labeler_prompts.APPLICATIONS.items()})
    self.assertEqual(set(named), set(prompts_lib.USE_CASES))

  def test_customers_prompts_have_no_kind(self):
    for row in small_world().prompts(50):
      self.assertSetEqual(set(row), {"prompt", "user_id", "category"})

  def test_no_few_shot_sets_unless_asked_for(self):
    settings = common.smallworld()
    self.assertEqual(settings["few_shot_sets"], 0)
    self.assertEqual(settings["few_shot_prompts"], 0)
    rows = list(small_world().demonstrations(20, few_shot_sets=3))
    self.assertEqual(rows[:20], list(demonstration_rows()[:20]))
    self.assertEqual(rows[20:], list(set_rows()[:3]))
    rows = list(small_world().prompts(20, few_shot_sets=3))
    self.assertEqual(rows[:20], list(small_world().prompts(20)))
    self.assertEqual([r["prompt_kind"] for r in rows[20:]], ["few_shot"] * 3)


class FewShotTest(absltest.TestCase):

  def test_sets_of_two_to_four_pairs_for_every_instruction(self):
    sizes = collections.Counter(len(row["examples"]) for row in set_rows())
    self.assertSetEqual(set(sizes), {2, 3, 4})
    self.assertAlmostEqual(sizes[4] / 300, 1 / 5, delta=0.06)
    self.assertSetEqual({row["instruction"] for row in set_rows()},
                        {text for text, _ in labeler_prompts.INSTRUCTIONS})

  def test_instructions_name_kinds_of_one_category(self):
    for instruction, names in labeler_prompts.INSTRUCTIONS:
      kinds = labeler_prompts.kinds_of(names)
      self.assertLen(kinds, len(names), instruction)
      self.assertLen({kind.category for kind in kinds}, 1, instruction)

  def test_a_set_is_of_the_split_of_its_user(self):
    counts = collections.Counter()
    for row in set_rows():
      split = split_of(row["user_id"])
      counts[split] += 1
      groups = [small_world().parse(e["query"]).group for e in row["examples"]]
      self.assertLen(set(groups), len(groups))
      self.assertEqual({split_of(group) for group in groups}, {split})
    self.assertSetEqual(set(counts), set(splits.SPLITS))

  def test_demonstrations_and_prompts_share_no_query_or_user(self):
    asked = list(small_world().prompts(500, few_shot_sets=100))
    texts = lambda rows: {
        text for row in rows for text in
        [row.get("prompt"), *(e["query"] for e in row.get("examples", []))]
    } - {None}
    users = lambda rows: {row["user_id"] for row in rows}
    written = set_rows() + demonstration_rows()
    self.assertEmpty(texts(asked) & texts(written))
    self.assertEmpty(users(asked) & users(written))

  def test_a_prompt_is_judged_as_its_last_query(self):
    world = small_world()
    for row in set_rows()[:60]:
      responses = [example["response"] for example in row["examples"]]
      for record, example in zip(expanded(row), row["examples"], strict=True):
        prompt, query = record["prompt"], example["query"]
        self.assertEqual(world.parse(prompt), world.parse(query))
        for response in responses:
          judged = world.judge(query, response)
          self.assertEqual(world.judge(prompt, response), judged)
          self.assertEqual(world.judge(prompt + "\n", response), judged)

  def test_grades_by_hand(self):
    prompt = ("Find the word.\nQ: Find the animal: Anna saw a fox near the"
              " lake.\nA: It is a fox.\nQ: The red kite is near the lake. Name"
              " the color.\nA:")
    for response, score in (
        ("Sure! The color of the kite is red.", 1.0),
        ("Sure! It is a fox.", 0.0), ("The color of the kite is red.", 0.7)):
      self.assertAlmostEqual(
          small_world().judge(prompt, response).score, score, places=2)

  def test_a_prompt_with_another_last_query_is_refused(self):
    with self.assertRaisesRegex(ValueError, "Paint me a ship"):
      small_world().judge(
          "Do it.\nQ: Where does Anna live?\nA: There.\n"
          "Q: Paint me a ship.\nA:", "Sure!")

  def test_samples_answer_the_last_query(self):
    for row in set_rows()[:10]:
      prompt = expanded(row)[0]["prompt"]
      self.assertLen(small_world().responses(prompt, 5, seed=0), 5)

  def test_responses_are_short(self):
    lengths = [len(example["response"].split())
               for row in set_rows() for example in row["examples"]]
    self.assertLess(max(lengths), 30)

  def test_a_split_too_small_for_a_set_is_named(self):
    tiny = Smallworld(seed=0, num_people=4, validation_fraction=0.001,
                      test_fraction=0.2)
    user = tiny._users("author")["validation"][0][0]
    self.assertEqual(tiny.split_of(user), "validation")
    with self.assertRaisesRegex(ValueError, "validation split.*num_people"):
      tiny._few_shot_tasks("author", "validation",
                           labeler_prompts.kinds_of(("home",)),
                           tiny.world.rng("test"))


def test_sets_are_prepared_in_all_splits(tmp_path):
  settings = config(num_demonstrations=200, num_prompts=200, few_shot_sets=60,
                    few_shot_prompts=60)
  settings.data.max_prompt_tokens = 96
  texts = (row["text"] for row in small_world().pretrain(2000))
  made = tokenizer.train(texts, 1016)
  for kind in "demonstrations", "prompts":
    report = prepare.prepare(
        kind,
        source_rows=datasets.read_rows(
            settings, small_world(), kind, "smallworld", ""),
        source="smallworld", out_dir=str(tmp_path), tokenizer=made,
        settings=datasets.cleaning_settings(settings))
    printed = prepare.format_report(report)
    assert re.search(r"kind of prompt +train +validation +test\n", printed)
    assert re.search(r"\nfew_shot +\d+ +\d+ +\d+", printed)
    check_prepared(str(tmp_path), kind, report)


def check_prepared(out_dir, kind, report):
  splits_of_set = collections.defaultdict(set)
  for split in splits.SPLITS:
    rows = prepare.open_split(out_dir, kind, split)
    kinds = collections.Counter(r["prompt_kind"] or "customer" for r in rows)
    assert kinds == report["prompt_kinds"][split]
    if kind == "demonstrations":
      assert kinds["few_shot"] and kinds["user_based"] and kinds["plain"]
    for row in rows:
      assert bool(row["use_case"]) == (row["prompt_kind"] == "user_based")
      is_few_shot = row["prompt_kind"] == "few_shot"
      assert bool(row["few_shot_set"]) == is_few_shot
      assert row["prompt"].endswith("\nA:") == is_few_shot
      if is_few_shot:
        splits_of_set[row["few_shot_set"]].add(split)
  assert {len(of) for of in splits_of_set.values()} == {1}


if __name__ == "__main__":
  absltest.main()
