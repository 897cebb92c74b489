"""The reward model (InstructGPT 3.5 and C.2).

A prompt is in a batch with all its K responses: each is read once, all C(K, 2)
pairs minus ties are in one loss, and every prompt of the batch weighs the
same. With `batching` "pairs" a batch holds single pairs of all prompts, each a
comparison of K = 2, and every pair weighs the same. Afterwards a bias makes
the demonstrations score 0 on average.
"""

from collections.abc import Callable, Iterator
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import (
    checkpoint, loop, losses, metrics, optimizer, scoring, sharding, streams,
    train_state,
)
from rlhf_jax.config import INIT
from rlhf_jax.evals import ranking, reward_model
from rlhf_jax.hf import importing
from rlhf_jax.models import scalar
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.run import Run, init_params
from rlhf_jax.train_state import TrainState

REPORT = "report.json"


def make_rm_step(
    model: Scalar,
    tx: optax.GradientTransformation,
    *,
    denominator: str,
    num_microbatches: int,
    num_row_parts: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Builds `rm_step(state, batch) -> (state, metrics)`.

  A batch holds B blocks as of `batches.comparison_examples`: tokens and mask
  [B, R, L]; last_token, ranks and response_mask [B, N, K].
  """
  scores = scoring.make_packed_scores(model, num_row_parts)

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
    state, update_values = train_state.update(state, grads, tx, loss)
    return state, {
        "train/rm/loss": loss,
        "train/rm/accuracy":
            counts["num_correct"] / jnp.maximum(counts["num_pairs"], 1),
        "train/rm/pairs": counts["num_pairs"],
        "train/rm/prompts": counts["num_prompts"],
        **update_values,
    }

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
  """Trains `stage`; its checkpoint's head holds the demonstrations' bias, its
  report.json all that is known of it on validation comparisons."""
  settings = run.config[stage]
  with sharding.use(run.mesh, run.axis_rules):
    rows = streams.training_comparisons(run, stage)
    training = make_training(run, stage, rows)
    num_steps = training.num_steps
    epoch_ends = ends_of_epochs(training)
    measure = Measure(run, stage, run.scalar())
    scores = []

    def after_step(step, state):
      if step not in epoch_ends:
        return {}
      scores[:] = measure.scores(state.params)
      return measure.after_epoch(epoch_ends.index(step) + 1, scores)

    with loop.open_checkpoints(training) as saved:
      was_closed = saved.latest_step == num_steps  # killed after its last save
      state = loop.train(
          training, saved, every_log_steps=settings.every_log_steps,
          measure=after_step, is_saved=lambda step: metrics.should_run(
              step, settings.every_save_steps, num_steps))
      if was_closed:
        report = json.loads((run.workdir / stage / REPORT).read_text())
      else:
        figures = dict(measure.closing(state.params, rows))
        run.writer.write(stage, num_steps, figures)
        report = measure.report(scores, figures, epoch_ends)
        checkpoint.write_json(run.workdir / stage / REPORT, report)
        state = state.replace(params=sharding.in_place(functools.partial(
            scalar.shift_and_scale, bias=figures["bias"], scale=1.0),
            state.params))
        loop.save(training, saved, num_steps, state)
  metrics.say(reward_model.format_report(stage, report["validation"]))
  return {"steps": num_steps, "comparisons": len(rows),
          "params": run.scalar().config.num_params, **report["figures"]}


def make_training(
    run: Run, stage: str, rows: list[Any] | None = None) -> loop.Training:
  """What the loop needs of `stage`, which learns from `rows`, by default
  `streams.training_comparisons`; under `sharding.use`."""
  settings, model = run.config[stage], run.scalar()
  rows = streams.training_comparisons(run, stage) if rows is None else rows
  batch_at = streams.comparisons(run, stage, rows)
  num_steps = batch_at.count(settings.num_epochs)
  tx = optimizer.cosine_adam(num_steps, **settings.optimizer)
  fresh = lambda key: train_state.create(init_params(model, key), tx)
  with_body = lambda key, body: train_state.create(
      scalar.from_policy(init_params(model, key), body), tx)
  key = run.key(stage)
  abstract = run.abstract(fresh, key)
  step_fn = sharding.jit_step(
      make_rm_step(model, tx, denominator=settings.denominator,
                   num_microbatches=settings.num_microbatches,
                   num_row_parts=settings.num_row_parts), abstract)

  def first_state():
    """Another stage's body and a fresh head, what is imported, or all
    fresh."""
    if settings.init_from == INIT:
      params = importing.scalar_params(
          run.config.init.reward_model, model.config,
          run.abstract_params(model),
          lambda: run.init(lambda key: init_params(model, key)["head"], key)[0])
      return run.init(lambda params: train_state.create(params, tx), params)[0]
    if settings.init_from:
      return run.init(with_body, key, run.load(
          settings.init_from, "params", run.rm_policy()))[0]
    return run.init(fresh, key)[0]

  return loop.Training(
      run=run, stage=stage, num_steps=num_steps, abstract=abstract,
      create=first_state, streams={"comparisons": batch_at},
      batch=lambda number: {"comparisons": batch_at(number)},
      step=lambda state, batch, number: step_fn(
          state, run.put(batch["comparisons"])),
      constants={}, closes=True,
      shown={"loss": "train/rm/loss", "accuracy": "train/rm/accuracy"})


def ends_of_epochs(training: loop.Training) -> list[int]:
  count = training.streams["comparisons"].count
  return [count(n + 1) for n in range(training.settings.num_epochs)]


class Measure:
  """What is measured of one reward model; holds no parameters."""

  def __init__(self, run: Run, stage: str, model: Scalar):
    self._run = run
    self._stage = stage
    self._settings = run.config[stage]
    self._scorer = scoring.Scorer(run, model, self._settings.eval_batch_size)
    self._rows = list(run.comparisons(stage, "validation"))
    self._fold = streams.labeler_fold(run, stage)

  def scores(self, params) -> list[list[float]]:
    """One of each response of the validation comparisons."""
    return reward_model.score_rows(self._scorer, params, self._rows)

  def after_epoch(self, epoch: int, scores) -> dict[str, float]:
    """What metrics.jsonl gets when `epoch` epochs are done."""
    found = ranking.accuracy(ranking.pairs(self._rows, scores))
    return {
        "validation/rm/epoch": epoch,
        "validation/rm/accuracy": found["mean"],
        "validation/rm/accuracy_low": found["low"],
        "validation/rm/accuracy_high": found["high"],
        "validation/rm/pairs": found["pairs"],
        "validation/rm/loss": ranking.loss(
            self._rows, scores, self._settings.denominator),
    }

  def closing(self, params, rows) -> Iterator[tuple[str, float]]:
    """Yields the bias (mean score of training demonstrations) and the standard
    deviations of their scores and of those of the first 1,000 `rows`."""
    demonstrations = self._run.source("demonstrations", "train")
    scores = self._scorer(params, [
        (r["prompt_tokens"], r["response_tokens"]) for r in demonstrations])
    yield "bias", float(np.mean(scores))
    yield "demonstration_score_sd", float(np.std(scores))
    compared = [
        (r["prompt_tokens"], response)
        for r in rows[:1000]
        for response in r["response_tokens"]
    ]
    yield "score_sd", float(np.std(self._scorer(params, compared)))

  def report(
      self, scores, figures: dict[str, Any], epoch_ends: list[int]
  ) -> dict[str, Any]:
    """The stage's `figures` for done.json with the last ones of `validation`
    in full; `scores` are those after the last epoch."""
    validation = reward_model.evaluate(
        self._rows, scores,
        reward_model.comparison_groups(self._run, self._rows))
    measured = {
        row["step"]: {
            "mean": row["validation/rm/accuracy"],
            "low": row["validation/rm/accuracy_low"],
            "high": row["validation/rm/accuracy_high"],
            "loss": row["validation/rm/loss"]}
        for row in self._run.writer.read(self._stage)
        if "validation/rm/accuracy" in row}
    figures = figures | {
        "validation_accuracy": validation["accuracy"]["all"]["mean"],
        "calibration_error": validation["calibration"]["expected_error"],
        "validation_by_epoch": [measured[end] for end in epoch_ends],
        "validation_accuracy_by_group": validation["accuracy"],
    }
    if self._fold:
      figures["fold_accuracy"] = reward_model.fold_accuracy(
          self._rows, scores, self._fold.inside, self._fold.heldout)
    return {"figures": figures, "validation": validation}
