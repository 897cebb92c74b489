"""Which checkpoint of SFT is used: the one whose samples score best.

Validation loss over-fits after an epoch while reward-model score and human
preference still rise, so the paper picks by the score on validation prompts
(InstructGPT C.1).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tabulate

from rlhf_jax import (
    checkpoint, metrics, profiling, sampler, scoring, sharding,
)
from rlhf_jax.evals import intervals
from rlhf_jax.run import Run


def run_stage(run: Run, stage: str) -> dict[str, Any]:
  """Keeps the best candidate's parameters; writes `report.json`."""
  settings = run.config[stage]
  source = run.stage_dir(settings.candidates) / "checkpoints"
  with checkpoint.Reader(source) as saved:
    steps = saved.steps
  policy = run.policy()
  with (
      sharding.use(run.mesh, run.axis_rules),
      checkpoint.Checkpoints(
          run.workdir / stage / "checkpoints", keep=1) as chosen,
  ):
    score = make_score(run, stage)
    found = {}
    for step in metrics.track(stage, steps, "checkpoint"):
      profiling.next_step()
      params = run.load(settings.candidates, "params", policy, step)
      found[step] = score(params)
    best = best_step(found)
    if not chosen.latest_step:
      params = run.load(settings.candidates, "params", policy, best)
      chosen.save(best, {"params": params}, {})
  checkpoint.write_json(run.workdir / stage / "report.json", {
      "candidates": settings.candidates, "selected_step": best,
      "score": {str(step): value for step, value in found.items()}})
  if jax.process_index() == 0:
    print(format_scores(settings.candidates, found, best), flush=True)
  run.writer.rewind(stage, -1)
  for step, value in found.items():
    run.writer.write(stage, step, {"validation/rm/score": value["mean"]})
  return {"selected_step": best, "candidates": len(found),
          "score": found[best]["mean"]}


def make_score(run: Run, stage: str) -> Callable[[Any], dict[str, float]]:
  """Builds `score(params)`: the mean score on validation prompts.

  Every candidate answers the same prompts with the same noise.
  """
  settings = run.config[stage]
  prompts = [row["prompt_tokens"] for row in run.source(
      "prompts", "validation")][:settings.num_prompts]
  generate = sampler.make_generate(
      run, run.policy(), temperature=settings.temperature)
  scorer = scoring.Scorer(run, run.scalar(), settings.batch_size)
  reward_model = run.load(settings.reward_model, "params", run.scalar())

  def score(params):
    responses = [
        response for _, part in sampler.respond(
            run, generate, params, run.key(stage), prompts,
            range(len(prompts)), settings.batch_size)
        for response in part]
    return intervals.mean(scorer(reward_model, [
        (prompt, response.tokens)
        for prompt, response in zip(prompts, responses)]))

  return score


def best_step(found: dict[int, dict[str, float]]) -> int:
  """The step of the highest mean; the earlier one of equals."""
  means = [value["mean"] for value in found.values()]
  return list(found)[int(np.argmax(means))]


def format_scores(source: str, found, best: int) -> str:
  rows = [
      (step, f"{value['mean']:.3f}",
       f"{value['low']:.3f} to {value['high']:.3f}", "*" * (step == best))
      for step, value in found.items()]
  return tabulate.tabulate(
      rows, headers=(source, "score", "95 % interval", "chosen"),
      disable_numparse=True) + "\n"
