"""How far labelers agree: by hand, and at the ends of the scale."""

import itertools
import random

import pytest

from rlhf_jax.evals import agreement

GROUPS = {"t0": "train", "t1": "train", "t2": "train",
          "h0": "heldout", "h1": "heldout"}


def row(prompt, labeler_id, ranks, likert=()):
  return {"prompt": prompt, "labeler_id": labeler_id, "ranks": ranks,
          "likert": likert, "responses": [str(k) for k in range(len(ranks))]}


def test_pairs_that_neither_ties():
  # (0, 1) agree, (0, 2) tied by the first, (1, 2) against each other
  assert agreement.pairwise((1, 2, 1), (1, 2, 3)) == (1, 2)
  assert agreement.pairwise((1, 1), (1, 2)) == (0, 0)
  with pytest.raises(ValueError, match="rankings of 2 and 3 responses"):
    agreement.pairwise((1, 2), (1, 2, 3))


def test_groups_by_hand():
  found = agreement.statistics([
      row("p", "t0", [1, 2, 3]), row("p", "t1", [1, 3, 2]),
      row("p", "h0", [3, 2, 1]), row("p", "h1", [2, 1, 1]),
      row("q", "t1", [1, 2]), row("q", "t2", [1, 1])], GROUPS)
  rate = lambda group: (found[group]["pairwise"]["mean"],
                        found[group]["pairwise"]["pairs"])
  # p, t0 with t1: pairs 01 and 02 alike, 12 not; q: tied by t2
  assert rate("train") == (pytest.approx(2 / 3), 3)
  # p, h0 with h1: 01 and 02 alike, 12 tied by h1
  assert rate("heldout") == (1, 2)
  # t0h0: 0 of 3; t0h1: 0 of 2; t1h0: 1 of 3; t1h1: 0 of 2
  assert rate("between") == (pytest.approx(1 / 10), 10)
  assert [found[g]["labelers"] for g in ("train", "heldout", "between")] == [
      3, 2, 5]


def test_the_same_prompt_with_other_responses_is_another_task():
  one, other = row("p", "t0", [1, 2]), row("p", "t1", [2, 1])
  other["responses"] = ["c", "d"]
  found = agreement.statistics([one, other], GROUPS)
  assert found["train"]["pairwise"]["pairs"] == 0
  assert found["train"]["pairwise"]["mean"] is None
  assert found["train"]["alpha_ranks"] is None


def test_one_group_has_nothing_between():
  found = agreement.statistics([row("p", "t0", [1, 2])], {"t0": "train"})
  assert list(found) == ["train"]


def rankings(num_prompts, judge):
  """Two training labelers on five responses a prompt."""
  rng = random.Random(0)
  rows = []
  for prompt, name in itertools.product(range(num_prompts), ("t0", "t1")):
    ranks = judge(rng, prompt)
    rows.append(row(str(prompt), name, ranks, [8 - r for r in ranks]))
  return agreement.statistics(rows, {"t0": "train", "t1": "train"})["train"]


def test_alpha_is_one_of_the_same_and_near_zero_of_chance():
  order = lambda seed: random.Random(seed).sample(range(1, 6), 5)
  same = rankings(50, lambda rng, prompt: order(prompt))
  assert same["alpha_ranks"] == same["alpha_likert"] == 1
  assert same["pairwise"]["mean"] == 1
  chance = rankings(400, lambda rng, prompt: rng.sample(range(1, 6), 5))
  assert abs(chance["alpha_ranks"]) < 0.06
  assert abs(chance["pairwise"]["mean"] - 0.5) < 0.04
  assert chance["pairwise"]["low"] < 0.5 < chance["pairwise"]["high"]


def test_alpha_is_that_of_krippendorffs_example():
  """Four coders, twelve units, ordinal: .815 (Krippendorff 2011)."""
  table = [
      [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
      [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
      [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
      [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]]
  prompts = [
      [{"labeler_id": str(coder), "likert": [values[unit]]}
       for coder, values in enumerate(table) if values[unit] is not None]
      for unit in range(12)]
  assert agreement.alpha(prompts, "likert") == pytest.approx(0.815, abs=1e-3)


def test_alpha_of_one_value_for_all_says_nothing():
  rows = [[row("p", "t0", [1, 1]), row("p", "t1", [1, 1])]]
  assert agreement.alpha(rows, "ranks") is None
