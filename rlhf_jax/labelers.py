"""Labelers: who ranks the responses to a prompt.

A labeler rates each response, then ranks them, ties allowed (InstructGPT,
section 3.5 and figure 12). Three sorts share one interface, `Labeler`::

  SmallworldLabeler  sees the gold score through a bias of its own and noise
  RewardLabeler      a reward model, for studies with a synthetic truth
  GivenRanks         reads what people have ranked before
"""

from collections.abc import Mapping, Sequence
import dataclasses
import random
from typing import Any, Protocol

import numpy as np

from rlhf_jax import checkpoint, scoring
from rlhf_jax.data.records import DataError
from rlhf_jax.data.splits import unit_hash
from rlhf_jax.run import Run

GROUPS = TRAIN, HELDOUT = "train", "heldout"
# What comes first when two things cannot be had (InstructGPT 3.4 and B.2): in
# training data to be helpful, in the final evaluation to be true and harmless.
HELPFUL, TRUTHFUL_HARMLESS = "helpful", "truthful_harmless"
# What a reply of nothing but untruths, or a harmful one, loses in the final
# evaluation, in gold-score units.
_UNTRUTH, _HARM = 1.0, 1.0
METADATA = (  # Table 3; "quality" is the Likert scale
    "fails_instruction", "inappropriate_for_customer_assistant",
    "hallucination", "satisfies_constraint", "sexual_content",
    "violent_content", "encourages_violence", "denigrates_protected_class",
    "harmful_advice", "expresses_opinion", "expresses_moral_judgment")


@dataclasses.dataclass(frozen=True)
class Ranking:
  """One labeler's judgment of K responses to one prompt.

  Attributes:
    ranks: 1 is best, equal ranks are ties, no rank is left out.
    likert: overall quality of each response, 1 to 7; () if not asked.
    metadata: fields of METADATA, true or false, of each; () if not asked.
    seconds: how long it took; None where nobody's time was taken.
  """

  ranks: tuple[int, ...]
  likert: tuple[int, ...] = ()
  metadata: tuple[Mapping[str, bool], ...] = ()
  seconds: float | None = None


class Labeler(Protocol):
  """Anyone who ranks: a person behind a queue, a simulation, a model."""

  labeler_id: str

  def rank(self, prompt: str, responses: Sequence[str]) -> Ranking:
    """Ranks the responses to one prompt."""


class SmallworldLabeler:
  """Ranks by the gold score, seen through an own bias and noise.

  utility = quality + sum over parts j of b_j (part_j - 1/2) + e, in units of
  the gold score, with b_j ~ N(0, bias_sd) fixed a labeler and e ~ N(0,
  noise_sd) fixed by labeler, prompt and response. The errors are additive, so
  close calls go wrong often and clear ones seldom, as with people. The quality
  is the gold score, which puts following the instruction first; with
  `priority` TRUTHFUL_HARMLESS a harmful or untrue reply loses more than any
  help could bring.

  >>> from rlhf_jax.data.smallworld import Smallworld
  >>> ann = SmallworldLabeler(Smallworld(), "ann", bias_sd=0.0, noise_sd=0.0)
  >>> ann.rank("What pet does Kate have?",
  ...          ["A cat.", "Sure! Kate has a dog.", "Kate has a dog."]).ranks
  (3, 1, 2)
  """

  TASTES = ("follow", "constraint", "truth", "polite", "form", "length")

  def __init__(self, world, labeler_id: str, *, bias_sd: float = 0.1,
               noise_sd: float = 0.22, tie_margin: float = 0.08,
               seed: int = 0, priority: str = HELPFUL):
    self.labeler_id = labeler_id
    self._world = world
    self._noise_sd = noise_sd
    self._tie_margin = tie_margin
    self._seed = seed
    self._priority = priority
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
    return self._quality(judgment) + bias + rng.gauss(0, self._noise_sd)

  def _quality(self, judgment) -> float:
    if self._priority == HELPFUL:
      return judgment.score
    is_harmful = judgment.metadata["inappropriate_for_customer_assistant"]
    return (judgment.score - _UNTRUTH * (1 - judgment.parts.truth)
            - _HARM * is_harmful)


def smallworld_labelers(
    world, *, num_train: int, num_heldout: int, bias_sd: float,
    noise_sd: float, heldout_noise_sd: float, tie_margin: float, seed: int,
    priority: str = HELPFUL,
) -> tuple[list[SmallworldLabeler], list[SmallworldLabeler]]:
  """(training, held-out) labelers of a `Smallworld`.

  How often two of them agree depends on how mixed the responses are: a policy
  that answers everything well leaves little but noise to rank by. The settings
  of `experiments/common.py` are for the SFT samples of `mini`; the aim is the
  paper's rates (training labelers agree on 72.6 % of the pairs, held-out ones
  on 77.3 %; section 3.4), and `collect/report.json` has those of a run.

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
    priority: HELPFUL or TRUTHFUL_HARMLESS.

  Returns:
    Two lists without a labeler in common.
  """
  def group(name, size, noise):
    return [
        SmallworldLabeler(
            world, f"{name}_{n:02d}", bias_sd=bias_sd, noise_sd=noise,
            tie_margin=tie_margin, seed=seed, priority=priority)
        for n in range(size)
    ]

  return (group(TRAIN, num_train, noise_sd),
          group(HELDOUT, num_heldout, heldout_noise_sd))


def of_run(run: Run, priority: str = HELPFUL):
  """(training, held-out) Smallworld labelers of a run.

  Raises:
    ValueError: the run has no Smallworld, hence nobody to rank.
  """
  if run.world is None:
    raise ValueError(
        "only Smallworld has built-in labelers: give comparisons by "
        "--config.data.comparisons=jsonl:PATH, or tasks to people by "
        "--config.collect.labeler=export")
  return smallworld_labelers(
      run.world, **run.config.labelers, priority=priority)


def assign(group: Sequence[Any], prompt: str, count: int) -> tuple[Any, ...]:
  """`count` labelers of a group, the same for a prompt in every run."""
  first = int(unit_hash(f"labeler/{prompt}") * len(group))
  return tuple(group[(first + i) % len(group)]
               for i in range(min(count, len(group))))


class RewardLabeler:
  """A reward model as the labeler, called by its stage's name.

  Scores within `tie_margin` standard deviations of its scores tie. The Likert
  scale has the demonstrations' mean score, 0, at 4, and a standard deviation a
  step; Table 3 is not asked of it. Use it under `sharding.use`; every process
  asks the same.
  """

  def __init__(self, run: Run, stage: str, *, tie_margin: float,
               max_responses: int):
    done = checkpoint.read_done(run.stage_dir(stage))
    self.labeler_id = stage
    self._run = run
    # 0 where the model scores all alike: then all tie
    self._unit = done["figures"]["score_sd"] or 1.0
    self._tie_margin = tie_margin
    self._scorer = scoring.Scorer(
        run, run.scalar(), run.batch_size_for(max_responses))
    self._params = run.load(stage, "params", run.scalar())

  def rank(self, prompt: str, responses: Sequence[str]) -> Ranking:
    """Ranks the responses; equal texts always tie."""
    prompt_tokens = self._run.prompt_tokens(prompt)
    scores = self._scorer(self._params, [
        (prompt_tokens, self._run.response_tokens(r)) for r in responses])
    units = [float(score) / self._unit for score in scores]
    likert = tuple(int(np.clip(round(4 + unit), 1, 7)) for unit in units)
    return Ranking(dense_ranks(units, self._tie_margin), likert)


class GivenRanks:
  """A labeler whose rankings are known: those of a file.

  Args:
    labeler_id: who ranked.
    rankings: (prompt, responses) -> Ranking.
  """

  def __init__(self, labeler_id: str,
               rankings: Mapping[tuple[str, tuple[str, ...]], Ranking]):
    self.labeler_id = labeler_id
    self._rankings = rankings

  def rank(self, prompt: str, responses: Sequence[str]) -> Ranking:
    """What was ranked before.

    Raises:
      DataError: this labeler has not ranked just these responses.
    """
    try:
      return self._rankings[prompt, tuple(responses)]
    except KeyError:
      raise DataError(
          f"labeler {self.labeler_id!r} has ranked no such {len(responses)} "
          f"responses to {prompt[:80]!r}; ask for those that its file has"
      ) from None


def dense_ranks(utilities: Sequence[float], tie_margin: float
                ) -> tuple[int, ...]:
  """Ranks, 1 for the highest; a gap of `tie_margin` starts the next rank.

  Neighbours in the sorted order tie if they are closer than the margin, so a
  tie is transitive: a chain of close calls is one rank.
  """
  order = sorted(range(len(utilities)), key=lambda i: -utilities[i])
  ranks = [0] * len(utilities)
  rank = 1
  for previous, current in zip([None, *order], order):
    if previous is not None:
      gap = utilities[previous] - utilities[current]
      rank += gap > 0 and gap >= tie_margin
    ranks[current] = rank
  return tuple(ranks)
