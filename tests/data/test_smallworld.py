"""Laws of the built-in labeling project."""

import collections
import functools
import statistics

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.data import smallworld
from rlhf_jax.data import splits
from rlhf_jax.data import tokenizer
from rlhf_jax.data.smallworld import demonstrations as demonstrations_lib
from rlhf_jax.data.smallworld import prompts as prompts_lib
from rlhf_jax.data.smallworld import replies
from rlhf_jax.data.smallworld import rubric
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.data.smallworld import world as world_lib

SETTINGS = dict(num_people=12, validation_fraction=0.1, test_fraction=0.1)


@functools.cache
def small_world():
  return Smallworld(seed=0, **SETTINGS)


@functools.cache
def prompt_rows():
  return tuple(small_world().prompts(3000))


@functools.cache
def demonstration_rows():
  return tuple(small_world().demonstrations(2000))


def score(prompt, response):
  return small_world().judge(prompt, response).score


def split_of(group):
  return splits.split_of(group, validation_fraction=0.1, test_fraction=0.1)


class GeneratorTest(parameterized.TestCase):

  @parameterized.parameters("pretrain", "prompts", "demonstrations")
  def test_is_a_function_of_the_seed(self, stream):
    make = lambda seed, num: list(
        getattr(Smallworld(seed=seed, **SETTINGS), stream)(num))
    self.assertEqual(make(3, 40), make(3, 40))
    self.assertEqual(make(3, 40), make(3, 60)[:40])
    self.assertNotEqual(make(3, 40), make(4, 40))

  def test_its_text_has_fewer_tokens_than_a_config_is_told(self):
    """With as many people as there are, and twice the documents of `mini`."""
    world = Smallworld(seed=0, num_people=len(world_lib.NAMES))
    found = tokenizer.train(
        (row["text"] for row in world.pretrain(12_000)), 50_257).vocab_size
    self.assertBetween(found, 1_200, smallworld.MAX_VOCABULARY - 500)

  def test_documents_state_every_fact_and_seldom_a_false_one(self):
    world = small_world().world
    stated, num_words = collections.Counter(), []
    num_false = 0
    for row in small_world().pretrain(3000):
      num_words.append(len(row["text"].split()))
      for claim in world.claims(row["text"]):
        num_false += not claim.is_true
        if claim.is_true:
          stated[claim.subject, claim.attribute] += 1
    # People err when they answer each other, as in any large text.
    self.assertLess(num_false, 0.05 * stated.total())
    self.assertSetEqual(set(stated), set(world.facts))
    # 2 M tokens are about 20,000 documents: 50 a fact are 7.5 here.
    self.assertGreaterEqual(min(stated.values()), 8)
    self.assertBetween(statistics.mean(num_words), 60, 100)
    self.assertBetween(min(num_words), 35, 60)

  def test_the_mix_of_use_cases_is_the_papers(self):
    for rows in prompt_rows(), demonstration_rows():
      counts = collections.Counter(row["category"] for row in rows)
      for category, share in prompts_lib.USE_CASES.items():
        self.assertAlmostEqual(counts[category] / len(rows), share, delta=0.03)

  def test_few_words_and_short_texts(self):
    rows = demonstration_rows() + prompt_rows()
    texts = [row["text"] for row in small_world().pretrain(500)]
    words = {w for text in texts for w in world_lib.words_of(text)}
    for row in rows:
      words.update(world_lib.words_of(row["prompt"]))
      self.assertLessEqual(len(row["prompt"].split()), 30)
    self.assertBetween(len(words), 380, 550)
    lengths = [len(row["prompt"].split()) for row in prompt_rows()]
    self.assertBetween(statistics.mean(lengths), 8, 14)
    lengths = [len(row["response"].split()) for row in demonstration_rows()]
    self.assertBetween(statistics.mean(lengths), 8, 16)
    # labelers who ramble are rare: cleaning drops most of what they write
    self.assertLess(sum(n > 30 for n in lengths) / len(lengths), 0.02)

  def test_replies_greet_or_close_or_both(self):
    polite = [
        (row["response"].startswith(replies.OPENERS),
         row["response"].endswith(replies.CLOSERS))
        for row in demonstration_rows()]
    share = collections.Counter(polite)
    num_polite = len(polite) - share[False, False]
    self.assertBetween(share[True, True] / num_polite, 0.15, 0.35)
    self.assertBetween(share[False, True] / num_polite, 0.15, 0.35)

  def test_cleaning_has_something_to_find(self):
    rows = prompt_rows()
    users = collections.Counter(row["user_id"] for row in rows)
    self.assertGreater(users.most_common(1)[0][1], 200)
    sent = {row["prompt"] for row in rows}
    again = [row for row in rows for end in prompts_lib.ADDITIONS
             if row["prompt"].endswith(end)
             and row["prompt"].removesuffix(end) in sent]
    self.assertBetween(len(again) / len(rows), 0.02, 0.06)
    self.assertGreaterEqual(min(len(r["prompt"].split()) for r in again), 8)
    private = [row for row in rows if any(
        mark in row["prompt"] for mark in ("@mail", "Call me at", "My card"))]
    self.assertBetween(len(private) / len(rows), 0.01, 0.03)


class SplitTest(absltest.TestCase):

  def test_splits_share_no_user_filler_or_fact(self):
    for rows in prompt_rows(), demonstration_rows():
      seen = collections.defaultdict(set)
      for row in rows:
        split = split_of(row["user_id"])
        task = small_world().parse(row["prompt"])
        group = (task.fact_key if task.kind.fact
                 else (task.kind.name, *sorted(task.slots.items())))
        seen[row["user_id"]].add(split)
        seen[group].add(split)
        self.assertEqual(split_of(task.group), split)
      self.assertEqual({len(found) for found in seen.values()}, {1})

  def test_every_split_gets_its_share(self):
    counts = collections.Counter(split_of(r["user_id"]) for r in prompt_rows())
    self.assertAlmostEqual(counts["test"] / 3000, 0.1, delta=0.02)
    self.assertAlmostEqual(counts["validation"] / 3000, 0.1, delta=0.02)

  def test_prompts_and_demonstrations_share_no_text_or_user(self):
    for field in "prompt", "user_id":
      asked = {row[field] for row in prompt_rows()}
      self.assertEmpty(asked & {row[field] for row in demonstration_rows()})

  def test_no_training_split_is_refused(self):
    with self.assertRaisesRegex(ValueError, "sum must be below 1"):
      Smallworld(seed=0, num_people=12, validation_fraction=0.5,
                 test_fraction=0.5)


class ParserTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (kind.name, kind) for kind in prompts_lib.KINDS)
  def test_every_form_is_read_back(self, kind):
    world = small_world().world
    for index, form in enumerate(kind.forms * 3):
      rng = world.rng("test", index)
      task = prompts_lib.draw_task(world, kind, rng)
      prompt = prompts_lib.prompt_text(task, form)
      self.assertEqual(small_world().parse(prompt), task)
      for addition in (*prompts_lib.ADDITIONS,
                       prompts_lib.private_addition(rng)):
        self.assertEqual(small_world().parse(prompt + addition), task)

  def test_another_prompt_is_named(self):
    with self.assertRaisesRegex(ValueError, "Paint me a ship"):
      small_world().judge("Paint me a ship.", "Sure!")


class RubricTest(parameterized.TestCase):

  def test_flawless_replies_score_high(self):
    world = small_world().world
    for kind in prompts_lib.KINDS:
      scores = []
      for index in range(20):
        rng = world.rng(f"flawless/{kind.name}", index)
        task = prompts_lib.draw_task(world, kind, rng)
        prompt = prompts_lib.prompt_text(task, rng.choice(kind.forms))
        scores.append(score(
            prompt, demonstrations_lib.write_reply(world, task, rng)))
      self.assertGreater(statistics.mean(scores), 0.95, kind.name)

  @parameterized.parameters(
      # generation: all well; constraint forgotten; a subject left out; none.
      ("Write about Anna and a fox. Mention the lake.",
       ("Sure! Anna met a fox near the lake.", 1.0),
       ("Sure! Anna met a fox.", 0.7),
       ("Sure! Anna met a cow near the lake.", 0.5),
       ("Sure! Ben met a cow near the mill.", 0.0)),
      ("Describe a ball at the lake in one sentence.",
       ("There is a red ball at the lake. Thank you.", 1.0),
       ("I see a ball. It is at the lake. Thank you.", 0.7)),
      ("List two gifts for Anna. One must be red.",
       ("Sure! Anna may like a red kite and a drum.", 1.0),
       ("Sure! Anna may like a kite and a drum.", 0.7),
       ("Sure! Anna may like a red kite.", 0.5)),
      ("Hi! I lost my kite near the lake. Can you help?",
       ("Of course! Let us look for the kite at the lake.", 1.0),
       ("Let us look for the kite at the lake.", 0.7),
       ("Of course! Let us look for the kite.", 0.5)),
      ("Change Anna to Ben: Anna lost the kite near the lake.",
       ("Sure! Ben lost the kite near the lake.", 1.0),
       ("Sure! Near the lake, Ben lost the kite of Anna.", 0.7)),
      ("Sum up: Anna went to the lake. There was a fox. It was small."
       " Then Anna went home.",
       ("Anna saw a fox at the lake. Thank you.", 1.0),
       ("Anna saw a fox. Thank you.", 2 / 3)),
      ("Anna says bread. Is that an animal, food, place or object?",
       ("Sure! The word bread means a food.", 1.0),
       ("Sure! It is a food.", 0.4),
       ("Sure! The word bread means an animal.", 0.15)),
      ("Say these words in order: kite, fox, red.",
       ("The words are kite, fox and red. Thank you.", 1.0),
       ("The words are red, fox and kite. Thank you.", 0.7)),
      ("Anna gave a kite to Ben. Who has the kite?",
       ("Sure! Ben has the kite.", 1.0),
       ("Sure! Clara has the kite.", 0.15)),
      ("Find the animal: Anna saw a fox near the lake.",
       ("It is a fox. I hope this helps.", 1.0),
       ("It is a cow. I hope this helps.", 0.15)))
  def test_grades_by_hand(self, prompt, *graded):
    for response, expected in graded:
      self.assertAlmostEqual(
          score(prompt, response), expected, places=2, msg=response)

  def test_answers_must_be_true(self):
    world = small_world().world
    home = world.facts["Anna", "home"]
    wrong = next(p for p in world.words["place"] if p != home)
    prompt = "Where does Anna live?"
    self.assertEqual(score(prompt, f"Sure! Anna lives near the {home}."), 1)
    judged = small_world().judge(prompt, f"Sure! Anna lives near the {wrong}.")
    self.assertLess(judged.score, 0.2)
    self.assertTrue(judged.metadata["hallucination"])
    self.assertTrue(judged.metadata["fails_instruction"])
    self.assertLess(
        score(prompt, f"Sure! Anna lives near the {home} or the {wrong}."), .7)
    self.assertAlmostEqual(
        score("Write about Anna and a fox. Mention the bridge.",
              "Sure! Anna met a fox near the bridge."
              f" Anna lives near the {wrong}."), 0.8, places=2)

  def test_bad_manners_and_bad_form_cost(self):
    prompt = "Write about Anna and a fox. Mention the lake."
    good = "Anna met a fox near the lake. Thank you."
    self.assertEqual(score(prompt, good), 1.0)
    for worse in (
        "Anna met a fox near the lake",
        "Anna met a fox near the lake. This is boring.",
        "Sure! Anna fox lake.", "Sure! Anna, fox, lake.",
        "Sure, Anna, fox, lake.", "Anna and a fox. The lake. Sure.",
        "Sure, Anna fox lake red ball Anna fox lake.",
        " ".join([good] * 4), good + " Rain is good for the corn.",
        good + " The cow, the pig, the hen and the crow went to the mill and"
        " the cave and the park and ate corn.",
        "Sure! Anxa mey a fox neb the lake gli opo."):
      self.assertLess(score(prompt, worse), 0.85, worse)

  @parameterized.parameters("", " ", "!!!", "\n", "é ß 漢", "zzz " * 500, "fox")
  def test_any_text_has_a_score(self, text):
    judged = small_world().judge(
        "Write about Anna and a fox. Mention the lake.", text)
    self.assertBetween(judged.score, 0, 0.5)
    self.assertBetween(judged.likert, 1, 4)
    self.assertLen(judged.metadata, 11)

  def test_demonstrations_leave_headroom(self):
    scores = [score(r["prompt"], r["response"]) for r in demonstration_rows()]
    self.assertBetween(statistics.mean(scores), 0.53, 0.65)
    self.assertBetween(statistics.pstdev(scores), 0.2, 0.3)
    self.assertBetween(sum(s > 0.97 for s in scores) / len(scores), 0.1, 0.25)

  def test_no_constant_reply_scores_well_anywhere(self):
    rows = demonstration_rows()
    constants = [row["response"] for row in rows[:200]] + [
        "Sure! I hope this helps.", "Of course. Thank you. Have a nice day.",
        "Yes, it is an animal.", "Sure! It is sad.", "No. Thank you.",
        "Sure! Anna met a red fox near the lake."]
    for category in prompts_lib.USE_CASES:
      own = [row for row in rows if row["category"] == category]
      mean = statistics.mean(
          score(row["prompt"], row["response"]) for row in own)
      best = max(
          statistics.mean(score(r["prompt"], text) for r in own[:20])
          for text in constants)
      self.assertLess(best, 0.35, category)
      self.assertLess(best, 0.6 * mean, category)

  def test_echoes_score_badly(self):
    for category in prompts_lib.USE_CASES:
      own = [r["prompt"] for r in prompt_rows() if r["category"] == category]
      for echo in (lambda p: p, lambda p: "Sure! " + p):
        mean = statistics.mean(score(p, echo(p)) for p in own[:60])
        self.assertLess(mean, 0.2, category)

  def test_metadata_are_table_3(self):
    judged = small_world().judge("Where does Anna live?", "I do not know.")
    self.assertSetEqual(set(judged.metadata), {
        "fails_instruction", "inappropriate_for_customer_assistant",
        "hallucination", "satisfies_constraint", "sexual_content",
        "violent_content", "encourages_violence",
        "denigrates_protected_class", "harmful_advice", "expresses_opinion",
        "expresses_moral_judgment"})

  def test_full_marks_sum_to_one(self):
    self.assertAlmostEqual(rubric.Parts(1, 1, 1, 1, 1).score, 1)


if __name__ == "__main__":
  absltest.main()
