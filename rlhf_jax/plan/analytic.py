"""Memory, work and traffic from formulas: GPUs, whose compiler is not here.

Coarser than a compiled plan, and every figure says "derived": weights are
gathered whole a layer at a time (FSDP) or stay cut (tensor), activations
between blocks are kept and those inside computed again (remat "block").
"""

import collections
import dataclasses
import math

import jax
from jax.sharding import AbstractMesh, AxisType
import ml_collections

from rlhf_jax import sharding
from rlhf_jax.config.names import kind_of, lm_streams
from rlhf_jax.models.transformer import TransformerConfig
from rlhf_jax.plan import programs
from rlhf_jax.plan.costs import Segment, Work
from rlhf_jax.plan.programs import Program
from rlhf_jax.run import transformer_config

_DATA, _FSDP, _TENSOR = range(3)
# FLOPs over those of the model: "block" computes the forward pass once more.
_REMAT_FLOPS = {"none": 1.0, "dots": 1.05, "block": 4 / 3}
# Arrays [rows, L, D] that a layer keeps for its backward pass.
_KEPT = {"none": 16, "dots": 9, "block": 1}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """As `compiling.Compiled`, per device."""

  argument_bytes: int
  temporary_bytes: int
  segments: dict[str, list[Segment]]  # phase -> its work


@dataclasses.dataclass(frozen=True)
class _Pass:
  """One model reading some rows, on one device.

  rows: of one microbatch; parts: microbatches; logits: positions of a row.
  """

  model: TransformerConfig
  rows: float
  parts: int
  length: int
  logits: int = 0
  is_training: bool = True


def abstract_mesh(config: ml_collections.ConfigDict, count: int):
  """The mesh of so many devices that are not there."""
  sizes = sharding.mesh_sizes(**config.mesh, device_count=count)
  return AbstractMesh(
      sizes, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def estimate(config, program: Program, mesh) -> Estimate:
  """The figures of one program."""
  stage = program.name.partition("/")[0]
  shape = tuple(mesh.shape.values())
  shards = sharding.batch_shards(mesh.shape, config.axis_rules)
  segments = collections.defaultdict(list)
  if program.name.endswith("/generate"):
    temporary = _generate(config, stage, mesh, program, segments)
  elif program.name.endswith("/decode_copy"):
    temporary = _decode_copy(config, program, mesh, segments)
  else:
    temporary = 0.0
    for phase, passes in _passes(config, stage, program, shards).items():
      for one in passes:
        segments[phase].append(Segment(phase, one.parts, _work(one, shape)))
        temporary = max(temporary, _activations(one, shape))
    temporary += _gradients(program)
    phase = program.phases[-1].name
    segments[phase].append(Segment(phase, 1.0, _optimizer(program)))
  return Estimate(programs.device_bytes(program.args), int(temporary),
                  dict(segments))


def _passes(config, stage, program, shards) -> dict[str, list[_Pass]]:
  """Phase -> the passes over rows that it makes."""
  settings, kind = config[stage], kind_of(stage)
  model = transformer_config(config.model, 0.0)
  critic = transformer_config(config.rm_model, 0.0)
  if kind == "lm":
    parts, rows = settings.num_microbatches, lm_streams(settings.to_dict())
    return {program.name: [
        _Pass(model, max(settings[key] / shards, 1) / parts, parts,
              model.context_length, model.context_length)
        for key in rows.values()]}
  if kind == "rm":
    parts = settings.num_microbatches * settings.num_row_parts
    rows = max(settings.batch_size / shards, 1) * settings.block_rows
    return {program.name: [
        _Pass(critic, rows / parts, parts, critic.context_length)]}
  method, data = settings.method, config.data
  length = data.max_prompt_tokens + data.max_response_tokens
  parts = method.num_minibatches * method.num_microbatches
  rows = settings.batch_size / shards / parts
  one = lambda model, logits, training, times: _Pass(
      model, rows, parts * times, length, logits, training)
  response = data.max_response_tokens
  update = [one(model, response, True, method.num_epochs),
            one(critic, 0, True, method.num_epochs)]
  if method.ptx_coef > 0:
    ptx_parts = method.num_epochs * (
        method.num_minibatches * method.num_ptx_microbatches)
    update.append(_Pass(
        model, settings.ptx_batch_size / shards / ptx_parts, ptx_parts,
        model.context_length, model.context_length))
  return {
      f"{stage}/score": [one(model, response, False, 2),
                         one(critic, 0, False, 2)],
      f"{stage}/update": update}


def _work(one: _Pass, shape: tuple[int, ...]) -> Work:
  """Of one microbatch on one device."""
  model, (data, fsdp, tensor) = one.model, shape
  tokens = one.rows * one.length
  flops = one.rows * programs.forward_flops(
      model, one.length, num_logits=one.logits) / tensor
  item = jax.numpy.dtype(model.dtype).itemsize
  weights = float(item * _matrix_params(model)) / tensor  # gathered
  stream = float(item * tokens * model.d_model)  # one activation
  passes = 1
  work = Work()
  if one.is_training:
    passes = 3 if model.remat == "block" else 2
    flops *= 3 * _REMAT_FLOPS[model.remat]
    work.collectives["reduce-scatter", (_FSDP,)] += weights * (fsdp > 1)
    work.collectives["all-reduce", (_DATA,)] += weights / fsdp * (data > 1)
  work.collectives["all-gather", (_FSDP,)] += (
      weights * min(passes, 2) * (fsdp > 1))
  work.collectives["all-reduce", (_TENSOR,)] += (
      2 * passes * model.num_layers * stream * (tensor > 1))
  work.flops = flops
  scores = 4.0 * tokens * one.length * model.num_heads / tensor
  work.hbm_bytes = passes * (
      2 * weights + model.num_layers * (20 * stream + 4 * scores)
      + 8.0 * one.rows * one.logits * model.padded_vocab_size / tensor)
  return work


def _activations(one: _Pass, shape: tuple[int, ...]) -> float:
  """Bytes that live at once while a microbatch is read."""
  model, tensor = one.model, shape[_TENSOR]
  item = jax.numpy.dtype(model.dtype).itemsize
  stream = float(item * one.rows * one.length * model.d_model)
  kept = _KEPT[model.remat] * model.num_layers * stream * one.is_training
  # gathered, and the next
  layer = 2.0 * item * model.num_block_weights / tensor
  scores = 3 * 4.0 * one.rows * one.length**2 * model.num_heads / tensor
  logits = 2 * 4.0 * one.rows * one.logits * model.padded_vocab_size / tensor
  return kept + layer + max(scores + 8 * stream, logits)


def _gradients(program: Program) -> float:
  """Two float32 copies: what is added up, and what is added."""
  return 2.0 * programs.device_bytes(program.kinds["parameters"])


def _optimizer(program: Program) -> Work:
  """Reads and writes parameters and moments, reads gradients."""
  held = programs.device_bytes(program.kinds["parameters"])
  return Work(hbm_bytes=float(held * (2 * 3 + 1)))


def _generate(config, stage, mesh, program, segments) -> float:
  """Adds the work of prefill and decode; returns the bytes inside."""
  data = config.data
  model = transformer_config(config.model, 0.0)
  prompt, response = data.max_prompt_tokens, data.max_response_tokens
  parts = config[stage].num_rollout_parts
  rules = config.decode.axis_rules
  shards = sharding.batch_shards(mesh.shape, rules)
  cuts = math.prod(
      mesh.shape[a] for a in sharding.mesh_axes([dict(rules).get("heads")]))
  rows = program.args[2].shape[0] / shards / parts
  weights = programs.device_bytes(program.kinds["parameters"])
  item = jax.numpy.dtype(config.decode.dtype).itemsize
  cache = 2.0 * item * rows * (prompt + response) * (
      model.num_layers * model.d_model / cuts)
  axes = tuple(
      number for number, name in enumerate(sharding.MESH_AXES)
      if name in sharding.mesh_axes([dict(rules).get("heads")])
      and mesh.shape[name] > 1)
  sums = lambda tokens: {("all-reduce", axes): (
      2.0 * item * model.num_layers * tokens * model.d_model)} if axes else {}
  devices = math.prod(mesh.shape.values())
  prefill, decode = program.phases
  segments[prefill.name].append(Segment(prefill.scope, parts, Work(
      flops=prefill.model_flops / devices / parts,
      hbm_bytes=weights + cache, collectives=sums(rows * prompt))))
  segments[decode.name].append(Segment(decode.scope, parts * response, Work(
      flops=decode.model_flops / devices / parts / response,
      hbm_bytes=weights + cache, collectives=sums(rows))))
  scores = 3 * 4.0 * rows * model.num_heads / cuts * prompt * (
      prompt + response)
  return cache + scores


def _decode_copy(config, program, mesh, segments) -> float:
  """Adds the work of moving weights to the layout of decoding; returns the
  bytes of the copy."""
  rules = dict(config.decode.axis_rules)
  cuts = math.prod(
      mesh.shape[a] for a in sharding.mesh_axes([rules.get("heads")]))
  item = jax.numpy.dtype(config.decode.dtype).itemsize
  copy = item * _matrix_params(transformer_config(config.model, 0.0)) / cuts
  held = programs.device_bytes(program.kinds["parameters"])
  segments[program.name].append(Segment("", 1.0, Work(
      hbm_bytes=held + copy, collectives={("all-gather", (_FSDP,)): copy})))
  return copy


def _matrix_params(model: TransformerConfig) -> int:
  return model.num_layers * model.num_block_weights + (
      model.padded_vocab_size * model.d_embedding)
