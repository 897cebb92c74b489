"""Laws of the labelers."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import labelers
from rlhf_jax.data.smallworld import Smallworld

PROMPT = "Write about Anna and a fox. Mention the lake."
RESPONSES = ("Sure! Anna met a fox near the lake.", "Anna met a fox.",
             "Sure! Ben slept.", "", "Sure! Anna met a fox near the lake.")


@functools.cache
def small_world():
  return Smallworld(seed=0, num_people=12, validation_fraction=0.1,
                    test_fraction=0.1)


def make(num_train=2, num_heldout=1, bias_sd=0.1, noise_sd=0.34,
         tie_margin=0.1, seed=0):
  return labelers.smallworld_labelers(
      small_world(), num_train=num_train, num_heldout=num_heldout,
      bias_sd=bias_sd, noise_sd=noise_sd, heldout_noise_sd=noise_sd,
      tie_margin=tie_margin, seed=seed)


def ranking(*ranks):
  return labelers.Ranking(ranks, (4,) * len(ranks), ({},) * len(ranks))


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
    self.assertLen({str(l.bias) for l in (one, two, heldout)}, 3)
    self.assertLen({l.labeler_id for l in (one, two, heldout)}, 3)

  def test_agreement_counts_pairs_that_neither_ties(self):
    # Pairs: (0,1) agree, (0,2) tied by a, (1,2) against each other.
    found = labelers.agreement([ranking(1, 2, 1)], [ranking(1, 2, 3)])
    self.assertEqual((found.num_agree, found.num_pairs), (1, 2))
    self.assertEqual(found.rate, 0.5)

  def test_agreement_refuses_other_responses(self):
    with self.assertRaisesRegex(ValueError, "2 and 3"):
      labelers.agreement([ranking(1, 2)], [ranking(1, 2, 3)])
    with self.assertRaisesRegex(ValueError, "1 rankings against 0"):
      labelers.agreement([ranking(1, 2)], [])

  def test_labelers_agree_about_as_often_as_the_papers(self):
    train, heldout = make(num_train=4, num_heldout=2)
    rows = list(small_world().prompts(150))
    sets = [(row["prompt"], small_world().responses(row["prompt"], 6, 0))
            for row in rows]
    rankings = [[labeler.rank(*item) for item in sets]
                for labeler in train + heldout]
    pairs = [labelers.agreement(a, b)
             for a, b in itertools.combinations(rankings, 2)]
    rate = sum(p.num_agree for p in pairs) / sum(p.num_pairs for p in pairs)
    self.assertBetween(rate, 0.70, 0.76)


if __name__ == "__main__":
  absltest.main()
