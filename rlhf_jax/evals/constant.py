"""The best prompt-blind reply: a rubric that rewards it would be wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.splits import unit_hash

NUM_REPLIES = 200
_PROMPTS_PER_CATEGORY = 40


def best_replies(
    world, rows: Sequence[Mapping[str, Any]],
    demonstrations: Sequence[Mapping[str, Any]], gold: Sequence[float],
) -> dict[str, dict[str, float]]:
  """category -> gold score of the best of 200 constant replies beside the
  policy's own mean on the same prompts.

  Args:
    world: the Smallworld.
    rows: held-out prompts.
    demonstrations: where the constant replies are taken from.
    gold: the policy's gold scores [len(rows)].
  """
  replies = sorted(
      {d["response"] for d in demonstrations}, key=unit_hash)[:NUM_REPLIES]
  by_category: dict[str, list[int]] = {}
  for number, row in enumerate(rows):
    by_category.setdefault(row["category"], []).append(number)
  found = {}
  for category, numbers in sorted(by_category.items()):
    numbers = numbers[:_PROMPTS_PER_CATEGORY]
    means = [
        np.mean([world.judge(rows[n]["prompt"], reply).score
                 for n in numbers]) for reply in replies]
    found[category] = {
        "constant": float(max(means)),
        "policy": float(np.mean([gold[n] for n in numbers])),
        "prompts": len(numbers)}
  return found
