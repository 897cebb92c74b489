"""This code, by the functions that its stages are made of.

One device, float32, no dropout, no remat, layers unrolled (as at `mini`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks import work
from benchmarks.systems import products
from experiments import common
from rlhf_jax import (
    host_memory, optimizer, ppo_step, run, sampler, scoring, sharding,
    train_state, tree,
)
from rlhf_jax.evals import diversity
from rlhf_jax.hf import importing
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.models.transformer import TransformerConfig
from rlhf_jax.rollout import Rollout
from rlhf_jax.trainers import lm, rm

NAME = "rlhf_jax"
PACKAGES = ("jax", "jaxlib", "flax", "optax")
make_gemm = products.in_jax
SKIPPED = {}
_RULES = common.AXIS_RULES
_PTX_COEF = 27.8


def config(size: work.Size) -> TransformerConfig:
  sizes = common.model(common.MINI).to_dict() | dict(
      num_layers=size.layers, d_model=size.width, num_heads=size.heads,
      context_length=size.context, vocab_size=size.vocab,
      scan_unroll=size.layers)
  return TransformerConfig(**sizes, dropout_rate=0.0)


@functools.cache
def _mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1,
                            devices=jax.devices()[:1])


def around():
  """The mesh and its rules are current while anything runs."""
  return sharding.use(_mesh(), _RULES)


def load(job: timing.Job, name: str):
  """One of the models, as `config.init` reads it."""
  mesh, c = _mesh(), config(job.size)
  is_policy = name in ("policy", "reference", "ending")
  model = Policy(c) if is_policy else Scalar(c)
  abstract = sharding.abstract_of(
      lambda: run.init_params(model, jax.random.key(0)), mesh, _RULES)
  spec = f"hf:{job.weights / name}"
  if is_policy:
    return importing.policy_params(spec, c, abstract)
  return importing.scalar_params(spec, c, abstract, None)


def _put(tree):
  return sharding.put_batch(tree, _mesh(), _RULES)


def _generate(size: work.Size, **changes):
  return sampler.make_sharded_generate(
      Policy(config(size)), mesh=_mesh(), axis_rules=_RULES,
      decode_axis_rules=_RULES, **dict(
          decode_dtype="float32", response_length=size.response,
          temperature=1.0, eos_id=size.no_id + 1, num_parts=1,
          refills=False) | changes)


def _prompt_rows(prompts):
  return _put({"prompt_tokens": prompts,
               "prompt_mask": np.ones(prompts.shape, bool),
               "row_ids": np.arange(len(prompts), dtype=np.int32)})


def _settings(size: work.Size, **changes) -> ppo_step.PPOSettings:
  return ppo_step.PPOSettings(**dict(
      temperature=1.0, kl_coef=work.KL_COEF, ptx_coef=0.0,
      discount=work.DISCOUNT, gae_lambda=work.GAE_LAMBDA,
      clip_eps=work.CLIP_EPS, value_clip_eps=work.VALUE_CLIP_EPS,
      missing_eos_penalty=0.0, whiten_advantages=True,
      num_epochs=size.epochs, num_minibatches=size.minibatches,
      num_microbatches=1, num_ptx_microbatches=1, ema_decay=0.992,
      kl_target=0.0, kl_horizon=1.0, eos_id=size.no_id + 1) | changes)


def _adam(clip_norm: float):
  return optimizer.make_adam(
      work.LEARNING_RATE, b1=work.BETAS[0], b2=work.BETAS[1], eps=work.EPS,
      weight_decay=0.0, clip_norm=clip_norm)


def _ppo_state(job):
  """(the state at the start, its optimizer)."""
  tx = _adam(float("inf"))
  start = functools.partial(
      ppo_step.init_state, tx=tx, critic_tx=tx, kl_coef=work.KL_COEF)
  state, _ = sharding.init_sharded(
      start, _mesh(), _RULES, load(job, "policy"), load(job, "value"))
  return state, tx


def _frozen(job):
  return ppo_step.Frozen(
      reference=load(job, "reference"), reward_model=load(job, "reward"))


def _rollout(job, logprobs) -> Rollout:
  tokens = job.inputs["tokens"]
  ones = np.ones_like(tokens, bool)
  cut = job.size.prompt
  return _put(Rollout(tokens[:, :cut], ones[:, :cut], tokens[:, cut:],
                      ones[:, cut:], logprobs))


def _experience(job):
  i = job.inputs
  mask = np.ones_like(i["tokens"], bool)
  return _put(ppo_step.Experience(
      tokens=i["tokens"], mask=mask, response_mask=mask[:, job.size.prompt:],
      logprobs=i["old_logprobs"], values=i["old_values"],
      advantages=i["advantages"], returns=i["returns"]))


# ------------------------------------------------------------------ phases


def rollout(job):
  """Unstacking and casting the weights is inside the clock, as it is done
  once an iteration."""
  params, rows = load(job, "policy"), _prompt_rows(job.inputs["prompts"])
  generate, number = _generate(job.size), 0
  keys = jax.random.key(0)

  def call():
    nonlocal number
    number += 1
    sampled = generate(params, jax.random.fold_in(keys, number), rows)
    timing.check_rollout(np.asarray(sampled.response_tokens), job.size)

  return call


def _make_score(job):
  c = config(job.size)
  logprobs_of = ppo_step.make_response_logprobs(Policy(c), 1.0)
  scores_of = scoring.make_scores(Scalar(c))
  length = job.size.response

  def score(policy, reference, reward_model, tokens, mask):
    return (logprobs_of(policy, tokens, mask, length),
            logprobs_of(reference, tokens, mask, length),
            scores_of(reward_model, tokens, mask))

  return jax.jit(score)


def score(job):
  models = [load(job, name) for name in ("policy", "reference", "reward")]
  tokens = job.inputs["tokens"]
  rows = _put([tokens, np.ones_like(tokens, bool)])
  function = _make_score(job)

  def call():
    jax.block_until_ready(function(*models, *rows))

  return call


def _values_of(job):
  values_of = ppo_step.make_response_values(Scalar(config(job.size)))
  return jax.jit(lambda params, tokens, mask: values_of(
      params, tokens, mask, job.size.response))


def value_fwd(job):
  params, function = load(job, "value"), _values_of(job)
  tokens = job.inputs["tokens"]
  rows = _put([tokens, np.ones_like(tokens, bool)])

  def call():
    function(params, *rows).block_until_ready()

  return call


def _make_update(job, state, tx, **changes):
  c = config(job.size)
  update = ppo_step.make_update(
      Policy(c), Scalar(c), tx, tx, _settings(job.size, **changes))
  return sharding.jit_step(
      lambda state, experience, key: update(state, experience, None, key),
      state)


def ppo_update(job):
  state, tx = _ppo_state(job)
  update, experience = _make_update(job, state, tx), _experience(job)
  number = 0

  def call():
    nonlocal state, number
    number += 1
    state, values = update(state, experience, jax.random.key(number))
    jax.block_until_ready((state, values))

  return call


def ppo_iteration(job, ptx_rows: int = 0):
  """As in trainers/ppo.py, with the figures that its log has.

  Args:
    job: the job.
    ptx_rows: pretraining sequences of T tokens an episode.
  """
  size, c = job.size, config(job.size)
  state, tx = _ppo_state(job)
  frozen, generate = _frozen(job), _generate(size)
  settings = _settings(size, ptx_coef=_PTX_COEF if ptx_rows else 0.0)
  step = sharding.jit_step(
      ppo_step.make_ppo_step(Policy(c), Scalar(c), tx, tx, settings), state)
  ptx = None
  if ptx_rows:
    ptx = _put(np.random.default_rng(1).integers(
        0, size.vocab, (ptx_rows * size.batch, size.length), np.int32))
  rows = _prompt_rows(job.inputs["prompts"])
  key_sample, key_perm = jax.random.split(jax.random.key(0))
  number = 0

  def call():
    nonlocal state, number
    number += 1
    sampled = generate(
        state.params, jax.random.fold_in(key_sample, number), rows)
    jax.block_until_ready(sampled)
    state, values = step(
        state, frozen, sampled, ptx, jax.random.fold_in(key_perm, number))
    responses = np.asarray(sampled.response_tokens)
    timing.check_rollout(responses, size)
    values["train/ppo/distinct"] = diversity.distinct(responses)
    jax.device_get(values)
    jax.block_until_ready(state)

  return call


def _num_parts(batch: int) -> int:
  """Microbatches of 8 rows: their temporaries stay in the processor's cache."""
  return max(1, batch // 8)


def _train_state(job, name: str):
  """(the state at the start, its optimizer) of a model that clips."""
  tx = _adam(work.CLIP_NORM)
  state, _ = sharding.init_sharded(
      lambda p: train_state.create(p, tx), _mesh(), _RULES, load(job, name))
  return state, tx


def _sft(job):
  state, tx = _train_state(job, "policy")
  step = sharding.jit_step(lm.make_lm_step(
      Policy(config(job.size)), tx, weights={"demonstrations": 1.0},
      num_microbatches=_num_parts(job.size.batch)), state)
  ones = np.ones_like(job.inputs["tokens"], bool)
  batch = _put({"demonstrations": {
      "tokens": job.inputs["tokens"], "mask": ones, "loss_mask": ones}})
  key = jax.random.key(0)
  return state, lambda state: step(state, batch, key)


def _rm(job):
  """Every pair is a block of its own, each side a row."""
  state, tx = _train_state(job, "reward")
  step = sharding.jit_step(rm.make_rm_step(
      Scalar(config(job.size)), tx, denominator="kept",
      num_microbatches=_num_parts(job.size.batch)), state)
  length, pairs = job.size.length, job.size.batch // 2
  tokens = job.inputs["tokens"].reshape(pairs, 2, length)
  each = lambda *row: np.tile(np.array(row, np.int32), (pairs, 1, 1))
  batch = _put({
      "tokens": tokens, "mask": np.ones_like(tokens),
      "last_token": each(length - 1, 2 * length - 1), "ranks": each(1, 2),
      "response_mask": each(1, 1).astype(bool)})
  return state, lambda state: step(state, batch)


def _step_phase(make):
  def phase(job):
    state, step = make(job)

    def call():
      nonlocal state
      state, values = step(state)
      jax.device_get(values)
      jax.block_until_ready(state)

    return call
  return phase


def _refill(job, refills: bool):
  """Responses of geometric lengths: the policy of `weights.make_ending`."""
  size = job.size
  params = load(job, "ending")
  prompts = np.random.default_rng(2).integers(
      0, size.vocab - 1, (work.REFILL_PROMPTS, work.REFILL_PROMPT), np.int32)
  rows, key = _prompt_rows(prompts), jax.random.key(0)
  generate = _generate(
      size, response_length=work.REFILL_RESPONSE, eos_id=size.vocab - 1,
      num_parts=work.REFILL_PROMPTS // work.REFILL_SLOTS, refills=refills)

  def call():
    sampled = generate(params, key, rows)
    tokens, mask = jax.device_get(
        (sampled.response_tokens, sampled.response_mask))
    return {"lengths": mask.sum(1).tolist(),
            "response_sums": np.where(mask, tokens + 1, 0).dot(
                np.arange(1, mask.shape[1] + 1)).tolist()}

  return call


PHASES = {
    "rollout": rollout,
    "score": score,
    "value_fwd": value_fwd,
    "ppo_update": ppo_update,
    "ppo_iteration": ppo_iteration,
    "sft_step": _step_phase(_sft),
    "rm_step": _step_phase(_rm),
    "ppo_ptx_iteration": functools.partial(ppo_iteration, ptx_rows=1),
    "ppo_ptx_8_iteration": functools.partial(ppo_iteration, ptx_rows=8),
    "refill": functools.partial(_refill, refills=True),
    "no_refill": functools.partial(_refill, refills=False),
}


# ----------------------------------------------------------------- outputs


def outputs(job: timing.Job) -> dict[str, np.ndarray]:
  """What must agree with the other systems' (benchmarks/README.md)."""
  state, tx = _ppo_state(job)
  frozen = _frozen(job)
  tokens = job.inputs["tokens"]
  rows = _put([tokens, np.ones_like(tokens, bool)])
  found = dict(zip(
      ("logprobs", "ref_logprobs", "scores"),
      _make_score(job)(
          state.params, frozen.reference, frozen.reward_model, *rows)))
  found["values"] = _values_of(job)(state.critic, *rows)
  c, size = config(job.size), job.size
  experience, values = jax.jit(ppo_step.make_score(
      Policy(c), Scalar(c), _settings(size)))(
          state, frozen, _rollout(job, np.asarray(found["logprobs"])))
  found |= {"advantages": experience.advantages,
            "returns": experience.returns,
            "iteration_kl": values["train/ppo/kl"],
            "iteration_value_loss": 0.5 * jnp.square(
                experience.values - experience.returns).mean()}
  prompts = _prompt_rows(job.inputs["prompts"])
  greedy = _generate(size, temperature=0.0)(
      state.params, jax.random.key(0), prompts)
  found["greedy_ids"] = np.asarray(greedy.response_tokens)[:, :work.GREEDY]
  sampled = _generate(size)(state.params, jax.random.key(0), prompts)
  logprobs = _make_score(job)(
      state.params, frozen.reference, frozen.reward_model, sampled.tokens,
      sampled.mask)[0]
  found["sampled_logprobs"] = np.asarray(logprobs)
  # the others' heads have no bias: its gradient is left out
  critic_grads, _ = jax.jit(ppo_step.make_critic_gradients(
      Scalar(c), _settings(size)))(state.critic, _experience(job))
  critic_grads["head"]["bias"] = jnp.zeros(())
  _, values = _make_update(job, state, tx, num_minibatches=1)(
      state, _experience(job), jax.random.key(0))
  found |= {"policy_loss": values["train/ppo/policy_loss"],
            "policy_grad_norm": values["train/ppo/rl_grad_norm"],
            "value_loss": values["train/critic/loss"],
            "value_grad_norm": tree.global_norm(critic_grads)}
  for name, loss, make in (
      ("sft", "train/demonstrations/loss", _sft), ("rm", "train/rm/loss", _rm)):
    state, step = make(job)
    _, values = step(state)
    found |= {f"{name}_loss": values[loss],
              f"{name}_grad_norm": values["train/grad_norm"]}
  return {name: np.asarray(x) for name, x in found.items()}


if __name__ == "__main__":
  import sys  # pylint: disable=g-import-not-at-top
  host_memory.restart_with_large_pages()  # as the program does
  timing.main(sys.modules[__name__])
