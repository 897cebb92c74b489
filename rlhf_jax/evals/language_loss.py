"""Mean token loss on held-out rows."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from rlhf_jax import losses, masked, profiling, streams
from rlhf_jax.models.policy import Policy
from rlhf_jax.run import Run

STREAMS = {
    "pretrain": streams.pretrain,
    "demonstrations": streams.demonstrations,
}


def make_eval_step(model: Policy) -> Callable[..., tuple[Any, Any]]:
  """Builds `eval_step(params, rows) -> (loss sum, number of tokens)`."""

  def eval_step(params, rows):
    mask = rows["loss_mask"] & rows["row_mask"][:, None]
    return losses.lm_loss_sum(_logprobs(model, params, rows), mask[:, 1:])

  return eval_step


def make_row_logprobs(model: Policy) -> Callable[..., Any]:
  """Builds `row_logprobs(params, rows) -> [B]`: of each row, the summed
  log-probability of its tokens under `loss_mask`, in nats."""

  def row_logprobs(params, rows):
    return masked.zero_padding(
        _logprobs(model, params, rows), rows["loss_mask"][:, 1:]).sum(-1)

  return row_logprobs


def _logprobs(model: Policy, params, rows):
  """[B, L - 1]: of every token but the first of a row."""
  hidden: jax.Array = model.apply(  # type: ignore[assignment]
      {"params": params}, rows["tokens"], rows["mask"], method="hidden")
  # what is at t predicts token t + 1, hence the shift
  return model.apply(
      {"params": params}, hidden[:, :-1], rows["tokens"][:, 1:],
      method="logprobs")


def make_evaluate(run: Run, settings) -> Callable[[Any], Iterator]:
  """Builds `evaluate(params)`, yielding (name, mean loss in nats a token) of
  every stream of `settings.eval_streams` on its validation split."""
  eval_step = jax.jit(make_eval_step(run.policy()))
  held_out = {
      name: STREAMS[name](run, "validation", settings.eval_batch_size, None)
      for name in settings.eval_streams
  }

  def evaluate(params):
    for name, at in held_out.items():
      with profiling.phase("validation loss"):
        parts = jax.device_get([
            eval_step(params, run.put(at(number)))
            for number in range(
                min(at.num_batches, settings.max_eval_batches))])
      total, count = np.sum(parts, axis=0, dtype=float)
      yield f"validation/{name}/loss", total / count

  return evaluate
