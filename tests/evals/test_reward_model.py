"""The account of a reward model: its parts, and that it fits into JSON."""

import json
import types

import numpy as np
import pytest

from rlhf_jax.evals import calibration, ranking, reward_model


def rows_and_scores(number=60):
  """Comparisons of 2 to 6 responses by labelers a, b and c, and scores."""
  rng = np.random.default_rng(0)
  rows, scores = [], []
  for index in range(number):
    k = rng.integers(2, 7)
    rows.append({
        "prompt": str(index % 25), "category": ("chat", "")[index % 2],
        "labeler_id": "abc"[index % 3], "ranks": rng.integers(1, 4, k),
        "responses": ["x" * n for n in rng.integers(1, 9, k)]})
    scores.append((rng.normal(0, 1, k) - rows[-1]["ranks"]).tolist())
  return rows, scores


def test_the_account_is_that_of_its_parts():
  rows, scores = rows_and_scores()
  groups = [f"group_{row['labeler_id']}" for row in rows]
  found = reward_model.evaluate(rows, scores, groups)
  pairs = ranking.pairs(rows, scores)
  assert (found["rows"], found["prompts"], found["pairs"]) == (
      60, 25, len(pairs))
  for name in ("accuracy", "longer_wins", "above_longer_wins"):
    assert list(found[name]) == ["all", "group_a", "group_b", "group_c"]
    assert found[name]["all"] == getattr(ranking, name)(pairs)
  for group in found["accuracy"]:
    assert found["above_longer_wins"][group]["mean"] == pytest.approx(
        found["accuracy"][group]["mean"] - found["longer_wins"][group]["mean"])
  assert list(found["accuracy_by_use_case"]) == ["all", "chat", "none"]
  assert found["calibration"]["bins"] == calibration.curve(pairs)
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_tables_have_every_share():
  rows, scores = rows_and_scores()
  found = reward_model.evaluate(rows, scores, ["s"] * len(rows))
  table = reward_model.format_report("rm", found)
  assert table.startswith("rm: 60 validation comparisons of 25 prompts, ")
  for name in ("all", "s ", "1 ranks apart", "2 ranks apart", "chat", "none",
               "longer is better", "longer is worse", "labelers"):
    assert f"\n{name}" in table
  accuracy = found["accuracy"]["all"]
  half = 50 * (accuracy["high"] - accuracy["low"])
  assert f"{100 * accuracy['mean']:.1f} ± {half:.1f} %" in table


def test_a_row_is_of_its_labelers_group():
  """The row's own word first, then Smallworld's labelers, then the source."""
  row = lambda labeler, source="", **more: {
      "labeler_id": labeler, "source": source, **more}
  rows = [
      row("eve", labeler_group="heldout"), row("ann", labeler_group="train"),
      row("heldout_00", labeler_group=""), row("train_01"),
      row("bob", "upwork", labeler_group=""), row("bob")]
  settings = dict(num_train=2, num_heldout=1, bias_sd=0.1, noise_sd=0.2,
                  heldout_noise_sd=0.2, tie_margin=0.1, seed=0)
  run = types.SimpleNamespace(
      world=object(), config=types.SimpleNamespace(labelers=settings))
  first = ["heldout_labelers", "train_labelers"]
  assert reward_model.comparison_groups(run, rows) == first + [
      "heldout_labelers", "train_labelers", "upwork", "unnamed"]
  run.world = None
  assert reward_model.comparison_groups(run, rows) == first + [
      "unnamed", "unnamed", "upwork", "unnamed"]


def test_folds_count_only_their_own_labelers():
  rows, scores = rows_and_scores()
  found = reward_model.fold_accuracy(rows, scores, {"a"}, {"c"})
  assert list(found) == ["inside", "heldout"]
  for name, labeler in (("inside", "a"), ("heldout", "c")):
    picked = [i for i, row in enumerate(rows) if row["labeler_id"] == labeler]
    assert found[name] == ranking.accuracy(ranking.pairs(
        [rows[i] for i in picked], [scores[i] for i in picked]))


def test_a_text_that_several_labelers_ranked_is_read_once():
  rows = [
      {"prompt": p, "prompt_tokens": [ord(p)], "responses": texts,
       "response_tokens": [[ord(c) for c in text] for text in texts]}
      for p, texts in (("p", ["a", "bb"]), ("p", ["bb", "c"]), ("q", ["a"]))]
  asked = []

  def scorer(params, pairs):
    asked.extend(pairs)
    return np.array([params * (sum(p) + sum(r)) for p, r in pairs], np.float32)

  value = lambda p, text: 2.0 * (ord(p) + sum(map(ord, text)))
  assert reward_model.score_rows(scorer, 2.0, rows) == [
      [value(row["prompt"], text) for text in row["responses"]]
      for row in rows]
  assert len(asked) == 4
