"""Runs made up for the report: curves, and folders with what a run leaves."""

import json
import pathlib

import numpy as np

from rlhf_jax.report.series import Series

STAGES = ("pretrain", "sft", "ppo", "evaluate")
HOSTILE = '</script><img src=x onerror="window.hacked=1">&amp;<b>'


def ppo_metrics(num=100, seed=0, **changes):
  """Metric -> [num], as measured at mini; `changes` replace some, by the last
  part of their names, with functions of (values, progress [num])."""
  rng = np.random.default_rng(seed)
  noise = lambda sd: rng.normal(0, sd, num)
  progress = np.arange(1, num + 1) / num
  risen = 1 - np.exp(-5 * progress)
  found = {
      "train/ppo/score": 1.6 * risen + noise(0.08),
      "train/ppo/reward": 1.3 * risen + noise(0.08),
      "train/ppo/gold": 0.48 + 0.25 * risen + noise(0.02),
      "train/ppo/kl": 3.6 * risen + noise(0.1),
      "train/ppo/entropy_estimate": 0.52 - 0.1 * risen + noise(0.01),
      "train/ppo/response_length": 16.4 + risen + noise(0.3),
      "train/ppo/ended": np.minimum(1, 0.99 + noise(0.005)),
      "train/ppo/clip_frac": np.abs(noise(0.002)),
      "train/critic/explained_variance": 0.92 * risen + noise(0.02),
      "train/critic/clip_frac": np.abs(noise(0.02)),
      "train/ptx/loss": 0.94 - 0.03 * risen + noise(0.01),
      "train/ptx/grad_norm": 0.4 + noise(0.02),
      "train/ppo/rl_grad_norm": 1.1 + noise(0.1),
      "train/skipped": np.zeros(num),
  }
  for metric in found:
    if change := changes.get(metric.rpartition("/")[2]):
      found[metric] = change(found[metric], progress)
  return found


def curves(metrics):
  """`Curves` of one PPO stage."""
  return {"ppo": {
      name: Series(np.arange(1, len(values) + 1), np.asarray(values, float))
      for name, values in metrics.items()}}


def samples(num=60, seed=0):
  """Rows of samples.jsonl; the second is hostile, the third of another use."""
  rng = np.random.default_rng(seed)
  rows = []
  for i in range(num):
    text = HOSTILE if i == 1 else f"the answer {i}"
    rows.append({
        "prompt": f"Question {i}? {HOSTILE if i == 1 else ''}",
        "category": ("generation", "chat")[i % 3 == 2],
        "responses": {
            policy: {"text": f"{policy} says {text}",
                     **{name: round(float(rng.normal()), 4)
                        for name in ("score", "kl", "gold")}}
            for policy in ("pretrain", "sft", "ppo")}})
  return rows


def evaluation(**changes):
  """The "eval" of done.json."""
  interval = lambda mean, sd: {
      "mean": mean, "low": mean - sd, "high": mean + sd, "n": 60}
  policies = {"pretrain": (-1.5, 0.01, 0.99), "sft": (-0.1, 0.44, 0.97),
              "ppo": (1.7, 0.71, 0.96)} | changes
  rate = interval(0.77, 0.03)
  return {
      "n": 60,
      "score": {name: of[0] for name, of in policies.items()},
      "score_intervals": {
          name: interval(of[0], 0.1) for name, of in policies.items()},
      "gold_score": {name: of[1] for name, of in policies.items()},
      "gold_score_intervals": {
          name: interval(of[1], 0.02) for name, of in policies.items()},
      "pretrain_loss": {name: of[2] for name, of in policies.items()},
      "kl": dict.fromkeys(policies, 3.2),
      "response_length": dict.fromkeys(policies, 17.0),
      "ended": dict.fromkeys(policies, 1.0),
      "win_rate": {"ppo": rate}, "win_rate_vs_sft": rate}


def rows_of(stage, metrics):
  """The lines of metrics.jsonl."""
  for step in range(len(next(iter(metrics.values())))):
    yield {"stage": stage, "step": step + 1, "seconds": step / 2, **{
        name: None if np.isnan(values[step]) else float(values[step])
        for name, values in metrics.items()}}


def account():
  tokens = {"prompt": {"count": 80, "mean": 9.5, "std": 2.0, "min": 3,
                       "p25": 8.0, "p50": 9.0, "p75": 11.0, "max": 20}}
  return {
      "kind": "prompts", "rows_in": 100,
      "dropped": {"duplicate_row": {"count": 20, "examples": [
          {"origin": "a:1", "text": HOSTILE}]}},
      "rows_out": {"train": 60, "validation": 20},
      "languages": {"sampled": 100, "shares": {"en": 1.0}},
      "users": {"train": {"users": 3, "prompts_per_user": 20.0},
                "validation": {"users": 1, "prompts_per_user": 20.0}},
      "categories": {"train": {"chat": 60}, "validation": {"chat": 20}},
      "tokens": {"train": tokens, "validation": tokens},
      "tokens_by_category": {}, "tokens_by_source": {}}


def folder(path: pathlib.Path, *, kl_coef=0.1, metrics=None, is_done=True):
  """A run's folder; one that is not done stopped in the middle of PPO."""
  path.mkdir(parents=True)
  write = lambda name, content: _write(path / name, json.dumps(content))
  write("config.json", {
      "name": "made", "stages": STAGES, "inputs": {},
      "ppo": {"kl_coef": kl_coef},
      "evaluate": {"policies": ["pretrain", "sft", "ppo"], "baseline": "sft"}})
  loss = lambda num: 4 * np.exp(-np.arange(num) / 20) + 1
  lines = [*rows_of("pretrain", {"train/pretrain/loss": loss(50),
                                 "train/grad_norm": loss(50)}),
           *rows_of("sft", {"train/demonstrations/loss": loss(50),
                            "validation/demonstrations/loss": loss(50)}),
           *rows_of("ppo", metrics or ppo_metrics())]
  _write(path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in lines))
  _write(path / "guards.jsonl", json.dumps(
      {"stage": "ppo", "step": 3, "guard": "ended", "message": HOSTILE}))
  write("data/prompts/report.json", account())
  compiled = {
      "programs": 3, "from_cache": 1, "tracing_seconds": 1.0,
      "lowering_seconds": 1.0, "compiling_seconds": 2.0,
      "seconds_by_function": {}}
  for stage in STAGES if is_done else STAGES[:2]:
    figures = {"eval": evaluation()} if stage == "evaluate" else {"steps": 50}
    write(f"{stage}/done.json",
          {"stage": stage, "seconds": 12.5, "figures": figures})
    write(f"{stage}/compiled.json", compiled)
  if is_done:
    write("summary.json", {
        "name": "made", "seconds": 50.0, "versions": {"jax": "0.10.2"},
        "eval": evaluation(), "rounds": [{
            "policy": "ppo", "reward_model": "rm", "comparisons": 120,
            "reward_model_accuracy": evaluation()["win_rate_vs_sft"],
            "gold_score": None, "kl": 3.2,
            "win_rate": evaluation()["win_rate_vs_sft"]}]})
    _write(path / "samples.jsonl",
           "".join(json.dumps(row) + "\n" for row in samples()))
  return path


def _write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
