"""The reward model (InstructGPT 3.5 and C.2).

A prompt is in a batch with all its K responses: each is read once, all C(K, 2)
pairs minus ties are in one loss, and every prompt of the batch weighs the
same. Afterwards a bias makes the demonstrations score 0 on average.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import (
    checkpoint, losses, metrics, optimizer, scoring, sharding,
    streams, train_state, tree,
)
from rlhf_jax.evals import ranking
from rlhf_jax.models import scalar
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.run import Run, init_params
from rlhf_jax.train_state import TrainState

FIGURES = (
    "bias", "demonstration_score_sd", "score_sd", "validation_accuracy")


def make_rm_step(
    model: Scalar,
    tx: optax.GradientTransformation,
    *,
    denominator: str,
    num_microbatches: int,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Builds `rm_step(state, batch) -> (state, metrics)`.

  A batch holds B blocks as of `batches.comparison_examples`: tokens and mask
  [B, R, L]; last_token, ranks and response_mask [B, N, K].
  """
  scores = scoring.make_packed_scores(model)

  def part_gradients(params, part, num_prompts):
    def loss_fn(params):
      found = scores(params, part["tokens"], part["mask"], part["last_token"])
      loss, counts = losses.ranking_loss(
          by_prompt(found), by_prompt(part["ranks"]),
          by_prompt(part["response_mask"]), denominator=denominator)
      return loss / num_prompts, counts
    (loss, counts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, loss, counts

  def rm_step(state: TrainState, batch):
    num_prompts = jnp.maximum(
        has_untied_pair(batch["ranks"], batch["response_mask"]).sum(), 1)
    grads, loss, counts = train_state.accumulate(
        lambda part, _: part_gradients(state.params, part, num_prompts),
        batch, num_microbatches)
    params, opt_state = train_state.apply_gradients(
        state.params, state.opt_state, grads, tx)
    values = {
        "train/rm/loss": loss,
        "train/rm/accuracy":
            counts["num_correct"] / jnp.maximum(counts["num_pairs"], 1),
        "train/rm/pairs": counts["num_pairs"],
        "train/rm/prompts": counts["num_prompts"],
        "train/grad_norm": tree.global_norm(grads),
    }
    state = TrainState(
        step=state.step + 1, params=params, opt_state=opt_state)
    return state, values

  return rm_step


def by_prompt(x):
  """[B, N, K] -> [B * N, K]."""
  return x.reshape(-1, x.shape[-1])


def has_untied_pair(ranks, response_mask):
  """ranks, response_mask [..., K] -> bool [...]."""
  worst = jnp.where(response_mask, ranks, 0).max(-1)
  best = jnp.where(response_mask, ranks, jnp.iinfo(jnp.int32).max).min(-1)
  return worst > best


def train(run: Run, stage: str) -> dict[str, Any]:
  """Trains `stage`; its checkpoint's head holds the demonstrations' bias."""
  settings = run.config[stage]
  model = run.scalar()
  rows = streams.training_comparisons(run, stage)
  batch_at = streams.comparisons(run, stage, rows)
  num_steps = batch_at.count(settings.num_epochs)
  tx = optimizer.cosine_adam(num_steps, **settings.optimizer)
  with (
      sharding.use(run.mesh, run.axis_rules),
      checkpoint.Checkpoints(run.workdir / stage / "checkpoints",
                             keep=settings.keep_checkpoints) as saved,
  ):
    state, shardings = run.init(
        lambda key: train_state.create(init_params(model, key), tx),
        run.key(stage))
    if settings.init_from:
      body = run.load(settings.init_from, "params", run.rm_policy())
      state = state.replace(params=scalar.from_policy(state.params, body))
    if saved.latest_step:
      state = train_state.restore(saved, state, shardings)
    step_fn = jax.jit(
        make_rm_step(model, tx, denominator=settings.denominator,
                     num_microbatches=settings.num_microbatches),
        donate_argnums=0, out_shardings=(shardings, None))
    first = int(state.step)
    run.writer.rewind(stage, first)
    with metrics.Progress(stage, first, num_steps) as progress:
      for step in range(first, num_steps):
        state, values = step_fn(state, run.put(batch_at(step)))
        now = step + 1
        if metrics.should_run(now, settings.every_log_steps, num_steps):
          values = jax.device_get(values)
          run.writer.write(stage, now, values)
          progress.update(0, loss=values["train/rm/loss"],
                          accuracy=values["train/rm/accuracy"])
        # the last step is saved below, with its bias
        if now < num_steps and metrics.should_run(
            now, settings.every_save_steps, num_steps):
          train_state.save(saved, now, state)
        progress.update()
    if first == num_steps:  # it was killed after its last save
      last = metrics.read(run.workdir, stage)[-1]
      figures = {name: last[name] for name in FIGURES}
    else:
      figures = dict(closing_figures(
          run, model, state.params, rows, settings.eval_batch_size))
      run.writer.write(stage, num_steps, figures)
      state = state.replace(params=scalar.shift_and_scale(
          state.params, bias=figures["bias"], scale=1.0))
      train_state.save(saved, num_steps, state)
  return {"steps": num_steps, "prompts": len(rows),
          "params": model.config.num_params, **figures}


def closing_figures(
    run: Run, model, params, rows, batch_size: int) -> Iterator:
  """Yields FIGURES: the bias (mean score of training demonstrations), the
  standard deviations of their scores and of those of the first 1,000 `rows`,
  and the accuracy on validation comparisons."""
  scorer = scoring.Scorer(run, model, batch_size)
  demonstrations = run.source("demonstrations", "train")
  scores = scorer(params, [
      (r["prompt_tokens"], r["response_tokens"]) for r in demonstrations])
  yield "bias", float(np.mean(scores))
  yield "demonstration_score_sd", float(np.std(scores))
  compared = [
      (r["prompt_tokens"], response)
      for r in rows[:1000]
      for response in r["response_tokens"]
  ]
  yield "score_sd", float(np.std(scorer(params, compared)))
  held_out = list(run.source("comparisons", "validation"))
  flat = iter(scorer(params, [
      (r["prompt_tokens"], response)
      for r in held_out for response in r["response_tokens"]]))
  scores = [[float(next(flat)) for _ in r["ranks"]] for r in held_out]
  yield "validation_accuracy", ranking.accuracy(held_out, scores)["mean"]


