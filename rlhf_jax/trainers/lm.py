"""Language modelling: pretraining, SFT, and the PPO start (`rl_init`).

One loop for the three: a batch has one or two streams, `pretrain` windows and
`demonstrations`, and the loss is their weighted mean per token. SFT has
demonstrations alone (InstructGPT C.1); the model that PPO starts from mixes
10 % pretraining examples in (C.3).
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import (
    checkpoint, loop, losses, metrics, optimizer, sharding, train_state, tree,
)
from rlhf_jax.evals import language_loss
from rlhf_jax.models.policy import Policy
from rlhf_jax.run import Run, init_params
from rlhf_jax.train_state import TrainState

Batch = dict[str, dict[str, jax.Array]]


def make_lm_step(
    model: Policy,
    tx: optax.GradientTransformation,
    *,
    weights: dict[str, float],
    num_microbatches: int,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Builds `lm_step(state, batch, key) -> (state, metrics)`.

  Args:
    model: the policy; its dropout rate is that of training.
    tx: the optimizer.
    weights: stream -> weight of its mean token loss; they sum to 1.
    num_microbatches: into how many parts a batch is cut; with dropout off it
      does not change the result.
  """
  deterministic = model.config.dropout_rate == 0

  def loss_sum(params, rows, key):
    """(sum of the loss over trained tokens, their number)."""
    hidden = model.apply(
        {"params": params}, rows["tokens"], rows["mask"],
        deterministic=deterministic, rngs={"dropout": key}, method="hidden")
    # what is at t predicts token t + 1, hence the shift
    logprobs = model.apply(
        {"params": params}, hidden[:, :-1], rows["tokens"][:, 1:],
        method="logprobs")
    return losses.lm_loss_sum(logprobs, rows["loss_mask"][:, 1:])

  def stream_gradients(params, rows, key):
    """(gradient of the stream's mean token loss, that loss, its tokens)."""
    count = jnp.maximum(rows["loss_mask"][:, 1:].sum(), 1).astype(jnp.float32)

    def part_gradients(part, number):
      def loss_fn(params):
        total, _ = loss_sum(params, part, jax.random.fold_in(key, number))
        return total / count
      loss, grads = jax.value_and_grad(loss_fn)(params)
      return grads, loss

    grads, loss = train_state.accumulate(
        part_gradients, rows, num_microbatches)
    return grads, loss, count

  def lm_step(state: TrainState, batch: Batch, key: jax.Array):
    key = jax.random.fold_in(key, state.step)
    values, grads = {}, jax.tree.map(jnp.zeros_like, state.params)
    total_loss = jnp.zeros(())
    for number, (stream, weight) in enumerate(sorted(weights.items())):
      key_dropout = jax.random.fold_in(key, number)
      stream_grads, loss, count = stream_gradients(
          state.params, batch[stream], key_dropout)
      grads = tree.add(grads, tree.scale(stream_grads, weight))
      values |= {f"train/{stream}/loss": loss, f"train/{stream}/tokens": count}
      total_loss += weight * loss
    state, update_values = train_state.update(state, grads, tx, total_loss)
    return state, values | update_values

  return lm_step


def train(run: Run, stage: str) -> dict[str, Any]:
  """Trains `stage` and returns its figures for done.json."""
  settings = run.config[stage]
  with sharding.use(run.mesh, run.axis_rules):
    training = make_training(run, stage)
    evaluate = language_loss.make_evaluate(run, settings)
    num_steps = training.num_steps
    is_evaluated = lambda step: metrics.should_run(
        step, settings.every_eval_steps, num_steps)
    figures = {}

    def measure(step, state):
      if is_evaluated(step):
        figures.update(evaluate(state.params))
        return figures
      return {}

    with loop.open_checkpoints(
        training, keep_every=every_candidate_steps(settings)) as saved:
      state = loop.train(
          training, saved, every_log_steps=settings.every_log_steps,
          measure=measure, is_saved=lambda step: any(
              metrics.should_run(step, every, num_steps) for every in (
                  settings.every_save_steps, every_candidate_steps(settings))))
      if not figures:  # it was killed after its last save
        figures.update(evaluate(state.params))
      if settings.select != "last":
        evaluated = set(filter(is_evaluated, saved.finished_steps()))
      if settings.select == "rm_score":
        saved.keep_only(evaluated)
      if settings.select == "loss":
        selected, figures = select_by_loss(
            run, stage, stream_weights(settings), evaluated)
        saved.keep_only({selected, num_steps})
        figures["selected_step"] = selected
  return {"steps": num_steps, "params": run.policy().config.num_params,
          **figures}


def make_training(run: Run, stage: str) -> loop.Training:
  """What the loop needs of `stage`; under `sharding.use`."""
  settings = run.config[stage]
  weights = stream_weights(settings)
  streams = {
      name: language_loss.STREAMS[name](
          run, "train", size, run.data_seed(stage, name))
      for name, size in stream_sizes(settings).items()
  }
  num_steps = settings.num_steps or streams["demonstrations"].count(
      settings.num_epochs)
  tx = optimizer.cosine_adam(num_steps, **settings.optimizer)
  model = run.policy(settings.dropout_rate)
  key_init, key_step = jax.random.split(run.key(stage))
  create = lambda params: train_state.create(params, tx)
  abstract = run.abstract(create, run.abstract_params(model))
  step_fn = sharding.jit_step(
      make_lm_step(model, tx, weights=weights,
                   num_microbatches=settings.num_microbatches), abstract)

  def first_state():
    """Another stage's parameters, or fresh ones."""
    if settings.init_from:
      return run.init(create, run.load(settings.init_from, "params", model))[0]
    return run.init(lambda key: create(init_params(model, key)), key_init)[0]

  return loop.Training(
      run=run, stage=stage, num_steps=num_steps, abstract=abstract,
      create=first_state, streams=streams,
      batch=lambda number: {name: at(number) for name, at in streams.items()},
      step=lambda state, batch, number: step_fn(
          state, run.put(batch), key_step),
      constants={}, shown={"loss": f"train/{main_stream(weights)}/loss"})


def every_candidate_steps(settings) -> int:
  """Steps between the checkpoints that one is selected from; 0: the last."""
  return 0 if settings.select == "last" else settings.every_eval_steps


def select_by_loss(run: Run, stage: str, weights: dict[str, float],
                   steps: Collection[int]):
  """(step, figures) of the lowest validation loss of the main stream, of the
  checkpoints at `steps`.

  Raises:
    CheckpointError: none has a finite one.
  """
  name = f"validation/{main_stream(weights)}/loss"
  rows = [row for row in run.writer.read(stage)
          if row.get(name) is not None and row["step"] in steps]
  if not rows:
    raise checkpoint.CheckpointError(
        f"no checkpoint of {stage!r} has a finite {name}: the training "
        f"diverged; lower config.{stage}.optimizer.learning_rate and remove "
        f"{run.workdir / stage}")
  best = min(rows, key=lambda row: row[name])
  return best["step"], {
      key: value for key, value in best.items()
      if key.startswith("validation/")}


def main_stream(weights: dict[str, float]) -> str:
  return max(weights, key=weights.get)


def stream_weights(settings) -> dict[str, float]:
  """Stream -> weight of its mean token loss."""
  weights = {
      "demonstrations": 1.0 - settings.pretrain_weight,
      "pretrain": settings.pretrain_weight,
  }
  return {name: weight for name, weight in weights.items() if weight > 0}


def stream_sizes(settings) -> dict[str, int]:
  """Stream -> rows of a global batch."""
  sizes = {
      "demonstrations": settings.batch_size,
      "pretrain": settings.pretrain_batch_size,
  }
  return {name: sizes[name] for name in stream_weights(settings)}
