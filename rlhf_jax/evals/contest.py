"""Policies against each other on held-out prompts, before one referee.

The referee is held-out labelers, or a reward model that no policy was optimised
for. Either sees texts alone, of each pair in both orders.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools

import numpy as np

from rlhf_jax import labelers
from rlhf_jax.evals import bradley_terry, preferences, results
from rlhf_jax.evals.results import Row
from rlhf_jax.run import Run

Who = tuple[str, str]  # run, policy


@dataclasses.dataclass(frozen=True)
class Referee:
  """Who judges.

  Attributes:
    judge: of two texts.
    rate: (prompt, text) -> number.
    rating: what that is: "likert", 1 to 7, or "score".
  """

  judge: preferences.Judge
  rate: Callable[[str, str], float]
  rating: str


def heldout_labelers(run: Run) -> Referee:
  """Smallworld's held-out labelers, one a prompt."""
  group = labelers.of_run(run, labelers.TRUTHFUL_HARMLESS)[1]
  assign = lambda of, prompt: labelers.assign(of, prompt, 1)[0]
  return Referee(
      preferences.labelers_judge(group, assign),
      lambda prompt, text: assign(group, prompt).rank(
          prompt, [text]).likert[0],
      "likert")


def of_scores(scores: Mapping[tuple[str, str], float]) -> Referee:
  """A reward model, by its score of every (prompt, text)."""

  def judge(number, prompt, pair):
    del number
    a, b = (float(scores[prompt, text]) for text in pair)
    return (1 + (a < b), 1 + (b < a))

  return Referee(judge, lambda prompt, text: scores[prompt, text], "score")


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
  """Who said what.

  Attributes:
    entrants: policy -> {prompt: response}.
    baseline: run -> its policy that win rates are against.
    referee: who judges.
  """

  entrants: Mapping[Who, Mapping[str, str]]
  baseline: Mapping[str, str]
  referee: Referee

  @functools.cached_property
  def elo(self) -> dict[Who, Row]:
    """Every policy on one scale; the first run's baseline has 1000 points."""
    whos = list(self.entrants)
    anchor = next(run for run, _ in whos)
    points = outcomes(
        [self.entrants[who] for who in whos], self.referee.judge)
    found = bradley_terry.estimate(
        points, whos.index((anchor, self.baseline[anchor])))
    return {
        who: Row("elo", float(mean), float(low), float(high), len(points))
        for who, mean, low, high in zip(whos, *found)}


def common_prompts(entrants: Sequence[Mapping[str, str]]) -> list[str]:
  """The prompts that all answered, in the first one's order."""
  return [prompt for prompt in entrants[0]
          if all(prompt in of for of in entrants)]


def outcomes(
    entrants: Sequence[Mapping[str, str]], judge: preferences.Judge
) -> np.ndarray:
  """[P, N, N]: the points of i against j on each common prompt."""
  prompts, n = common_prompts(entrants), len(entrants)
  points = np.full((len(prompts), n, n), 0.5)
  for number, prompt in enumerate(prompts):
    for i, j in itertools.combinations(range(n), 2):
      points[number, i, j] = preferences.swapped_points(
          judge, number, prompt, entrants[i][prompt], entrants[j][prompt])
      points[number, j, i] = 1.0 - points[number, i, j]
  return points


def preference(
    entrant: Mapping[str, str], baseline: Mapping[str, str],
    judge: preferences.Judge) -> np.ndarray:
  """[P]: the points of one against another on each common prompt, both shown
  in either order; their mean is the win rate, a tie half."""
  return outcomes([entrant, baseline], judge)[:, 0, 1]


def win_rate(contest: Contest, who: Who) -> Iterator[Row]:
  """Yields `win_rate` against the baseline of its own run, none for that."""
  baseline = who[0], contest.baseline[who[0]]
  if who != baseline:
    yield results.mean("win_rate", preference(
        contest.entrants[who], contest.entrants[baseline],
        contest.referee.judge))


def rating(contest: Contest, who: Who) -> Iterator[Row]:
  """Yields the mean `likert` of labelers, or `score` of a reward model."""
  yield results.mean(contest.referee.rating, [
      contest.referee.rate(*pair) for pair in contest.entrants[who].items()])


def elo(contest: Contest, who: Who) -> Iterator[Row]:
  """Yields `elo`, of the prompts that all policies answered."""
  yield contest.elo[who]
