"""A run's headline figures."""

import pytest

from rlhf_jax import summaries


def test_folds_are_averaged_by_hand():
  side = lambda mean, pairs, n: {"mean": mean, "pairs": pairs, "n": n}
  done = {
      "rm@fold0": {"figures": {"fold_accuracy": {
          "inside": side(0.70, 30, 9), "heldout": side(0.60, 10, 3)}}},
      "rm@fold1": {"figures": {"fold_accuracy": {
          "inside": side(0.80, 20, 9), "heldout": side(0.64, 20, 1)}}},
      "sft": {"figures": {}}}
  found = summaries.folds(done)
  assert found["inside"]["mean"] == pytest.approx(0.75)
  assert found["inside"]["sd"] == pytest.approx(0.1 / 2**0.5)
  assert (found["heldout"]["mean"], found["heldout"]["pairs"]) == (
      pytest.approx(0.61), 30)  # three prompts of one, one of the other
  assert summaries.format_folds(found) == (
      "accuracy on labelers learnt from 75.0 ± 7.1 %, on labelers left out "
      "61.0 ± 2.8 % (mean over prompts, SD of 2 folds)")
  assert not summaries.folds({"rm@fold0": done["rm@fold0"]})
