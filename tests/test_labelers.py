"""Laws of the labelers."""

import functools
import itertools
import random
import types

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import labelers
from rlhf_jax.data.records import DataError
from rlhf_jax.evals import agreement
from rlhf_jax.data.smallworld import Smallworld

PROMPT = "Write about Anna and a fox. Mention the lake."
RESPONSES = ("Sure! Anna met a fox near the lake.", "Anna met a fox.",
             "Sure! Ben slept.", "", "Sure! Anna met a fox near the lake.")


@functools.cache
def small_world():
  return Smallworld(seed=0, num_people=12, validation_fraction=0.1,
                    test_fraction=0.1)


def make(num_train=2, num_heldout=1, bias_sd=0.1, noise_sd=0.34,
         tie_margin=0.1, seed=0, priority="helpful"):
  return labelers.smallworld_labelers(
      small_world(), num_train=num_train, num_heldout=num_heldout,
      bias_sd=bias_sd, noise_sd=noise_sd, heldout_noise_sd=noise_sd,
      tie_margin=tie_margin, seed=seed, priority=priority)


class LabelersTest(parameterized.TestCase):

  @parameterized.parameters(
      ((0.9, 0.1, 0.5), 0.1, (1, 3, 2)),
      ((0.5, 0.55, 0.9), 0.1, (2, 2, 1)),
      ((0.5, 0.58, 0.66), 0.1, (1, 1, 1)),  # a chain of close calls
      ((0.5, 0.5, 0.6), 0.0, (2, 2, 1)),
      ((), 0.1, ()))
  def test_ranks_are_dense_and_close_calls_tie(self, utilities, margin, ranks):
    self.assertEqual(labelers.dense_ranks(utilities, margin), ranks)

  def test_without_bias_and_noise_the_gold_score_ranks(self):
    (labeler, _), _ = make(bias_sd=0, noise_sd=0)
    found = labeler.rank(PROMPT, RESPONSES)
    self.assertEqual(found.ranks, (1, 2, 3, 3, 1))
    self.assertEqual(found.likert[0], 7)
    self.assertEqual(found.likert[3], 1)
    self.assertLen(found.metadata, 5)

  def test_each_group_has_its_own_noise(self):
    settings = dict(num_train=1, num_heldout=1, bias_sd=0, tie_margin=0.1,
                    seed=0)
    clear, noisy = (1, 2, 3, 3, 1), dict(noise_sd=5.0, heldout_noise_sd=0.0)
    (train,), (heldout,) = labelers.smallworld_labelers(
        small_world(), **settings, **noisy)
    self.assertEqual(heldout.rank(PROMPT, RESPONSES).ranks, clear)
    self.assertNotEqual(train.rank(PROMPT, RESPONSES).ranks, clear)

  def test_noise_is_fixed_by_labeler_and_text(self):
    (one, two), (heldout,) = make()
    self.assertEqual(one.rank(PROMPT, RESPONSES), one.rank(PROMPT, RESPONSES))
    backwards = one.rank(PROMPT, RESPONSES[::-1])
    self.assertEqual(one.rank(PROMPT, RESPONSES).ranks, backwards.ranks[::-1])
    self.assertLen({str(who.bias) for who in (one, two, heldout)}, 3)
    self.assertLen({who.labeler_id for who in (one, two, heldout)}, 3)

  def test_in_the_final_evaluation_truth_and_manners_come_first(self):
    """Training labelers like the helpful liar best, the final ones least."""
    world = small_world()
    person = world.world.words["person"][0]
    key = (person, "pet")
    lie = world.world.wrong_value(key, random.Random(0))
    prompt = f"Write about {person} and a fox. Mention the lake."
    useful = f"Sure! {person} met a fox near the lake. {person} has a {lie}."
    dull = f"{person} met a fox."
    rude = f"Sure! {person} met a fox near the lake. I do not want to help."
    for other, first in (("helpful", (1, 2)), ("truthful_harmless", (2, 1))):
      (labeler,), _ = make(
          num_train=1, bias_sd=0, noise_sd=0, priority=other)
      self.assertEqual(labeler.rank(prompt, (useful, dull)).ranks, first)
    (final,), _ = make(
        num_train=1, bias_sd=0, noise_sd=0, priority="truthful_harmless")
    self.assertEqual(final.rank(prompt, (rude, dull)).ranks, (2, 1))

  def test_priority_changes_neither_taste_nor_noise(self):
    (one,), _ = make(num_train=1)
    (other,), _ = make(num_train=1, priority="truthful_harmless")
    self.assertEqual(one.bias, other.bias)
    harmless = ("Sure! Anna met a fox near the lake.", "Anna met a fox.")
    self.assertEqual(one.rank(PROMPT, harmless), other.rank(PROMPT, harmless))

  def test_given_ranks_are_given_back(self):
    known = labelers.Ranking((1, 2), seconds=3.5)
    labeler = labelers.GivenRanks("ann", {("p", ("a", "b")): known})
    self.assertEqual(labeler.rank("p", ["a", "b"]), known)
    for responses in (["b", "a"], ["a"]):
      with self.assertRaisesRegex(DataError, "'ann' has ranked no such"):
        labeler.rank("p", responses)

  def test_no_world_no_labelers(self):
    with self.assertRaisesRegex(ValueError, "labeler=export"):
      labelers.of_run(types.SimpleNamespace(world=None))

  def test_a_small_group_is_not_asked_twice(self):
    self.assertEqual(labelers.assign(["a"], "prompt", 2), ("a",))
    self.assertEqual(set(labelers.assign(["a", "b"], "prompt", 2)), {"a", "b"})

  def test_labelers_agree_about_as_often_as_the_papers(self):
    train, heldout = make(num_train=4, num_heldout=2)
    rows = list(small_world().prompts(150))
    sets = [(row["prompt"], small_world().responses(row["prompt"], 6, 0))
            for row in rows]
    rankings = [[labeler.rank(*item) for item in sets]
                for labeler in train + heldout]
    pairs = [
        agreement.pairwise(one.ranks, other.ranks)
        for a, b in itertools.combinations(rankings, 2)
        for one, other in zip(a, b)]
    rate = sum(p[0] for p in pairs) / sum(p[1] for p in pairs)
    self.assertBetween(rate, 0.70, 0.76)


if __name__ == "__main__":
  absltest.main()
