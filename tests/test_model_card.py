"""What the card of an exported model says is what the run's files say."""

import json
import pathlib
import re

from etils import epath
import pytest

from rlhf_jax import checkpoint, export, model_card, pipeline, recipe
from tests import tiny_run

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return pipeline.open_run(epath.Path(base.workdir))


@pytest.fixture(name="card", scope="module")
def _card(base, tmp_path_factory):
  """`card(stage)`: the text, written once for all."""
  made = {}

  def card(stage):
    if stage not in made:
      out = tmp_path_factory.mktemp("out") / "model"
      export.export(base.workdir, stage, str(out), dtype="float32",
                    max_shard_size="5GB", step=None)
      made[stage] = (out / "README.md").read_text()
    return made[stage]

  return card


def tables(text):
  """First column -> second, of all tables of two."""
  rows = re.findall(r"^\| (.*?) +\| (.*?) +\|$", text, re.MULTILINE)
  return dict(rows)


def numbers(text):
  return [float(x) for x in re.findall(r"-?\d[\d.]*(?:e[-+]\d+)?", text)]


def short(*values):
  return [float(f"{x:.4g}") for x in values]


@pytest.mark.parametrize("stage", ["ppo", "ppo:ema"])
def test_the_figures_of_a_policy_are_the_runs(base, card, stage):
  text = card(stage)
  found = tables(text)
  evaluated = base.json("evaluate/done.json")["figures"]["eval"]
  with_interval = {
      "preferred to `sft`, share of prompts": evaluated["win_rate"]["ppo"],
      "gold score of Smallworld's rubric, 0 to 1":
          evaluated["gold_score_intervals"]["ppo"],
      "KL to `rl_init`, nats a response": evaluated["kl_intervals"]["ppo"]}
  for name, value in with_interval.items():
    assert numbers(found[name]) == short(
        *(value[key] for key in ("mean", "low", "high", "n"))), name
  assert numbers(found["share of responses that end"]) == short(
      evaluated["ended"]["ppo"])
  assert "32 held-out prompts (smallworld, test split)" in text
  trained = base.json("ppo/done.json")["figures"]
  assert numbers(found["`score`"]) == short(trained["score"])
  assert ("which is another model than this one" in text) == (stage == "ppo")


def test_the_figures_of_a_reward_model_are_the_runs(base, card):
  found = tables(card("rm"))
  done = base.json("rm/done.json")["figures"]
  groups = done["validation_accuracy_by_group"]
  assert len(groups) == 3
  for group, value in groups.items():
    shown = found[f"accuracy, {group.replace('_', ' ')}"]
    assert numbers(shown) == short(
        *(value[key] for key in ("mean", "low", "high", "n", "pairs")))
  assert numbers(found["SD of the scores of compared responses"]) == short(
      done["score_sd"])


def test_the_recipe_is_that_of_the_lineage(base, run, card):
  text = card("ppo")
  assert recipe.lineage(run, "ppo") == [
      "pretrain", "sft", "collect", "rm", "rl_init", "ppo"]
  assert recipe.lineage(run, "sft") == ["pretrain", "sft"]
  settings = base.json("ppo/settings.json")["ppo"]
  assert f"kl_coef {settings['method']['kl_coef']:.4g}, " in text
  assert "`ppo`, 3 iterations: init_from rl_init, reward_model rm" in text
  rows = base.json("data/prompts/report.json")["rows_out"]["train"]
  assert f"- prompts: smallworld, {rows} rows of the training split" in text
  assert "base_model" not in text and str(base.workdir) not in text


def test_what_is_not_there_is_not_in_the_card(run, monkeypatch):
  monkeypatch.setattr(
      checkpoint, "read_done",
      lambda path: {"figures": {}} if path.name == "sft" else None)
  source = recipe.Source("sft", "params", 16, is_result=True)
  assert list(model_card.measured(run, source)) == [
      "## What was measured", "Nothing of these parameters is on record."]


@pytest.mark.parametrize("spec,name", [
    ("hf:openai-community/gpt2", "openai-community/gpt2"),
    ("hf:gpt2@main", "gpt2"), ("hf:/data/gpt2", ""), ("hf:./gpt2", ""),
    ("hf:tests", ""), ("", "")])
def test_a_base_model_is_a_name_on_the_hub(spec, name, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert model_card.hub_name(spec) == name


def test_files_are_shown_by_their_names():
  assert recipe.shown("jsonl:/home/me/a.jsonl,b/c*.jsonl.gz") == (
      "jsonl:a.jsonl,c*.jsonl.gz")


def test_the_front_matter(run, card):
  head = card("rm").split("---")[1].strip().splitlines()
  fields = dict(line.split(": ", 1) for line in head)
  assert json.loads(fields["pipeline_tag"]) == "text-classification"
  assert json.loads(fields["tags"])[-1] == "reward-model"
  assert set(fields) == {"library_name", "pipeline_tag", "tags"}


def test_a_stage_of_another_run_speaks_for_itself(base, tmp_path):
  """Its own settings count, not what this run would have had."""
  other = tmp_path / "other" / "sft"
  other.mkdir(parents=True)
  (other / "settings.json").write_text(json.dumps({
      "sft": {"init_from": "init", "batch_size": 77},
      "init": {"policy": "hf:somebody/gpt2"}}))
  config = tiny_run.tiny_config()
  config.inputs.sft = str(other)
  run = pipeline.make_run(config, epath.Path(base.workdir))
  assert recipe.lineage(run, "sft") == ["sft"]
  assert recipe.imported(run, "sft") == "hf:somebody/gpt2"
  (line,) = recipe.stages(run, "sft")
  assert line == "`sft`, of another run: init_from init, batch_size 77"
  source = recipe.Source("sft", "params", 1, is_result=True)
  assert 'base_model: "somebody/gpt2"' in model_card.front_matter(run, source)
