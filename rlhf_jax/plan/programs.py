"""The jitted functions of a run, with abstract arguments in their shards.

Each is built by the factory that the stage itself calls; nothing is computed
or stored.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from rlhf_jax import (
    optimizer, ppo_step, rollout, sampler, sharding, train_state,
)
from rlhf_jax.collect import rows_per_batch
from rlhf_jax.config.names import active, kind_of, lm_streams
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.models.transformer import TransformerConfig
from rlhf_jax.rollout import Rollout
from rlhf_jax.run import init_params, transformer_config
from rlhf_jax.trainers import lm, ppo, rm

# Steps of a schedule change no program.
_ANY_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
  """A part of a program whose time is stated apart.

  Attributes:
    name: as "ppo/update".
    scope: its `jax.named_scope`, "" for what is under none.
    model_flops: of one run, on all devices: matrix products that the method
      asks for, nothing computed twice, attention to earlier tokens only.
    tokens: that one run reads or writes.
  """

  name: str
  scope: str
  model_flops: float
  tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One jitted function.

  Attributes:
    name: of its stage, or "ppo/decode_copy", "ppo/generate" and "ppo/step".
    function: to be lowered with `args`.
    args: abstract, in their shards.
    kinds: the arguments' trees by kind of content.
    resident: what else lies on the devices while it runs, by kind.
    phases: its parts.
    runs: how often the stage runs it, 0 where the data decides.
  """

  name: str
  function: Any
  args: tuple[Any, ...]
  kinds: dict[str, Any]
  resident: dict[str, Any]
  phases: tuple[Phase, ...]
  runs: int


def programs_of(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> Iterator[Program]:
  """The training and sampling programs of the stages that run here.

  Later rounds of a stage are alike and left out, and so is measuring
  (validation losses, scores, samples of `evaluate`), which takes smaller
  batches of the same models.
  """
  make = _Maker(config, mesh)
  builders = {"lm": make.lm, "collect": make.collect, "rm": make.rm,
              "ppo": make.ppo}
  for stage in active(config.to_dict()):
    is_round = stage.partition("@")[2].isdigit()
    if kind_of(stage) in builders and not is_round:
      yield from builders[kind_of(stage)](stage)


class _Maker:
  """What the programs of one run share."""

  def __init__(self, config, mesh):
    self._config = config
    self._mesh = mesh
    self._rules = config.axis_rules
    self._rows = sharding.batch_sharding(mesh, config.axis_rules)

  def lm(self, stage: str) -> Iterator[Program]:
    settings = self._config[stage]
    weights = lm.stream_weights(settings)
    model = self._policy(settings.dropout_rate)
    tx = optimizer.cosine_adam(_ANY_STEPS, **settings.optimizer)
    state = self._train_state(model, tx)
    batch, flops, tokens = {}, 0.0, 0
    for stream, key in lm_streams(settings.to_dict()).items():
      rows, length = self._filled(settings[key]), self._row_length(stream)
      batch[stream] = {
          "tokens": self._array((rows, length), jnp.int32),
          "mask": self._array((rows, length), self._mask_dtype(stream)),
          "loss_mask": self._array((rows, length), jnp.bool_)}
      flops += 3 * settings[key] * forward_flops(
          model.config, length, num_logits=length - 1)
      tokens += settings[key] * length
    step = sharding.jit_step(
        lm.make_lm_step(model, tx, weights=weights,
                        num_microbatches=settings.num_microbatches), state)
    yield Program(
        name=stage, function=step, args=(state, batch, self._key()),
        kinds={"parameters": state.params, "optimizer": state.opt_state,
               "batch": batch},
        resident={}, runs=settings.num_steps,
        phases=(Phase(name=stage, scope="", model_flops=flops,
                      tokens=tokens),))

  def rm(self, stage: str) -> Iterator[Program]:
    settings, length = self._config[stage], self._config.rm_model.context_length
    model = self._scalar()
    tx = optimizer.cosine_adam(_ANY_STEPS, **settings.optimizer)
    state = self._train_state(model, tx)
    responses = 2 if settings.batching == "pairs" else settings.max_responses
    blocks = self._filled(settings.batch_size)
    rows = (blocks, settings.block_rows, length)
    ranked = (blocks, settings.block_prompts, responses)
    batch = {
        "tokens": self._array(rows, jnp.int32),
        "mask": self._array(rows, jnp.int32),
        "last_token": self._array(ranked, jnp.int32),
        "ranks": self._array(ranked, jnp.int32),
        "response_mask": self._array(ranked, jnp.bool_)}
    step = sharding.jit_step(
        rm.make_rm_step(model, tx, denominator=settings.denominator,
                        num_microbatches=settings.num_microbatches,
                        num_row_parts=settings.num_row_parts), state)
    num_rows = settings.batch_size * settings.block_rows
    yield Program(
        name=stage, function=step, args=(state, batch),
        kinds={"parameters": state.params, "optimizer": state.opt_state,
               "batch": batch},
        resident={}, runs=0,
        phases=(Phase(
            name=stage, scope="", tokens=num_rows * length,
            model_flops=3 * num_rows * forward_flops(model.config, length)),))

  def ppo(self, stage: str) -> Iterator[Program]:
    settings, (prompt, response) = self._config[stage], self._lengths()
    method = ppo_step.PPOSettings(**settings.method, eos_id=self._eos_id())
    policy, critic = self._policy(0.0), self._scalar()
    tx, critic_tx = ppo.make_optimizers(settings, method)
    policy_params, critic_params = self._params(policy), self._params(critic)
    state = self._abstract(
        functools.partial(ppo_step.init_state, tx=tx, critic_tx=critic_tx,
                          kl_coef=method.kl_coef),
        policy_params, critic_params)
    frozen = ppo_step.Frozen(
        reference=policy_params, reward_model=critic_params)
    state_kinds = {
        "parameters": (state.params, state.critic),
        "optimizer": (state.opt_state, state.critic_opt_state),
        "ema": state.ema, "frozen": frozen}
    rows, ptx_rows = settings.batch_size, settings.ptx_batch_size
    ids = lambda length: self._array((rows, length), jnp.int32)
    mask = lambda length: self._array((rows, length), jnp.bool_)
    generate = self._sampler(
        policy, method.temperature, settings.num_rollout_parts)
    yield Program(
        name=f"{stage}/decode_copy", function=generate.to_decode_layout,
        args=(policy_params,), kinds={"parameters": policy_params},
        resident=state_kinds | {"parameters": state.critic},
        runs=settings.num_iters,
        phases=(Phase(name=f"{stage}/decode_copy", scope="", model_flops=0.0,
                      tokens=0),))
    yield self._generate(stage, generate, policy, rows, state_kinds,
                         settings.num_iters)
    sampled = Rollout(
        ids(prompt), mask(prompt), ids(response), mask(response),
        self._array((rows, response), jnp.float32))
    windows = self._config.model.context_length
    has_ptx = method.ptx_coef > 0
    ptx = self._array((ptx_rows, windows), jnp.int32) if has_ptx else None
    step = sharding.jit_step(
        ppo_step.make_ppo_step(policy, critic, tx, critic_tx, method), state)
    yield Program(
        name=f"{stage}/step", function=step,
        args=(state, frozen, sampled, ptx, self._key()),
        kinds={**state_kinds, "batch": (sampled, ptx)},
        resident={}, runs=settings.num_iters,
        phases=step_phases(
            stage, policy.config, critic.config, method.num_epochs, rows,
            prompt, response, ptx_rows if has_ptx else 0))

  def collect(self, stage: str) -> Iterator[Program]:
    settings, policy = self._config[stage], self._policy(0.0)
    generate = self._sampler(
        policy, settings.temperature, settings.num_rollout_parts)
    policies = [self._params(policy) for _ in settings.policies]
    rows = rows_per_batch(self, settings)  # type: ignore[arg-type]  # as a Run
    yield self._generate(
        stage, generate, policy, rows, {"parameters": policies}, 0)

  def batch_size_for(self, num_rows: float) -> int:
    return sharding.batch_size_for(
        num_rows, self._mesh.shape, self._rules,
        self._config.decode.axis_rules)

  def _sampler(self, policy, temperature: float, num_parts: int):
    return sampler.make_sharded_generate(
        policy, mesh=self._mesh, axis_rules=self._rules,
        decode_dtype=self._config.decode.dtype,
        decode_axis_rules=self._config.decode.axis_rules,
        response_length=self._lengths()[1], temperature=temperature,
        eos_id=self._eos_id(), num_parts=num_parts,
        # parts one after the other: how many steps refilled slots take depends
        # on the responses
        refills=False)

  def _generate(
      self, stage, generate, policy, rows: int, resident, runs: int
  ) -> Program:
    prompt, response = self._lengths()
    copy = self._decode_copy(policy)
    prompts = (self._array((rows, prompt), jnp.int32),
               self._array((rows, prompt), jnp.bool_),
               self._array((rows,), jnp.int32))
    return Program(
        name=f"{stage}/generate", function=generate.sample,
        args=(copy, self._key(), *prompts),
        kinds={"parameters": copy, "batch": prompts},
        resident=resident, runs=runs,
        phases=generate_phases(stage, policy.config, rows, prompt, response))

  def _policy(self, dropout_rate: float) -> Policy:
    return Policy(transformer_config(self._config.model, dropout_rate))

  def _scalar(self) -> Scalar:
    return Scalar(transformer_config(self._config.rm_model, 0.0))

  def _lengths(self) -> tuple[int, int]:
    data = self._config.data
    return data.max_prompt_tokens, data.max_response_tokens

  def _eos_id(self) -> int:
    return self._config.model.vocab_size - 1

  def _row_length(self, stream: str) -> int:
    if stream == "pretrain" or self._config.data.pack_demonstrations:
      return self._config.model.context_length
    return sum(self._lengths())

  def _mask_dtype(self, stream: str):
    return jnp.bool_ if stream == "pretrain" else jnp.int32

  def _filled(self, rows: int) -> int:
    return sharding.filled_size(rows, self._mesh.shape, self._rules)

  def _array(self, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=self._rows)

  def _key(self):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(
        key.shape, key.dtype, sharding=sharding.replicated(self._mesh))

  def _abstract(self, init, *args):
    return sharding.abstract_of(init, self._mesh, self._rules, *args)

  def _params(self, model):
    return self._abstract(lambda: init_params(model, jax.random.key(0)))

  def _train_state(self, model, tx):
    return self._abstract(lambda: train_state.create(
        init_params(model, jax.random.key(0)), tx))

  def _decode_copy(self, policy):
    decode = self._config.decode
    unstacked = lambda params: rollout.unstacked(
        jax.tree.map(lambda x: x.astype(decode.dtype), params),
        policy.config.num_layers)
    return sharding.abstract_of(
        unstacked, self._mesh, decode.axis_rules, self._params(policy))


# ------------------------------------------------------------ model FLOPs


def forward_flops(
    model: TransformerConfig, length: int, *, num_logits: int = 0
) -> float:
  """FLOPs of one sequence's forward pass, each token seeing those before."""
  weights = 2.0 * model.num_block_weights * length
  attention = 2.0 * length * length * model.d_model  # half of 2 x 2 L^2 d
  return model.num_layers * (weights + attention) + (
      2.0 * model.d_embedding * model.vocab_size * num_logits)


def generate_phases(
    stage: str, model: TransformerConfig, rows: int, prompt: int,
    response: int
) -> tuple[Phase, ...]:
  whole = forward_flops(model, prompt + response - 1, num_logits=response)
  prefill = forward_flops(model, prompt, num_logits=1)
  return (
      Phase(name=f"{stage}/prefill", scope="prefill",
            model_flops=rows * prefill, tokens=rows * prompt),
      Phase(name=f"{stage}/decode", scope="decode",
            model_flops=rows * (whole - prefill), tokens=rows * response))


def step_phases(
    stage: str, policy: TransformerConfig, critic: TransformerConfig,
    num_epochs: int, rows: int, prompt: int, response: int, ptx_rows: int
) -> tuple[Phase, ...]:
  length = prompt + response
  policy_forward = forward_flops(policy, length, num_logits=response)
  critic_forward = forward_flops(critic, length)
  window = policy.context_length
  ptx_forward = forward_flops(policy, window, num_logits=window - 1)
  return (
      Phase(name=f"{stage}/score", scope="score", tokens=rows * length,
            model_flops=2 * rows * (policy_forward + critic_forward)),
      Phase(name=f"{stage}/update", scope="update",
            tokens=num_epochs * rows * length + ptx_rows * window,
            model_flops=3 * (
                num_epochs * rows * (policy_forward + critic_forward)
                + ptx_rows * ptx_forward)))


def device_bytes(tree: Any) -> int:
  """Bytes that one device holds of abstract arrays in their shards."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for n in shape:
      size *= n
    total += size
  return total
