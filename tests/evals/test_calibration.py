"""Predicted against observed: by hand, and of a scorer that is right."""

import numpy as np
import pytest

from rlhf_jax.evals import calibration, ranking


def pairs_of(margins, prompts=None):
  """Pairs of two responses with these margins, a prompt each or as named."""
  prompts = range(len(margins)) if prompts is None else prompts
  rows = [{"prompt": str(p), "ranks": (1, 2), "responses": ("", "")}
          for p in prompts]
  return ranking.pairs(rows, [(margin, 0.0) for margin in margins])


def logit(p):
  return np.log(p / (1 - p))


def test_bins_by_hand():
  # .5 and .55: three right of four and a half; .9 and .95: one right of two
  margins = [0.0, logit(.55), logit(.55), logit(.55), -logit(.9), logit(.95)]
  found = calibration.curve(pairs_of(margins), num_bins=2)
  assert [(of["from"], of["to"]) for of in found] == [(.5, .75), (.75, 1.0)]
  assert [of["predicted"] for of in found] == pytest.approx(
      [(.5 + 3 * .55) / 4, (.9 + .95) / 2])
  assert [of["observed"]["mean"] for of in found] == [3.5 / 4, 0.5]
  assert [of["observed"]["pairs"] for of in found] == [4, 2]
  error = (4 * (3.5 / 4 - 2.15 / 4) + 2 * (.925 - .5)) / 6
  assert calibration.expected_error(found) == pytest.approx(error)


def test_certainty_is_in_the_last_bin_and_empty_bins_are_left_out():
  found = calibration.curve(pairs_of([1e3, -1e3, 0.0]))
  assert [(of["from"], of["to"]) for of in found] == [(.5, .55), (.95, 1.0)]
  assert [of["observed"]["mean"] for of in found] == [0.5, 0.5]
  assert found[1]["predicted"] == 1.0


def test_a_calibrated_scorer_lies_on_the_diagonal():
  """Labelers draw from the model's own probabilities: nineteen of twenty
  intervals hold the predicted probability, and the error is that of chance."""
  rng = np.random.default_rng(0)
  inside = []
  for _ in range(40):
    margins = np.abs(rng.normal(0, 1.5, 4000))
    is_right = rng.random(4000) < 1 / (1 + np.exp(-margins))
    pairs = pairs_of(np.where(is_right, margins, -margins))
    found = calibration.curve(pairs)
    assert len(found) == calibration.NUM_BINS
    inside += [of["observed"]["low"] <= of["predicted"]
               <= of["observed"]["high"] for of in found]
    assert calibration.expected_error(found) < 0.03
    # half of the differences: as much as it should it no longer says
    assert calibration.expected_error(calibration.curve(
        pairs_of(np.where(is_right, margins, -margins) / 3))) > 0.08
  assert 0.92 < np.mean(inside) < 0.98


def test_the_pairs_of_a_prompt_are_one_cluster():
  margins = [logit(.6)] * 30 + [-logit(.6)] * 10
  alone = calibration.curve(pairs_of(margins))[0]["observed"]
  shared = calibration.curve(
      pairs_of(margins, np.repeat(range(4), 10)))[0]["observed"]
  assert (alone["n"], shared["n"]) == (40, 4)
  assert alone["mean"] == shared["mean"] == 0.75
  assert shared["high"] - shared["low"] > 2 * (alone["high"] - alone["low"])
