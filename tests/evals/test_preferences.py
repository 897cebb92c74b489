"""Win rates, by hand."""

import numpy as np
import pytest

from rlhf_jax import labelers
from rlhf_jax.evals import preferences


def longer(number, prompt, pair):
  """Prefers the longer reply."""
  del number, prompt
  a, b = map(len, pair)
  return (1 + (a < b), 1 + (b < a))


def rate(responses, baseline, judge=longer):
  prompts = [f"p{n}" for n in range(len(responses))]
  return preferences.win_rate(prompts, responses, baseline, judge)


def test_a_tie_is_half_a_win():
  found = rate(["aaa", "b", "cc", "d"], ["a", "bb", "cc", ""])
  assert (found["mean"], found["n"]) == (2.5 / 4, 4)
  assert found["low"] < found["mean"] < found["high"]


def test_against_itself_is_one_half_without_spread():
  found = rate(["a", "bb", ""], ["a", "bb", ""])
  assert (found["mean"], found["low"], found["high"]) == (0.5, 0.5, 0.5)


def test_swapped_sides_add_to_one():
  ours, theirs = ["aaa", "b", "cc", "d", ""], ["a", "bb", "cc", "", "e"]
  there, back = rate(ours, theirs), rate(theirs, ours)
  assert there["mean"] + back["mean"] == pytest.approx(1)
  assert there["high"] - there["mean"] == pytest.approx(
      back["high"] - back["mean"])


def test_higher_scores_win():
  judge = preferences.scores_judge([1.0, 0.0, 2.0], [0.5, 0.5, 2.0])
  assert [judge(n, "p", ["x", "y"]) for n in range(3)] == [
      (1, 2), (2, 1), (1, 1)]
  assert rate(["", "", ""], ["", "", ""], judge)["mean"] == 0.5


def test_the_judge_is_asked_by_the_prompts_number():
  asked = []

  def judge(number, prompt, pair):
    asked.append((number, prompt, pair))
    return (1, 2)

  rate(["a", "b"], ["c", "d"], judge)
  assert asked == [(0, "p0", ["a", "c"]), (1, "p1", ["b", "d"])]


class Named:
  """A labeler who likes one text."""

  def __init__(self, labeler_id, favourite):
    self.labeler_id = labeler_id
    self.favourite = favourite

  def rank(self, prompt, responses):
    ranks = tuple(1 + (text != self.favourite) for text in responses)
    return labelers.Ranking(ranks, (4,) * len(ranks), ({},) * len(ranks))


def test_one_labeler_judges_a_prompt_wherever_the_policy_stands():
  group = [Named("x", "yes"), Named("y", "no")]
  judge = preferences.labelers_judge(
      group, lambda group, prompt: group[int(prompt[1:]) % 2])
  there = rate(["yes"] * 4, ["no"] * 4, judge)
  back = rate(["no"] * 4, ["yes"] * 4, judge)
  assert there["mean"] == back["mean"] == 0.5
  assert judge(0, "p0", ["yes", "no"]) == (1, 2)
  assert judge(1, "p1", ["yes", "no"]) == (2, 1)


def test_scores_of_a_model_are_numpy_numbers():
  judge = preferences.scores_judge(
      np.array([1.0, 0.0, 2.0], np.float32),
      np.array([0.0, 1.0, 2.0], np.float32))
  found = preferences.win_rate("abc", "abc", "abc", judge)
  assert found["mean"] == 0.5
