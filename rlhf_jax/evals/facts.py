"""World knowledge of a Smallworld's models: its facts as multiple choice.

The pretraining text states every fact in several forms. Of those that end in
the value, what stands before it is the context: "The pet of Anna is a", with
" dog" against three wrong values of the same kind.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from rlhf_jax.data.smallworld import world as world_lib
from rlhf_jax.evals import multiple_choice, results
from rlhf_jax.evals.model import Model
from rlhf_jax.evals.results import Row

NUM_WRONG = 3


@dataclasses.dataclass(frozen=True)
class Fact:
  """One fact, asked in every form.

  Attributes:
    contexts: each form up to the value.
    choices: values, a blank before them; the first is the right one.
  """

  contexts: tuple[str, ...]
  choices: tuple[str, ...]

  @property
  def num_texts(self) -> int:
    return len(self.contexts) * len(self.choices)


def of_world(world: world_lib.World) -> list[Fact]:
  """All facts of a world, in its order: a function of its seed."""
  return [_fact(world, key) for key in world.fact_keys]


def _fact(world: world_lib.World, key: tuple[str, str]) -> Fact:
  subject, attribute = key
  contexts = [
      world_lib.capitalized(form.removesuffix("{value}").strip().format(
          subject=subject))
      for form in world_lib.FACT_FORMS[attribute] if form.endswith("{value}")]
  pool = world.wrong_values(key)
  wrong = world.rng("facts/wrong", f"{subject}/{attribute}").sample(
      pool, min(NUM_WRONG, len(pool)))
  return Fact(tuple(contexts),
              multiple_choice.spaced((world.facts[key], *wrong)))


def measure(model: Model, facts: Sequence[Fact]) -> Iterator[Row]:
  """Yields `accuracy`, and `chance`, the accuracy of blind guessing.

  A fact counts the share of its forms that are answered rightly: a model that
  knows it in one form is likely to know it in another, so that facts, not
  forms, are what the interval is over.
  """
  asked = [(number, context) for number, fact in enumerate(facts)
           for context in fact.contexts]
  found = multiple_choice.likelihoods(model, [
      (context, facts[number].choices) for number, context in asked])
  credit: dict[int, list[float]] = {}
  for (number, _), of in zip(asked, found):
    if of is not None:
      credit.setdefault(number, []).append(
          multiple_choice.credit([like.mean for like in of], 0))
  yield results.mean("accuracy", [
      float(np.mean(of)) for of in credit.values()])
  yield results.constant(
      "chance", float(np.mean(
          [1 / len(facts[number].choices) for number in credit] or [np.nan])),
      len(credit))
  yield from multiple_choice.fit(found)
