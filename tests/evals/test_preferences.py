"""Win rates, by hand."""

import numpy as np
import pytest

from rlhf_jax import labelers
from rlhf_jax.evals import contest, intervals, preferences


def longer(number, prompt, pair):
  """Prefers the longer reply."""
  del number, prompt
  a, b = map(len, pair)
  return (1 + (a < b), 1 + (b < a))


def rate(responses, baseline, judge=longer):
  prompts = [f"p{n}" for n in range(len(responses))]
  return intervals.mean(contest.preference(
      dict(zip(prompts, responses)), dict(zip(prompts, baseline)), judge))


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


def by_scores(ours, theirs):
  """The judge of the responses "x" and "y" to "p0", "p1" ..."""
  scores = {(f"p{n}", text): score for text, of in (("x", ours), ("y", theirs))
            for n, score in enumerate(of)}
  return contest.of_scores(scores).judge


def test_higher_scores_win():
  judge = by_scores([1.0, 0.0, 2.0], [0.5, 0.5, 2.0])
  assert [judge(n, f"p{n}", ["x", "y"]) for n in range(3)] == [
      (1, 2), (2, 1), (1, 1)]
  assert rate("xxx", "yyy", judge)["mean"] == 0.5


def test_the_judge_is_asked_by_the_prompts_number():
  asked = []

  def judge(number, prompt, pair):
    asked.append((number, prompt, pair))
    return (1, 2)

  rate(["a", "b"], ["c", "d"], judge)
  assert asked == [(0, "p0", ["a", "c"]), (0, "p0", ["c", "a"]),
                   (1, "p1", ["b", "d"]), (1, "p1", ["d", "b"])]


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
  judge = by_scores(np.array([1.0, 0.0, 2.0], np.float32),
                    np.array([0.0, 1.0, 2.0], np.float32))
  assert rate("xxx", "yyy", judge)["mean"] == 0.5


def test_a_judge_who_is_blind_to_order_gives_what_one_order_gives():
  ours, theirs = ["aaa", "b", "cc", "d", ""], ["a", "bb", "cc", "", "e"]
  assert rate(ours, theirs) == intervals.mean([
      preferences.points(longer(n, "p", list(pair)))
      for n, pair in enumerate(zip(ours, theirs))])


def test_equal_texts_tie_before_a_judge_who_likes_the_first():
  def biased(number, prompt, pair):
    """Half a letter for the place."""
    a, b = len(pair[0]) + 0.5, len(pair[1])
    return (1 + (a < b), 1 + (b < a))

  assert rate(["a", "bb", ""], ["a", "bb", ""], biased)["mean"] == 0.5
  assert rate(["aa", "b", "c"], ["a", "bb", "c"], biased)["mean"] == 0.5
