"""`experiments/hh.py` on dialogues written here: all stages on given data."""

import json
import math

import pytest

from experiments import hh
from rlhf_jax.data import splits
from tests import dialogues, tiny_run


@pytest.fixture(name="finished", scope="module")
def _finished(tmp_path_factory):
  """(folder, rows of samples.jsonl, summary) of a run on a made-up DATA."""
  root = dialogues.write(tmp_path_factory.mktemp("hh"))
  config = hh.get_config("mini")
  tiny_run.shrink(config)
  for model in (config.model, config.rm_model):
    model.vocab_size = 300  # so little text has few merges
  config.data.root = str(root)
  workdir = root / "run"
  tiny_run.run(config, workdir)
  samples = (workdir / "samples.jsonl").read_text().splitlines()
  summary = json.loads((workdir / "summary.json").read_text())
  return workdir, [json.loads(line) for line in samples], summary


def test_accuracy_is_given_by_source_beside_the_longer_reply(finished):
  _, _, summary = finished
  for name in ("accuracy_intervals", "longer_wins_intervals"):
    found = summary["rm"][name]
    assert set(found) == {"all", *dialogues.SOURCES}
    for interval in found.values():
      assert interval["low"] <= interval["mean"] <= interval["high"]
    assert found["all"]["pairs"] == sum(
        found[source]["pairs"] for source in dialogues.SOURCES) > 0
  # here the longer reply always is the preferred one
  assert summary["rm"]["longer_wins"]["all"] == 1.0


def test_the_judge_is_the_other_half_of_the_comparisons(finished):
  workdir, _, summary = finished
  prompts = {row["prompt"] for _, row in dialogues.comparisons()}
  halves = {splits.half_of(prompt) for prompt in prompts}
  assert halves == {0, 1}
  done = [json.loads((workdir / name / "done.json").read_text())["figures"]
          for name in ("rm", "judge")]
  total = json.loads(
      (workdir / "data" / "comparisons" / "report.json").read_text())
  train = total["rows_out"]["train"]
  assert sum(figures["comparisons"] for figures in done) == train
  assert min(figures["comparisons"] for figures in done) > 0
  assert 0.0 <= summary["eval"]["win_rate_vs_sft"]["mean"] <= 1.0


def test_losses_kl_and_samples_of_every_policy(finished):
  _, samples, summary = finished
  policies = {"pretrain", "sft", "rl_init", "ppo"}
  assert set(summary["eval"]["pretrain_loss"]) == policies
  assert all(map(math.isfinite, summary["eval"]["pretrain_loss"].values()))
  assert summary["eval"]["kl_to_sft"] >= 0.0
  assert "gold_score" not in summary["eval"]  # nobody knows the truth here
  trained = {row["prompt"] for _, row in dialogues.comparisons()
             if splits.split_of(row["prompt"], validation_fraction=0.25,
                                test_fraction=0.10) != "test"}
  assert samples
  for row in samples:
    assert row["prompt"] not in trained
    assert set(row["responses"]) == policies
    for response in row["responses"].values():
      assert {"text", "score", "judge_score", "kl"} <= set(response)
