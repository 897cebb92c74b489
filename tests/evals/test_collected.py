"""What a collection holds, counted by hand."""

import pytest

from rlhf_jax.evals import collected

ROWS = [
    {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2],
     "policies": ["sft", "ppo", "sft"], "likert": [7, 4, 3], "seconds": 10.0,
     "metadata": [{"hallucination": False}, {"hallucination": True},
                  {"hallucination": True}]},
    {"prompt": "q", "responses": ["d", "e"], "ranks": [2, 1],
     "policies": ["sft", "ppo"], "likert": [], "metadata": [],
     "seconds": None},
]


def test_counts_by_hand():
  found = collected.statistics(ROWS)
  assert found["comparisons"] == 2
  assert (found["pairs"], found["tied"]) == (4, 1 / 4)
  assert found["responses_per_prompt"] == {"2": 1, "3": 1}
  assert found["seconds"] == 10
  sft, ppo = found["policies"]["sft"], found["policies"]["ppo"]
  assert (sft["responses"], ppo["responses"]) == (3, 2)
  assert (sft["best"], ppo["best"]) == (1 / 3, 1 / 2)
  assert (sft["likert"]["mean"], ppo["likert"]["mean"]) == (5, 4)
  assert sft["metadata"] == {"hallucination": 1 / 2}
  assert ppo["metadata"] == {"hallucination": 1}


def test_a_prompt_rated_again_makes_no_interval_narrower():
  """Four people on one prompt are no four prompts."""
  once = [{**ROWS[0], "prompt": str(n), "likert": [n, n, n]}
          for n in range(1, 8)]
  of = lambda rows: collected.statistics(rows)["policies"]["sft"]["likert"]
  assert of(once * 4) == pytest.approx(of(once))
  assert of(once)["n"] == 7


def test_a_field_that_some_left_out_is_false():
  rows = [{**ROWS[0], "metadata": [{"hallucination": True}, {}, {}]}]
  found = collected.statistics(rows)["policies"]
  assert found["sft"]["metadata"] == {"hallucination": 1 / 2}
  assert found["ppo"]["metadata"] == {"hallucination": 0}


def test_what_was_not_asked_is_not_made_up():
  found = collected.statistics(ROWS[1:])
  assert found["seconds"] is None
  assert found["policies"]["sft"]["likert"] is None
  assert found["policies"]["sft"]["metadata"] == {}


def test_the_table_names_groups_and_policies():
  report = {"agreement": {"train": {
      "labelers": 3, "alpha_ranks": None, "alpha_likert": 0.5,
      "pairwise": {"pairs": 7, "mean": 0.714}}}, **collected.statistics(ROWS)}
  table = collected.format_report(report)
  assert "2 comparisons, 4 pairs, 25.0 % tied" in table
  for words in ("train", "0.714", "0.500", "sft", "ppo", "0.333"):
    assert words in table
