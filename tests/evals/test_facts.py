"""Facts of a Smallworld as questions, and who knows them."""

import pytest

from rlhf_jax.data.smallworld.world import World
from rlhf_jax.evals import facts
from rlhf_jax.evals.model import Likelihood
from tests.evals.models import by_name

WORLD = World(seed=3, num_people=5)
FACTS = facts.of_world(WORLD)


class Knows:
  """Finds likely what a fact's statement in `forms` forms says."""

  def __init__(self, forms):
    self.forms = forms

  def likelihoods(self, pairs):
    return [Likelihood(-2.0 + self._is_known(*pair), 1) for pair in pairs]

  def _is_known(self, context, choice):
    claims = WORLD.claims(context + choice)
    assert len(claims) == 1  # the rubric reads it as a statement of a fact
    known = {text for fact in FACTS for text in fact.contexts[:self.forms]}
    return claims[0].is_true and context in known


def test_every_fact_is_asked_in_the_words_of_the_text():
  assert len(FACTS) == len(WORLD.facts)
  by_key = dict(zip(WORLD.fact_keys, FACTS))
  assert by_key["Anna", "pet"].contexts == (
      "Anna has a", "Anna has a pet", "The pet of Anna is a",
      "Anna takes care of a")
  assert by_key["fox", "diet"].contexts == (
      "A fox eats", "A fox likes to eat", "The food of a fox is")
  for key, fact in by_key.items():
    right, *wrong = (choice.removeprefix(" ") for choice in fact.choices)
    assert right == WORLD.facts[key]
    assert len({right, *wrong}) == 4 and set(wrong) <= set(
        WORLD.wrong_values(key))
  assert FACTS == facts.of_world(World(seed=3, num_people=5))
  assert FACTS != facts.of_world(World(seed=4, num_people=5))


@pytest.mark.parametrize("forms", [0, 1, 4])
def test_a_fact_counts_the_forms_that_are_right(forms):
  found = by_name(facts.measure(Knows(forms), FACTS))
  of_all = [len(fact.contexts) for fact in FACTS]
  # what is not known is guessed
  expected = [min(forms, n) / n + max(0, n - forms) / n / 4 for n in of_all]
  assert found["accuracy"].mean == pytest.approx(
      sum(expected) / len(expected))
  assert found["accuracy"].n == found["chance"].n == len(FACTS)
  assert found["chance"].mean == 0.25
  assert found["cut"].n == sum(of_all)


def test_a_small_world_has_fewer_choices():
  small = facts.of_world(World(seed=0, num_people=4))
  assert {len(fact.choices) for fact in small} == {3, 4}
  row = by_name(facts.measure(Lucky(), small))["chance"]
  assert 0.25 < row.mean < 1 / 3


class Lucky:

  def likelihoods(self, pairs):
    return [Likelihood(-1.0, 1) for _ in pairs]
