"""Labelers: who ranks the responses to a prompt.

A labeler rates each response, then ranks them, ties allowed (InstructGPT,
section 3.5 and figure 12). Smallworld's labelers see the gold score through an
own bias, fixed a labeler, and through noise, fixed a response; the errors are
additive, so close calls go wrong often and clear ones seldom, as with people.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import random
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Ranking:
  """One labeler's judgment of K responses to one prompt.

  Attributes:
    ranks: 1 is best, equal ranks are ties, no rank is left out.
    likert: overall quality of each response, 1 to 7.
    metadata: the paper's Table 3 fields of each response.
  """

  ranks: tuple[int, ...]
  likert: tuple[int, ...]
  metadata: tuple[dict, ...]


class Labeler(Protocol):
  """Anyone who ranks: a person behind a queue, a simulation, a model."""

  labeler_id: str

  def rank(self, prompt: str, responses: Sequence[str]) -> Ranking:
    """Ranks the responses to one prompt."""


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Pairwise agreement of two sets of rankings of the same responses.

  Attributes:
    num_agree: pairs that both put in the same order.
    num_pairs: pairs that both rank without a tie.
  """

  num_agree: int
  num_pairs: int

  @property
  def rate(self) -> float:
    """Share of agreement; not a number without a pair."""
    return self.num_agree / self.num_pairs if self.num_pairs else float("nan")


class SmallworldLabeler:
  """Ranks by the gold score, seen through an own bias and noise.

  utility = gold + sum over parts j of b_j (part_j - 1/2) + e, in units of the
  gold score, with b_j ~ N(0, bias_sd) fixed a labeler and e ~ N(0, noise_sd)
  fixed by labeler, prompt and response.
  """

  TASTES = ("follow", "constraint", "truth", "polite", "form", "length")

  def __init__(self, world, labeler_id: str, *, bias_sd: float,
               noise_sd: float, tie_margin: float, seed: int):
    self.labeler_id = labeler_id
    self._world = world
    self._noise_sd = noise_sd
    self._tie_margin = tie_margin
    self._seed = seed
    rng = random.Random(f"{seed}/labeler/{labeler_id}")
    self.bias = {taste: rng.gauss(0, bias_sd) for taste in self.TASTES}

  def rank(self, prompt: str, responses: Sequence[str]) -> Ranking:
    """Ranks the responses; equal texts always tie."""
    judgments = [self._world.judge(prompt, text) for text in responses]
    utilities = [self._utility(prompt, text, judgment)
                 for text, judgment in zip(responses, judgments)]
    likert = tuple(min(7, max(1, 1 + round(6 * u))) for u in utilities)
    return Ranking(dense_ranks(utilities, self._tie_margin), likert,
                   tuple(judgment.metadata for judgment in judgments))

  def _utility(self, prompt: str, response: str, judgment) -> float:
    parts = dataclasses.asdict(judgment.parts)
    parts["length"] = min(1.0, len(response.split()) / 20)
    bias = sum(self.bias[t] * (parts[t] - 0.5) for t in self.TASTES)
    rng = random.Random(
        f"{self._seed}/{self.labeler_id}/{prompt}\n{response}")
    return judgment.score + bias + rng.gauss(0, self._noise_sd)


def smallworld_labelers(
    world, *, num_train: int, num_heldout: int, bias_sd: float,
    noise_sd: float, heldout_noise_sd: float, tie_margin: float, seed: int
) -> tuple[list[SmallworldLabeler], list[SmallworldLabeler]]:
  """(training, held-out) labelers of a `Smallworld`.

  How often two of them agree depends on how mixed the responses are: a policy
  that answers everything well leaves little but noise to rank by. The settings
  of `experiments/common.py` are for the SFT samples of `mini`; the aim is the
  paper's rates (training labelers agree on 72.6 % of the pairs, held-out ones
  on 77.3 %; section 3.4), and `collect/done.json` has those of a run.

  Args:
    world: the `Smallworld` whose gold score they see.
    num_train: labelers who make the training data.
    num_heldout: labelers who only evaluate.
    bias_sd: spread of the labelers' own tastes, in gold-score units.
    noise_sd: spread of the error of a training labeler's one rating, in
      gold-score units.
    heldout_noise_sd: the same of a held-out labeler.
    tie_margin: ratings closer than this are a tie.
    seed: of the tastes and the noise.

  Returns:
    Two lists without a labeler in common.
  """
  def group(name, size, noise):
    return [
        SmallworldLabeler(
            world, f"{name}_{n:02d}", bias_sd=bias_sd, noise_sd=noise,
            tie_margin=tie_margin, seed=seed)
        for n in range(size)
    ]

  train = group("train", num_train, noise_sd)
  heldout = group("heldout", num_heldout, heldout_noise_sd)
  return train, heldout


def dense_ranks(utilities: Sequence[float], tie_margin: float
                ) -> tuple[int, ...]:
  """Ranks, 1 for the highest; a gap of `tie_margin` starts the next rank.

  Neighbours in the sorted order tie if they are closer than the margin, so a
  tie is transitive: a chain of close calls is one rank.
  """
  order = sorted(range(len(utilities)), key=lambda i: -utilities[i])
  ranks = [0] * len(utilities)
  rank = 1
  for previous, current in zip([None] + order, order):
    if previous is not None:
      gap = utilities[previous] - utilities[current]
      rank += gap > 0 and gap >= tie_margin
    ranks[current] = rank
  return tuple(ranks)


def agreement(rankings_a: Sequence[Ranking], rankings_b: Sequence[Ranking]
              ) -> Agreement:
  """How often two labelers order a pair alike, where neither ties it.

  Args:
    rankings_a: one labeler's rankings, a prompt each.
    rankings_b: the other's, of the same prompts and responses.

  Raises:
    ValueError: the two do not rank the same number of things.
  """
  if len(rankings_a) != len(rankings_b):
    raise ValueError(
        f"{len(rankings_a)} rankings against {len(rankings_b)}: pass the same"
        " prompts in the same order")
  num_agree = num_pairs = 0
  for a, b in zip(rankings_a, rankings_b):
    if len(a.ranks) != len(b.ranks):
      raise ValueError(
          f"rankings of {len(a.ranks)} and {len(b.ranks)} responses: pass the"
          " same responses in the same order")
    for i, j in itertools.combinations(range(len(a.ranks)), 2):
      if a.ranks[i] != a.ranks[j] and b.ranks[i] != b.ranks[j]:
        num_pairs += 1
        num_agree += (a.ranks[i] < a.ranks[j]) == (b.ranks[i] < b.ranks[j])
  return Agreement(num_agree, num_pairs)
