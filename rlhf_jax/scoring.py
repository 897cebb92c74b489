"""Reward-model scores of responses: one number a response."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import profiling, sharding
from rlhf_jax.data import batches
from rlhf_jax.models import scalar
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.run import Run
from rlhf_jax.sharding import constrain


def make_scores(model: Scalar) -> Callable[[Any, Any, Any], jax.Array]:
  """Builds `scores(params, tokens [B, L], mask [B, L]) -> [B]`.

  The score is read at the last real token.
  """

  def scores(params, tokens, mask):
    values = model.apply({"params": params}, tokens, mask)
    return scalar.at_last_token(values, mask)

  return scores


def make_packed_scores(
    model: Scalar, num_row_parts: int = 1
) -> Callable[..., jax.Array]:
  """Builds `scores(params, tokens [B, R, L], mask [B, R, L], last_token
  [B, N, K]) -> [B, N, K]`.

  The score of a response is read at its last token, one of the R * L of its
  block. With `num_row_parts` the R rows of all blocks are read in so many
  parts, one after the other, and once more for their gradients: it takes the
  memory of one part.
  """

  def scores(params, tokens, mask, last_token):
    values_of = lambda rows: model.apply({"params": params}, *rows)
    if num_row_parts == 1:
      values = values_of([x.reshape(-1, x.shape[-1]) for x in (tokens, mask)])
    else:
      parts = tuple(row_parts(x, num_row_parts) for x in (tokens, mask))
      values = jax.lax.map(jax.checkpoint(values_of), parts)
      values = jnp.moveaxis(
          values.reshape(num_row_parts, len(tokens), -1), 0, 1)
    block = lambda x: x.reshape(len(tokens), -1)
    return jnp.take_along_axis(
        block(values), block(last_token), axis=1).reshape(last_token.shape)

  return scores


def row_parts(x, num_parts: int):
  """[B, R, L] -> [num_parts, B * R / num_parts, L]: rows of every block."""
  batch, rows, length = x.shape
  x = jnp.moveaxis(x.reshape(batch, num_parts, -1, length), 1, 0)
  x = x.reshape(num_parts, batch * rows // num_parts, length)
  return constrain(x, None, "batch", "length")


class Scorer:
  """Scores lists of (prompt tokens, response tokens); compiles once.

  Call it under `sharding.use`; every process scores the same list.
  """

  def __init__(self, run: Run, model: Scalar, batch_size: int):
    self._run = run
    self._batch_size = batch_size
    self._scores = jax.jit(
        make_scores(model), out_shardings=sharding.replicated(run.mesh))

  def __call__(
      self, params: Any, pairs: list[tuple[Any, Any]]
  ) -> np.ndarray:
    """float32 [len(pairs)], in order."""
    at = self._run.batches(
        batches.pair_examples(
            pairs, length=self._run.pair_length,
            pad_id=self._run.config.model.vocab_size),
        self._batch_size)
    parts = []
    for number in range(-(-len(pairs) // self._batch_size)):
      with profiling.phase("score") as done:
        rows = self._run.put(at(number))
        parts.append(done(
            self._scores(params, rows["tokens"], rows["mask"])))
    return np.concatenate(jax.device_get(parts))[:len(pairs)]
