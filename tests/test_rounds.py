"""Later rounds: who answers, what is learnt from, what is said of them."""

import collections
import json

import pytest

from experiments import common
from experiments import rounds
from rlhf_jax import summaries
from tests import tiny_run


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
  """Two more rounds behind the first one of the base run."""
  base = tiny_run.base()
  config = rounds.get_config("mini")
  tiny_run.shrink(config)
  for stage in ("ppo@2", "ppo@3"):
    config[stage].num_iters = 1
  for stage in ("pretrain", "sft", "collect", "rm", "rl_init", "ppo"):
    config.inputs[stage] = str(base.workdir / stage)
  workdir = tmp_path_factory.mktemp("rounds")
  tiny_run.run(config, workdir)
  return tiny_run.Base(config, workdir, "")


def test_sft_and_the_newest_ppo_answer(run):
  for stage, newest in (("collect@2", "ppo"), ("collect@3", "ppo@2")):
    names = collections.Counter(
        name for row in run.rows(f"{stage}/comparisons.jsonl")
        for name in row["policies"])
    assert set(names) == {"sft", newest}
    assert abs(names["sft"] / names.total() - 0.5) < 0.15
  assert run.json("collect@3/report.json")["policies"].keys() == {
      "sft", "ppo@2"}


def test_the_same_prompts_are_answered_with_other_noise(run):
  first = tiny_run.base().rows("collect/responses.jsonl")
  second = run.rows("collect@2/responses.jsonl")
  assert [r["prompt"] for r in first] == [r["prompt"] for r in second]
  pairs = [
      (a, b) for one, other in zip(first, second)
      for a, b, policy in zip(
          one["responses"], other["responses"], other["policies"])
      if policy == "sft"]
  assert sum(a == b for a, b in pairs) < 0.2 * len(pairs)


def test_a_reward_model_learns_from_all_rounds_so_far(run):
  names = ("collect", "collect+collect@2", "collect+collect@2+collect@3")
  rows_in = [
      tiny_run.base().json("data/comparisons/report.json")["rows_in"],
      *(run.json(f"data/{name}/comparisons/report.json")["rows_in"]
        for name in names[1:])]
  each = 32 + 8 * 4
  assert rows_in == [each, 2 * each, 3 * each]
  prompts = [run.json(f"{stage}/done.json")["figures"]["comparisons"]
             for stage in ("rm@2", "rm@3")]
  assert prompts[0] < prompts[1]


def test_the_summary_has_a_line_a_round(run):
  summary = run.json("summary.json")
  assert [row["policy"] for row in summary["rounds"]] == [
      "ppo", "ppo@2", "ppo@3"]
  assert [row["reward_model"] for row in summary["rounds"]] == [
      "rm", "rm@2", "rm@3"]
  for row in summary["rounds"]:
    figures = summary["eval"]
    assert row["gold_score"]["mean"] == figures["gold_score"][row["policy"]]
    assert row["win_rate"] == figures["win_rate"][row["policy"]]
    assert row["comparisons"] == (
        summary["stages"][row["reward_model"]]["comparisons"])
  # all on the same comparisons, those of every round
  accuracies = [row["reward_model_accuracy"] for row in summary["rounds"]]
  assert len({found["pairs"] for found in accuracies}) == 1
  assert accuracies[-1] == summary["rm"]["accuracy_intervals"]["all"]
  table = summaries.format_rows(
      summaries.round_rows(summary["rounds"]))
  assert len(table.splitlines()) == 2 + 3


def test_the_summary_has_a_line_a_reward_model(run):
  summary = run.json("summary.json")
  lines = summary["reward_models"]
  assert [line["reward_model"] for line in lines] == ["rm", "rm@2", "rm@3"]
  for line in lines:
    report = json.loads((
        (tiny_run.base().workdir if line["reward_model"] == "rm"
         else run.workdir) / line["reward_model"] / "report.json").read_text())
    assert line["by_group"] == report["validation"]["accuracy"]
    assert len(line["by_epoch"]) == 2
  table = summaries.format_rows(
      summaries.reward_model_rows(lines)).splitlines()
  assert len(table) == 2 + 3
  for name in ("epoch 1", "epoch 2", "train labelers", "heldout labelers"):
    assert name in table[0]


def test_one_round_needs_no_table():
  summary = tiny_run.base().json("summary.json")
  assert "rounds" not in summary and "reward_models" not in summary


@pytest.mark.parametrize("size", ["mini", "1.3b"])
def test_a_round_goes_on_where_the_last_one_ended(size):
  config = rounds.get_config(size)
  assert config["ppo@2"].reward_model == "rm@2"
  assert config["ppo@3"].init_from == "rl_init"
  assert dict(config["collect@3"].policies) == {"sft": 1.0, "ppo@2": 1.0}
  assert config.rm.to_dict() == common.rm(size)
