"""The policies that the paper compares, and what they say before one judge."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses

from rlhf_jax.evals import contest, results
from rlhf_jax.evals.contest import Who
from rlhf_jax.evals.responses import Responses
from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import measuring

KINDS = ("pretrained", "prompted", "SFT", "PPO", "PPO-ptx")
_PROMPTED = "pretrain+prompted"


@dataclasses.dataclass(frozen=True)
class Family:
  """One model in all its kinds.

  Attributes:
    size: what it is called by.
    members: kind -> (run, policy).
  """

  size: str
  members: Mapping[str, Who]


def of_main() -> Family:
  """Of the runs `main` and `plain`."""
  return Family("940k", dict(zip(KINDS, (
      ("main", "pretrain"), ("main", _PROMPTED), ("main", "sft"),
      ("plain", "ppo"), ("main", "ppo")))))


def of_small(size: str) -> Family:
  """Of a run that has all five."""
  return Family(size, {kind: (f"small_{size}", policy) for kind, policy in zip(
      KINDS, ("pretrain", _PROMPTED, "sft", "ppo@ptx0", "ppo"))})


def measure(runs: Mapping[str, Run], families: Sequence[Family],
            tasks: Sequence[str], said: dict[Who, Responses]
            ) -> Iterator[Result]:
  """What evaluators find of every member; keeps what it said.

  Args:
    runs: by name.
    families: whose members are measured.
    tasks: evaluators; with "rating" among them responses are kept.
    said: filled in, if so.
  """
  members = sorted({
      who for family in families for who in family.members.values()})
  asked: dict[str, list[str]] = {}
  for run, policy in members:
    asked.setdefault(run, []).append(policy)
  return measuring.evaluate(runs, asked, tasks, said)


def win_rates(run: Run, said: Mapping[Who, Responses], baseline: Who
              ) -> Iterator[Result]:
  """Yields how often held-out labelers prefer each to one baseline, each pair
  shown in both orders, a tie half."""
  judge = contest.heldout_labelers(run).judge
  for who, found in said.items():
    if who != baseline:
      points = contest.outcomes(
          [found.text_of, said[baseline].text_of], judge)
      yield Result(*who, "preferred", results.mean(
          "win_rate_to_sft", points[:, 0, 1]))
