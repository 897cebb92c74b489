"""Responses of a policy: the decode layout, and text in, text out."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import rollout, sharding
from rlhf_jax.models.policy import Policy
from rlhf_jax.rollout import Rollout
from rlhf_jax.run import Run


def make_generate(
    run: Run, policy: Policy, *, temperature: float
) -> Callable[..., Rollout]:
  """Builds `generate(params, key, rows) -> Rollout`, jitted.

  Rows hold `prompt_tokens`, `prompt_mask` [B, P] and `row_ids` [B]. Decoding
  has its own layout (dtype and sharding), made once a call.
  """
  decode = run.config.decode
  decode_model = Policy(
      dataclasses.replace(policy.config, dtype=decode.dtype))
  decode_shardings = sharding.shardings_for(
      run.abstract_params(policy), run.mesh, decode.axis_rules)
  to_decode_layout = jax.jit(
      lambda params: jax.tree.map(lambda x: x.astype(decode.dtype), params),
      out_shardings=decode_shardings)
  sample = jax.jit(
      rollout.make_generate(
          decode_model, response_length=run.response_length,
          temperature=temperature, eos_id=run.tokenizer.eos_id),
      out_shardings=sharding.batch_sharding(run.mesh, run.axis_rules))

  def generate(params, key, rows):
    return sample(to_decode_layout(params), key, rows["prompt_tokens"],
                  rows["prompt_mask"], rows["row_ids"])

  return generate


@dataclasses.dataclass(frozen=True)
class Response:
  """One sampled response. `tokens` end in the end token where `ended`."""

  text: str
  tokens: np.ndarray
  ended: bool


@functools.lru_cache(maxsize=8)
def _gather(mesh):
  """Copies arrays whole to every device; one compilation a mesh."""
  return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))


def to_responses(run: Run, sampled: Rollout) -> list[Response]:
  """The responses of a rollout as text, on every process."""
  tokens, mask = jax.device_get(_gather(run.mesh)(
      (sampled.response_tokens, sampled.response_mask)))
  responses = []
  for row, real in zip(tokens, mask):
    row = row[real]
    ended = bool(len(row)) and int(row[-1]) == run.tokenizer.eos_id
    text = run.tokenizer.decode(row.tolist()).strip()
    responses.append(Response(text, row, ended))
  return responses


def respond(
    run: Run, generate, params, key: jax.Array, prompts: Sequence[Any],
    row_ids: Sequence[int], batch_size: int,
) -> Iterator[tuple[Rollout, list[Response]]]:
  """Samples one response a prompt, a batch at a time.

  Args:
    run: for lengths, mesh and tokenizer.
    generate: as of `make_generate`.
    params: the policy's.
    key: of the noise, with `row_ids`.
    prompts: token ids of each.
    row_ids: the noise of each.
    batch_size: rows of a compiled batch.

  Yields:
    The rollout of a batch, filled up at its end, and its prompts' responses.
  """
  for start in range(0, len(prompts), batch_size):
    part = prompts[start:start + batch_size]
    rows = prompt_rows(
        run, part, row_ids[start:start + batch_size], batch_size)
    sampled = generate(params, key, run.put(rows))
    yield sampled, to_responses(run, sampled)[:len(part)]


def prompt_rows(
    run: Run, prompts: Sequence[Any], row_ids: Sequence[int], batch_size: int
) -> dict[str, np.ndarray]:
  """Token rows -> one left-padded batch, filled up with its last row.

  Args:
    run: for lengths and the padding id.
    prompts: token ids of at most `batch_size` prompts.
    row_ids: the noise of each.
    batch_size: rows of the batch; this process gets its own part of them.
  """
  length = run.prompt_length
  tokens = np.full((batch_size, length), run.config.model.vocab_size, np.int32)
  mask = np.zeros((batch_size, length), bool)
  for row in range(batch_size):
    prompt = prompts[min(row, len(prompts) - 1)]
    tokens[row, length - len(prompt):] = prompt
    mask[row, length - len(prompt):] = True
  ids = np.resize(np.asarray(row_ids, np.int32), batch_size)
  rows = {"prompt_tokens": tokens, "prompt_mask": mask, "row_ids": ids}
  share = batch_size // jax.process_count()
  start = jax.process_index() * share
  return {name: x[start:start + share] for name, x in rows.items()}
