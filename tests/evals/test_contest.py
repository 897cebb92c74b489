"""Policies against each other before a referee of texts."""

import types

import numpy as np
import pytest

from rlhf_jax.evals import contest, preferences, stage
from rlhf_jax.evals.contest import Contest, Referee

PROMPTS = [f"p{n}" for n in range(6)]


def longer(number, prompt, pair):
  del number, prompt
  a, b = map(len, pair)
  return (1 + (a < b), 1 + (b < a))


def first(number, prompt, pair):
  """Goes by position."""
  del number, prompt, pair
  return (1, 2)


def says(*lengths):
  return {prompt: "x" * n for prompt, n in zip(PROMPTS, lengths)}


ENTRANTS = {
    ("run", "sft"): says(2, 2, 2, 2, 2, 2),
    ("run", "ppo"): says(3, 3, 3, 3, 2, 1),
    ("other", "ppo"): says(4, 4, 4, 4, 4, 4),
}
BASELINE = {"run": "sft", "other": "ppo"}


def held(judge=longer, entrants=ENTRANTS):
  return Contest(entrants, BASELINE, Referee(
      judge, lambda prompt, text: len(text), "score"))


def test_a_judge_by_position_prefers_nobody():
  row, = contest.win_rate(held(first), ("run", "ppo"))
  assert row.mean == 0.5
  assert preferences.swapped_points(longer, 0, "p", "aa", "a") == 1
  assert preferences.swapped_points(longer, 0, "p", "a", "a") == 0.5


def said(*texts, scores=None):
  """What a policy did in the stage `evaluate`."""
  return types.SimpleNamespace(texts=texts, judge_scores=scores)


def test_the_stage_asks_its_judge_in_both_orders(monkeypatch):
  referee = Referee(first, len, "likert")
  monkeypatch.setattr(contest, "heldout_labelers", lambda run: referee)
  settings = types.SimpleNamespace(judge="labelers", baseline="sft")
  outcomes = {"sft": said("a", "b", "c"), "same": said("a", "b", "c"),
              "ppo": said("aa", "bb", "cc")}
  found = stage.win_rates(None, settings, PROMPTS[:3], outcomes)
  assert set(found) == {"same", "ppo"}
  assert {of["mean"] for of in found.values()} == {0.5}


def test_the_stage_has_one_score_a_text():
  """Equal texts tie, whatever the last bit of their scores; others do not."""
  settings = types.SimpleNamespace(judge="judge", baseline="sft")
  outcomes = {"sft": said("a", "b", "c", scores=np.float32([0, 1, 2])),
              "ppo": said("a", "x", "y", scores=np.float32([1e-7, 3, 1.5]))}
  found = stage.win_rates(None, settings, PROMPTS[:3], outcomes)
  assert (found["ppo"]["mean"], found["ppo"]["n"]) == (0.5, 3)
  assert found["ppo"]["low"] < 0.5 < found["ppo"]["high"]


def test_win_rates_are_against_the_runs_own_baseline():
  row, = contest.win_rate(held(), ("run", "ppo"))
  assert (row.mean, row.n) == (4.5 / 6, 6)
  assert row.low < row.mean < row.high
  assert not list(contest.win_rate(held(), ("run", "sft")))


def test_elo_is_of_all_with_the_first_baseline_at_1000():
  found = {who: next(contest.elo(held(), who)) for who in ENTRANTS}
  sft, ppo, other = (found[who] for who in ENTRANTS)
  assert sft.mean == 1000
  assert 1000 < ppo.mean < other.mean
  assert {row.n for row in found.values()} == {6}


def test_only_common_prompts_are_compared():
  entrants = ENTRANTS | {("other", "ppo"): {"p1": "xx", "p9": "x"}}
  points = contest.outcomes(list(entrants.values()), longer)
  assert points.shape == (1, 3, 3)
  np.testing.assert_array_equal(points[0], [
      [0.5, 0.0, 0.5], [1.0, 0.5, 1.0], [0.5, 0.0, 0.5]])


def test_a_reward_model_judges_and_rates_by_its_scores():
  scores = {("p", "a"): 1.5, ("p", "b"): -1.0, ("p", "c"): 1.5}
  referee = contest.of_scores(scores)
  assert referee.judge(0, "p", ["b", "a"]) == (2, 1)
  assert referee.judge(0, "p", ["c", "a"]) == (1, 1)
  assert (referee.rate("p", "b"), referee.rating) == (-1.0, "score")


def test_ratings_are_of_each_response():
  row, = contest.rating(held(), ("run", "ppo"))
  assert (row.name, row.mean, row.n) == ("score", pytest.approx(15 / 6), 6)
