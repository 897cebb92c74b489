"""Responses of a policy: the decode layout, and text in, text out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import ahead, profiling, refill, rollout, sharding
from rlhf_jax.data import batches
from rlhf_jax.models.policy import Policy
from rlhf_jax.rollout import Rollout
from rlhf_jax.run import Run, init_params


@dataclasses.dataclass(frozen=True)
class Generate:
  """`generate(params, key, rows) -> Rollout`, as two jitted functions.

  Rows hold `prompt_tokens`, `prompt_mask` [B, P] and `row_ids` [B], by the
  rules of training, as does the Rollout. Call it under `sharding.use`.

  Attributes:
    to_decode_layout: params -> their copy in the dtype and shards of decoding,
      its blocks unstacked.
    sample: (that copy, key, prompt_tokens, prompt_mask, row_ids) -> Rollout.
  """

  to_decode_layout: Callable[[Any], Any]
  sample: Callable[..., Rollout]

  def __call__(
      self, params: Any, key: jax.Array, rows: Mapping[str, Any]) -> Rollout:
    return self.sample(
        self.to_decode_layout(params), key, rows["prompt_tokens"],
        rows["prompt_mask"], rows["row_ids"])


def make_generate(
    run: Run, policy: Policy, *, temperature: float, num_parts: int = 1
) -> Generate:
  """Builds the run's Generate for a policy's parameters."""
  return make_sharded_generate(
      policy, mesh=run.mesh, axis_rules=run.axis_rules,
      decode_dtype=run.config.decode.dtype,
      decode_axis_rules=run.config.decode.axis_rules,
      response_length=run.response_length, temperature=temperature,
      eos_id=run.tokenizer.eos_id, num_parts=num_parts,
      refills=run.config.decode.refill)


def make_sharded_generate(
    policy: Policy, *, mesh: jax.sharding.Mesh,
    axis_rules: sharding.AxisRules, decode_dtype: str,
    decode_axis_rules: sharding.AxisRules, response_length: int,
    temperature: float, eos_id: int, num_parts: int, refills: bool,
) -> Generate:
  """Builds Generate; neither array nor device is needed to lower its parts.

  Args:
    policy: whose parameters are given, in the shards of `axis_rules`.
    mesh: where all is.
    axis_rules: of training.
    decode_dtype: of the parameters' copy, the cache and all computation.
    decode_axis_rules: of that copy, the cache and the activations.
    response_length: T.
    temperature: divides the logits; 0 takes the most likely token.
    eos_id: ends a response.
    num_parts: of a batch; so many rows less are sampled at a time.
    refills: a row that has ended makes room for one of the next part, instead
      of parts one after the other.
  """
  abstract = jax.eval_shape(lambda: rollout.unstacked(
      init_params(policy, jax.random.key(0)), policy.config.num_layers))
  training, decoding = (
      sharding.shardings_for(abstract, mesh, rules)
      for rules in (axis_rules, decode_axis_rules))
  policy_here = Policy(dataclasses.replace(policy.config, dtype=decode_dtype))
  settings: dict[str, Any] = dict(
      response_length=response_length, temperature=temperature, eos_id=eos_id)
  if refills and num_parts > 1:
    one_sample = refill.make_generate(
        policy_here, **settings, num_parts=num_parts,
        num_groups=sharding.batch_shards(mesh.shape, decode_axis_rules))
  else:
    one_sample = rollout.in_parts(
        rollout.make_generate(policy_here, **settings), num_parts)

  def to_decode_layout(params):
    params = jax.tree.map(lambda x: x.astype(decode_dtype), params)
    return jax.tree.map(
        sharding.move, rollout.unstacked(params, policy.config.num_layers),
        training, decoding)

  def sample(params, key, *rows):
    with sharding.use_rules(decode_axis_rules):
      return one_sample(params, key, *rows)

  return Generate(
      jax.jit(to_decode_layout, out_shardings=decoding),
      jax.jit(sample, out_shardings=sharding.batch_sharding(
          mesh, axis_rules)))


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


def gathered(run: Run, sampled: Rollout) -> Rollout:
  """A rollout whole on every device: `jax.device_get` of it gives the same on
  every process."""
  return _gather(run.mesh)(sampled)


def to_responses(run: Run, sampled: Rollout) -> list[Response]:
  """The responses of a rollout as text, on every process."""
  return _decoded(run, jax.device_get(gathered(run, sampled)))


def _decoded(run: Run, whole: Rollout) -> list[Response]:
  responses = []
  for row, real in zip(whole.response_tokens, whole.response_mask):
    row = row[real]
    ended = bool(len(row)) and int(row[-1]) == run.tokenizer.eos_id
    text = run.tokenizer.decode(row.tolist()).strip()
    responses.append(Response(text, row, ended))
  return responses


def respond(
    run: Run, generate, params, key: jax.Array, prompts: Sequence[Any],
    row_ids: Sequence[int], batch_size: int, prompt_length: int | None = None,
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
    prompt_length: tokens of the longest prompt, by default the run's.

  Yields:
    The rollout of a batch, filled up at its end, and its prompts' responses.
  """
  def batches():
    for start in range(0, len(prompts), batch_size):
      part = prompts[start:start + batch_size]
      with profiling.phase("generate") as done:
        rows = prompt_rows(
            run, part, row_ids[start:start + batch_size], batch_size,
            prompt_length)
        sampled = done(generate(params, key, run.put(rows)))
      yield len(part), sampled, gathered(run, sampled)

  # the next batch is sampled while this one becomes text
  for number, sampled, whole in ahead.one_behind(batches()):
    with profiling.phase("text"):
      texts = _decoded(run, jax.device_get(whole))[:number]
    yield sampled, texts


def prompt_rows(
    run: Run, prompts: Sequence[Any], row_ids: Sequence[int], batch_size: int,
    prompt_length: int | None = None,
) -> dict[str, np.ndarray]:
  """Token rows -> one left-padded batch, filled up with its last row.

  Args:
    run: for lengths and the padding id.
    prompts: token ids of at most `batch_size` prompts.
    row_ids: the noise of each.
    batch_size: rows of the batch; this process gets its own part of them.
    prompt_length: tokens of the longest prompt, by default the run's.
  """
  length = prompt_length or run.prompt_length
  filled = [prompts[min(row, len(prompts) - 1)] for row in range(batch_size)]
  tokens, mask = batches.left_padded(
      filled, length, run.config.model.vocab_size)
  ids = np.resize(np.asarray(row_ids, np.int32), batch_size)
  rows = {"prompt_tokens": tokens, "prompt_mask": mask, "row_ids": ids}
  here = run.rows_here(batch_size)
  return {name: x[here] for name, x in rows.items()}
