"""Which checkpoint of SFT a run goes on with."""

import json
import types

from etils import epath
import jax
import numpy as np
import pytest

from rlhf_jax import (
    checkpoint, metrics, pipeline, sampler, scoring, sharding,
)
from rlhf_jax.trainers import lm, select
from tests import tiny_run


def load(workdir, stage, step=None):
  run = pipeline.make_run(tiny_run.base().config, epath.Path(workdir))
  return jax.device_get(run.load(stage, "params", run.policy(), step))


def same(left, right):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


# ---------------------------------------------------------------------- by loss


@pytest.fixture(name="overfitted", scope="module")
def _overfitted(tmp_path_factory):
  """SFT that gets worse in the end: four evaluations, at 4, 8, 12 and 16."""
  workdir = tmp_path_factory.mktemp("overfitted")
  tiny_run.run(tiny_run.only(
      ("sft",), sft__every_eval_steps=4, sft__every_save_steps=3,
      sft__optimizer__learning_rate=1.0, sft__optimizer__warmup_steps=15,
      sft__select="loss"), workdir)
  rows = [json.loads(line) for line in
          (workdir / "metrics.jsonl").read_text().splitlines()]
  name = "validation/demonstrations/loss"
  return workdir, {r["step"]: r[name] for r in rows if name in r}


def test_the_lowest_validation_loss_is_used(overfitted):
  workdir, found = overfitted
  assert list(found) == [4, 8, 12, 16]
  best = min(found, key=found.get)
  assert best != 16  # else the test shows nothing
  figures = checkpoint.read_done(workdir / "sft")["figures"]
  assert figures["selected_step"] == best
  assert figures["validation/demonstrations/loss"] == found[best]
  used, last = load(workdir, "sft"), load(workdir, "sft", 16)
  assert same(used, load(workdir, "sft", best)) and not same(used, last)
  kept = [p.name for p in (workdir / "sft" / "checkpoints").iterdir()
          if p.name.isdigit()]
  assert sorted(map(int, kept)) == sorted({best, 16})


def test_the_last_is_used_where_that_is_asked(overfitted, tmp_path):
  workdir, _ = overfitted
  tiny_run.run(tiny_run.only(
      ("sft",), sft__every_eval_steps=4, sft__every_save_steps=3,
      sft__optimizer__learning_rate=1.0, sft__optimizer__warmup_steps=15,
      sft__select="last"), tmp_path)
  assert "selected_step" not in checkpoint.read_done(
      tmp_path / "sft")["figures"]
  assert same(load(tmp_path, "sft"), load(workdir, "sft", 16))


def test_a_training_that_diverged_has_no_best_checkpoint(tmp_path):
  row = {"stage": "sft", "step": 4, "validation/demonstrations/loss": None}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  run = types.SimpleNamespace(
      workdir=tmp_path, writer=metrics.Writer(tmp_path))
  with pytest.raises(checkpoint.CheckpointError, match="'sft' has a finite"):
    lm.select_by_loss(run, "sft", {"demonstrations": 1.0}, {4})


# --------------------------------------------------------------------- by score


@pytest.fixture(name="selected", scope="module")
def _selected(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("selected")
  config = tiny_run.only(
      ("sft", "sft_select"), sft__every_eval_steps=4, sft__every_save_steps=3,
      sft__select="rm_score",
      sft_select__num_prompts=16, sft_select__batch_size=16)
  tiny_run.run(config, workdir)
  return workdir, config


def test_the_best_score_on_validation_prompts_is_used(selected):
  workdir, config = selected
  report = json.loads((workdir / "sft_select" / "report.json").read_text())
  # those evaluated, whatever else is saved for the sake of resuming
  assert list(report["score"]) == ["4", "8", "12", "16"]
  run = pipeline.make_run(config, epath.Path(workdir))
  rows = list(run.source("prompts", "validation"))[:16]
  prompts = [row["prompt_tokens"] for row in rows]
  means = {}
  with sharding.use(run.mesh, run.axis_rules):
    generate = sampler.make_generate(run, run.policy(), temperature=1.0)
    scorer = scoring.Scorer(run, run.scalar(), 16)
    reward_model = run.load("rm", "params", run.scalar())
    for step in (4, 8, 12, 16):
      params = run.load("sft", "params", run.policy(), step)
      batch = sampler.prompt_rows(run, prompts, range(len(rows)), 16)
      responses = sampler.to_responses(
          run, generate(params, run.key("sft_select"), run.put(batch)))
      means[step] = np.mean(scorer(reward_model, [
          (prompt, r.tokens) for prompt, r in zip(prompts, responses)]))
  for step, mean in means.items():
    assert report["score"][str(step)]["mean"] == pytest.approx(mean, abs=1e-5)
  best = max(means, key=means.get)
  assert report["selected_step"] == best
  assert same(load(workdir, "sft_select"), load(workdir, "sft", best))


def test_candidates_that_another_run_has_not_kept(tmp_path):
  config = tiny_run.only(("sft_select",), sft__select="rm_score")
  with pytest.raises(
      pipeline.WorkdirError, match="select was 'loss', not 'rm_score'"):
    tiny_run.run(config, tmp_path)
  assert not (tmp_path / "sft_select").exists()


def test_the_earlier_of_equals():
  score = lambda mean: {"mean": mean}
  assert select.best_step(
      {2: score(0.1), 4: score(0.7), 6: score(0.7)}) == 4
