"""Candidate labelers against researchers: agreement on ranks and on flags.

Three figures are held against cutoffs (InstructGPT, appendix B.1): agreement
with the reference over the pairs that neither ties, agreement on which
responses are sensitive (any field of `SENSITIVE` is true; one left out is
false), and the mean rating of the demonstrations a candidate wrote. What the
reference has no metadata for, and what nobody was rated for, is not asked of
anybody; a candidate who left out what was asked does not pass.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import tabulate

from rlhf_jax.evals import agreement, intervals
from rlhf_jax.labelers import Ranking

SENSITIVE = (  # of Table 3
    "sexual_content", "violent_content", "encourages_violence",
    "denigrates_protected_class", "harmful_advice",
    "inappropriate_for_customer_assistant")


@dataclasses.dataclass(frozen=True)
class Cutoffs:
  """What passes: at least so much.

  Attributes:
    agreement: share of the pairs ordered as in the reference, 0 to 1.
    flag_agreement: share of the responses marked as in the reference.
    demonstration_rating: mean rating, 1 to 7.
  """

  agreement: float
  flag_agreement: float
  demonstration_rating: float


@dataclasses.dataclass(frozen=True)
class Reference:
  """What researchers said: task id -> the task, and their view of it."""

  tasks: Mapping[str, Mapping[str, Any]]
  rankings: Mapping[str, Ranking]


@dataclasses.dataclass
class Answers:
  """What a candidate returned: task id -> view, and ratings received."""

  rankings: dict[str, Ranking] = dataclasses.field(default_factory=dict)
  ratings: list[float] = dataclasses.field(default_factory=list)


def make_report(reference: Reference, candidates: Mapping[str, Answers],
                cutoffs: Cutoffs) -> dict[str, Any]:
  """All figures, as JSON can hold them.

  Returns:
    `cutoffs`; `reference`: tasks, untied pairs, and of the responses with
    metadata their number and the share that is sensitive; `candidates`: name
    -> the figures of `measure`, `failed` (what fell short, as text) and
    `passes`.
  """
  asks_rating = any(answers.ratings for answers in candidates.values())
  measured = {name: measure(reference, answers)
              for name, answers in candidates.items()}
  for found in measured.values():
    found["failed"] = shortcomings(found, cutoffs, asks_rating)
    found["passes"] = not found["failed"]
  views = reference.rankings.values()
  marks = [marks for view in views for marks in view.metadata]
  return {
      "cutoffs": dataclasses.asdict(cutoffs),
      "reference": {
          "tasks": len(reference.tasks),
          "pairs": sum(agreement.pairwise(view.ranks, view.ranks)[1]
                       for view in views),
          "marked_responses": len(marks),
          "sensitive":
              sum(map(is_sensitive, marks)) / len(marks) if marks else None,
      },
      "candidates": measured,
  }


def measure(reference: Reference, answers: Answers) -> dict[str, Any]:
  """One candidate against the reference.

  Returns:
    `tasks` and `missing`; `agreement` and `flag_agreement` (mean, low and high
    of a 95 % interval over tasks, n tasks; None where there is nothing), the
    `pairs` and `responses` that they are over; `flag_agreement_by_field`;
    `flags_missing`: tasks answered without the metadata that the reference
    has; `demonstration_rating`: mean and n, or None.
  """
  views = [(reference.rankings[name], view)
           for name, view in answers.rankings.items()]
  pairs = [agreement.pairwise(ours.ranks, theirs.ranks)
           for ours, theirs in views]
  marked = [(ours, theirs) for ours, theirs in views
            if ours.metadata and theirs.metadata]
  flags = alike(marked, is_sensitive)
  ratings = answers.ratings
  return {
      "tasks": len(views),
      "missing": len(reference.tasks) - len(views),
      "agreement": share(pairs),
      "pairs": sum(total for _, total in pairs),
      "flag_agreement": share(flags),
      "responses": sum(total for _, total in flags),
      "flag_agreement_by_field": {
          field: share(alike(marked, has(field)))
          for field in SENSITIVE},
      "flags_missing": sum(
          bool(ours.metadata and not theirs.metadata)
          for ours, theirs in views),
      "demonstration_rating": {
          "mean": sum(ratings) / len(ratings), "n": len(ratings)
      } if ratings else None,
  }


def has(field: str) -> Callable[[Mapping[str, bool]], bool]:
  """Whether that field is marked."""
  return lambda marks: bool(marks.get(field))


def is_sensitive(marks: Mapping[str, bool]) -> bool:
  """Whether any field of `SENSITIVE` is marked."""
  return any(marks.get(field) for field in SENSITIVE)


def alike(views: Sequence[tuple[Ranking, Ranking]],
          claim: Callable[[Mapping[str, bool]], bool]
          ) -> list[tuple[int, int]]:
  """(responses of which both claim the same, responses) of each task."""
  return [
      (sum(claim(a) == claim(b)
           for a, b in zip(ours.metadata, theirs.metadata, strict=True)),
       len(ours.metadata))
      for ours, theirs in views]


def share(counts: Sequence[tuple[int, int]]) -> dict[str, float] | None:
  """The interval of a ratio over tasks; None where there is nothing."""
  found = intervals.ratio([a for a, _ in counts], [b for _, b in counts])
  return None if math.isnan(found["mean"]) else found


def shortcomings(found: Mapping[str, Any], cutoffs: Cutoffs,
                 asks_rating: bool) -> list[str]:
  """What keeps a candidate from passing, nothing if all is well."""
  failed = []
  if found["missing"]:
    asked = found["tasks"] + found["missing"]
    failed.append(f"{found['missing']} of {asked} tasks missing")
  if found["agreement"] is None:
    failed.append("no untied pair")
  elif found["agreement"]["mean"] < cutoffs.agreement:
    failed.append(f"agreement < {100 * cutoffs.agreement:g} %")
  if found["flags_missing"]:
    failed.append(f"flags missing in {found['flags_missing']} tasks")
  if found["flag_agreement"] and (
      found["flag_agreement"]["mean"] < cutoffs.flag_agreement):
    failed.append(f"flags < {100 * cutoffs.flag_agreement:g} %")
  rating = found["demonstration_rating"]
  if rating is None and asks_rating:
    failed.append("no rating")
  elif rating and rating["mean"] < cutoffs.demonstration_rating:
    failed.append(f"rating < {cutoffs.demonstration_rating:g}")
  return failed


# --------------------------------------------------------------- what is said


def format_report(report: Mapping[str, Any]) -> str:
  """One line a candidate, and what there is to say of the reference."""
  reference, cutoffs = report["reference"], report["cutoffs"]
  percent = lambda value: intervals.percent(value) if value else "-"
  rows = [
      (name, found["tasks"], found["pairs"], percent(found["agreement"]),
       percent(found["flag_agreement"]),
       f"{found['demonstration_rating']['mean']:.1f}"
       if found["demonstration_rating"] else "-",
       "; ".join(found["failed"]) or "passes")
      for name, found in report["candidates"].items()]
  parts = [
      f"reference: {reference['tasks']} tasks, {reference['pairs']} untied "
      "pairs; 95 % intervals over tasks",
      tabulate.tabulate(rows, headers=(
          "candidate", "tasks", "pairs", "agreement", "flags", "rating",
          "verdict"), disable_numparse=True)]
  sensitive = reference["sensitive"]
  if sensitive is not None and max(sensitive, 1 - sensitive) >= (
      cutoffs["flag_agreement"]):
    everything = "every" if sensitive > 0.5 else "no"
    parts.append(
        f"note: {100 * sensitive:.1f} % of the reference's responses are "
        f"sensitive, so whoever marks {everything} response passes on flags; "
        "a reference of about as many of each tells more")
  return "\n\n".join(parts)
