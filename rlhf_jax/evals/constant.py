"""The best prompt-blind reply: a rubric that rewards it would be wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.splits import unit_hash
from rlhf_jax.evals import intervals

NUM_REPLIES = 200
_PROMPTS_PER_CATEGORY = 40


def best_replies(
    world, rows: Sequence[Mapping[str, Any]],
    demonstrations: Sequence[Mapping[str, Any]], gold: intervals.Values,
) -> dict[str, dict[str, float]]:
  """category -> gold score of the best of 200 constant replies beside the
  policy's own mean.

  The best of many is by luck good on a few prompts, so that it is looked for
  on more of a rare category than the policy answered.

  Args:
    world: the Smallworld.
    rows: held-out prompts, those that the policy answered first.
    demonstrations: where the constant replies are taken from.
    gold: the policy's gold scores, of the first `len(gold)` rows.
  """
  replies = sorted(
      {d["response"] for d in demonstrations}, key=unit_hash)[:NUM_REPLIES]
  by_category: dict[str, list[int]] = {}
  for number, row in enumerate(rows):
    by_category.setdefault(row["category"], []).append(number)
  found = {}
  for category, numbers in sorted(by_category.items()):
    answered = [n for n in numbers if n < len(gold)]
    if not answered:
      continue
    numbers = numbers[:_PROMPTS_PER_CATEGORY]
    means = [
        np.mean([world.judge(rows[n]["prompt"], reply).score
                 for n in numbers]) for reply in replies]
    found[category] = {
        "constant": float(max(means)),
        "prompts": len(numbers),
        "policy": float(np.mean([gold[n] for n in answered])),
        "policy_prompts": len(answered)}
  return found
