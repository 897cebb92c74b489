"""The reward model's stage: what it measures, its batches and folds."""

import itertools
import json

from etils import epath
import pytest

from rlhf_jax import checkpoint, metrics, pipeline, streams
from tests import tiny_run


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return pipeline.make_run(base.config, epath.Path(base.workdir))


def alone(workdir, **settings):
  """Runs the stage with `config.rm` changed: (figures, report, metrics)."""
  tiny_run.run(
      tiny_run.only(("rm",), **{f"rm__{k}": v for k, v in settings.items()}),
      workdir)
  return (checkpoint.read_done(workdir / "rm")["figures"],
          json.loads((workdir / "rm" / "report.json").read_text()),
          metrics.read(workdir, "rm"))


def test_every_epoch_is_measured_at_its_end(base, run):
  rows = [row for row in metrics.read(base.workdir, "rm")
          if "validation/rm/epoch" in row]
  at = streams.comparisons(run, "rm", streams.training_comparisons(run, "rm"))
  assert [row["step"] for row in rows] == [at.count(1), at.count(2)]
  assert at.count(1) < at.count(2)
  assert [row["validation/rm/epoch"] for row in rows] == [1, 2]
  figures = base.json("rm/done.json")["figures"]
  found = [row["validation/rm/accuracy"] for row in rows]
  assert [
      of["mean"] for of in figures["validation_by_epoch"]] == found
  assert figures["validation_accuracy"] == found[-1]
  whole = figures["validation_accuracy_by_group"]["all"]
  assert figures["validation_by_epoch"][-1] == {
      name: whole[name] for name in ("mean", "low", "high")
  } | {"loss": rows[-1]["validation/rm/loss"]}
  pairs = base.json("rm/report.json")["validation"]["pairs"]
  for row in rows:
    assert 0 < row["validation/rm/loss"] < 2
    assert row["validation/rm/pairs"] == pairs


def test_the_report_is_what_the_evaluation_finds_again(base):
  """The bias that came in between changes no order."""
  report = base.json("rm/report.json")["validation"]
  found = base.json("summary.json")["rm"]
  for name in ("accuracy", "longer_wins"):
    assert found[f"{name}_intervals"] == report[name]
    assert found[name] == {
        group: value["mean"] for group, value in report[name].items()}
  assert set(found["accuracy"]) == {
      "all", "train_labelers", "heldout_labelers"}


def test_the_report_is_printed_and_its_figures_are_the_stages_own(base):
  report = base.json("rm/report.json")
  figures = base.json("rm/done.json")["figures"]
  assert report["figures"].items() <= figures.items()
  assert (f"rm: {report['validation']['rows']} validation comparisons of 8 "
          "prompts") in base.printed
  assert "expected calibration error" in base.printed


def test_pairs_are_trained_on_one_by_one(base, run, tmp_path):
  rows = streams.training_comparisons(run, "rm")
  number = sum(
      row["ranks"][i] != row["ranks"][j] for row in rows
      for i, j in itertools.combinations(range(len(row["ranks"])), 2))
  figures, _, found = alone(tmp_path, batching="pairs", num_epochs=1)
  steps = [row for row in found if "train/rm/pairs" in row]
  assert len(steps) == figures["steps"] > 2
  for row in steps:  # each a comparison of its own
    assert row["train/rm/prompts"] == row["train/rm/pairs"] > 0
  seen = sum(row["train/rm/pairs"] for row in steps)
  largest = max(row["train/rm/pairs"] for row in steps)
  assert number - largest < seen <= number  # what fills no batch is left
  assert len(figures["validation_by_epoch"]) == 1
  with pytest.raises(
      pipeline.WorkdirError, match="rm.batching: 'pairs' -> 'kwise'"):
    alone(tmp_path, num_epochs=1)


def test_a_fold_is_measured_on_both_sides(base, run, tmp_path):
  figures, report, _ = alone(tmp_path, fold=(1, 2), num_epochs=1)
  groups = streams.labeler_groups(
      (row["labeler_id"] for row in run.comparisons("rm", "train")), 2)
  assert figures["comparisons"] == sum(
      row["labeler_id"] in groups[0]
      for row in run.comparisons("rm", "train")) < 32
  found = figures["fold_accuracy"]
  for side in found.values():
    assert side["low"] <= side["mean"] <= side["high"]
  # held-out evaluators are on neither side
  train = report["validation"]["accuracy"]["train_labelers"]
  assert found["inside"]["pairs"] + found["heldout"]["pairs"] == train["pairs"]
  assert found["inside"]["pairs"] > 0 < found["heldout"]["pairs"]
  assert "fold_accuracy" not in base.json("rm/done.json")["figures"]


def test_fewer_prompts_are_fewer_steps(base, tmp_path):
  figures, _, _ = alone(tmp_path, max_prompts=8, num_epochs=1)
  assert figures["comparisons"] == 8
  assert figures["steps"] < base.json("rm/done.json")["figures"]["steps"] / 2
