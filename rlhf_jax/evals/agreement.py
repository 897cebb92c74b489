"""How far labelers agree, within groups and between them.

Two figures. Pairwise agreement, as the paper reports it (InstructGPT 3.4): of
the pairs of responses that two labelers both rank without a tie, the share
that both put in the same order; chance is one half. Krippendorff's alpha of
the Likert ratings and of the ranks, as ordinal data: 1 is full agreement, 0
what chance gives.
"""

from collections.abc import Iterable, Mapping, Sequence
import itertools
import math
from typing import Any

import krippendorff
import numpy as np

from rlhf_jax.evals import intervals


def pairwise(
    ranks_a: Sequence[int], ranks_b: Sequence[int]
) -> tuple[int, int]:
  """(pairs in the same order, pairs that neither ties) of one prompt.

  Raises:
    ValueError: the two do not rank the same number of responses.
  """
  if len(ranks_a) != len(ranks_b):
    raise ValueError(
        f"rankings of {len(ranks_a)} and {len(ranks_b)} responses: pass the "
        "same responses in the same order")
  num_agree = num_pairs = 0
  for i, j in itertools.combinations(range(len(ranks_a)), 2):
    if ranks_a[i] != ranks_a[j] and ranks_b[i] != ranks_b[j]:
      num_pairs += 1
      num_agree += (ranks_a[i] < ranks_a[j]) == (ranks_b[i] < ranks_b[j])
  return num_agree, num_pairs


def statistics(
    rows: Iterable[Mapping[str, Any]], group_of: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
  """Agreement within each group of labelers, and between the groups.

  Args:
    rows: comparisons with `prompt`, `responses`, `ranks`, `labeler_id` and
      perhaps `likert`, several labelers a prompt.
    group_of: labeler id -> group.

  Returns:
    Group, or "between" -> {`pairwise`: mean, low, high, n (prompts) and pairs;
    `alpha_ranks`, `alpha_likert`: None where there is nothing to compare;
    `labelers`}. Pairwise, "between" compares a labeler of one group with one of
    another; its alphas are those of all labelers together.
  """
  by_prompt: dict[Any, list] = {}
  for row in rows:
    key = row["prompt"], tuple(row["responses"])
    by_prompt.setdefault(key, []).append(row)
  groups = sorted(set(group_of.values()))
  found = {
      group: _figures([
          [row for row in of if group_of[row["labeler_id"]] == group]
          for of in by_prompt.values()])
      for group in groups
  }
  if len(groups) > 1:
    found["between"] = _figures(list(by_prompt.values()), group_of)
  return found


def _figures(prompts: list[list], group_of=None) -> dict[str, Any]:
  """Of the labelers of each prompt; with `group_of` of unlike pairs only."""
  counts = []
  for rows in prompts:
    right = total = 0
    for a, b in itertools.combinations(rows, 2):
      if group_of and (
          group_of[a["labeler_id"]] == group_of[b["labeler_id"]]):
        continue
      num_agree, num_pairs = pairwise(a["ranks"], b["ranks"])
      right, total = right + num_agree, total + num_pairs
    counts.append((right, total))
  rate = intervals.ratio(*zip(*counts)) if counts else intervals.ratio([], [])
  finite = {name: value if math.isfinite(value) else None
            for name, value in rate.items()}
  return {
      "labelers": len({r["labeler_id"] for rows in prompts for r in rows}),
      "pairwise": finite | {"pairs": sum(total for _, total in counts)},
      "alpha_ranks": alpha(prompts, "ranks"),
      "alpha_likert": alpha(prompts, "likert"),
  }


def alpha(prompts: Sequence[Sequence[Mapping[str, Any]]], field: str
          ) -> float | None:
  """Krippendorff's alpha of one ordinal field of every response.

  Args:
    prompts: the rows of each prompt, a labeler each, same responses.
    field: "ranks" or "likert".

  Returns:
    None where no response has two values, or all values are the same.
  """
  labelers = sorted({r["labeler_id"] for rows in prompts for r in rows})
  place = {labeler: number for number, labeler in enumerate(labelers)}
  units = []
  for rows in prompts:
    rated = [row for row in rows if row.get(field)]
    if len(rated) < 2:
      continue
    values = np.full((len(labelers), len(rated[0][field])), np.nan)
    for row in rated:
      values[place[row["labeler_id"]]] = row[field]
    units.append(values)
  if not units:
    return None
  data = np.concatenate(units, axis=1)
  if len(np.unique(data[~np.isnan(data)])) < 2:
    return None
  return float(krippendorff.alpha(
      reliability_data=data, level_of_measurement="ordinal"))
