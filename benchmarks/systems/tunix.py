"""tunix's sampler, SFT trainer and PPO learner.

tunix has no GPT-2: the one here is written as its own models are, with their
cache, masks and signatures. Everything around the model is tunix's.
"""

import functools
import itertools
import sys
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import numpy as safetensors_numpy
from tunix.rl import algo_core
from tunix.rl import common
from tunix.rl import rl_cluster as rl_cluster_lib
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from tunix.rl.rollout import vanilla_rollout
from tunix.sft import peft_trainer
from tunix.sft import utils as sft_utils

from benchmarks import timing
from benchmarks import work
from benchmarks.systems import products

NAME = "tunix"
PACKAGES = ("google-tunix", "jax", "jaxlib", "flax", "optax")
make_gemm = products.in_jax
SKIPPED = {"rm_step": "tunix 0.1.7 has no reward-model trainer"}
_MANY = 10**9
_MASKED = -1e10


# ------------------------------------------------------------------- model


class Linear(nnx.Module):
  """x @ kernel + bias."""

  def __init__(self, kernel, bias):
    self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

  def __call__(self, x):
    return x @ self.kernel[...] + self.bias[...]


class Norm(nnx.Module):
  """LayerNorm."""

  def __init__(self, scale, bias):
    self.scale, self.bias = nnx.Param(scale), nnx.Param(bias)

  def __call__(self, x):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return ((x - mean) * jax.lax.rsqrt(variance + 1e-5) * self.scale[...]
            + self.bias[...])


class Block(nnx.Module):
  """A GPT-2 block; its cache is tunix's, [B, S, H, K]."""

  def __init__(self, tensors, heads: int):
    part = lambda kind, name: kind(
        tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    self.heads = heads
    self.ln_1, self.ln_2 = part(Norm, "ln_1"), part(Norm, "ln_2")
    self.qkv = part(Linear, "attn.c_attn")
    self.out = part(Linear, "attn.c_proj")
    self.up = part(Linear, "mlp.c_fc")
    self.down = part(Linear, "mlp.c_proj")

  def __call__(self, x, cache, attention_mask):
    attended, cache = self._attend(self.ln_1(x), cache, attention_mask)
    x = x + attended
    hidden = jax.nn.gelu(self.up(self.ln_2(x)), approximate=True)
    return x + self.down(hidden), cache

  def _attend(self, x, cache, attention_mask):
    batch, length, width = x.shape
    split = lambda y: y.reshape(batch, length, self.heads, -1)
    q, k, v = map(split, jnp.split(self.qkv(x), 3, axis=-1))
    if cache is not None:
      end = cache["end_index"][0]
      put = lambda old, new: jax.lax.dynamic_update_slice(
          old, new, (0, end % old.shape[1], 0, 0))
      k, v = put(cache["k"], k), put(cache["v"], v)
      cache = {"k": k, "v": v, "end_index": cache["end_index"] + length}
    scores = jnp.einsum("BTHK,BSHK->BHTS", q * q.shape[-1]**-0.5, k)
    scores = jnp.where(attention_mask[:, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    out = jnp.einsum("BHTS,BSHK->BTHK", weights, v)
    return self.out(out.reshape(batch, length, width)), cache


class GPT2(nnx.Module):
  """A policy, or with a head a scalar model."""

  def __init__(self, tensors, size: work.Size):
    self.config = types.SimpleNamespace(
        num_layers=size.layers, num_kv_heads=size.heads,
        head_dim=size.width // size.heads, dtype=jnp.float32)
    body = {name.removeprefix("transformer."): x
            for name, x in tensors.items()}
    self.tokens = nnx.Param(body["wte.weight"])
    self.positions = nnx.Param(body["wpe.weight"])
    self.blocks = nnx.List([
        Block(_below(body, f"h.{i}."), size.heads)
        for i in range(size.layers)])
    self.norm = Norm(body["ln_f.weight"], body["ln_f.bias"])
    self.head = nnx.Param(body["score.weight"].T) if (
        "score.weight" in body) else None

  def __call__(self, tokens, positions, cache, attention_mask,
               decode_only_last_token=False, segment_ids=None):
    """(logits [B, T, V] or scores [B, T, 1], cache).

    The mask says all that segment ids would.
    """
    del segment_ids
    x = self.tokens[...][tokens] + self.positions[...][positions]
    new_cache = None if cache is None else {}
    for number, block in enumerate(self.blocks):
      name = f"layer_{number}"
      x, layer_cache = block(
          x, None if cache is None else cache[name], attention_mask)
      if cache is not None:
        new_cache[name] = layer_cache
    if decode_only_last_token:
      x = x[:, -1:]
    x = self.norm(x)
    if self.head is not None:
      return x @ self.head[...], new_cache
    return x @ self.tokens[...].T, new_cache

  def init_cache(self, batch_size, cache_size, dtype):
    c = self.config
    zeros = lambda: jnp.zeros(
        (batch_size, cache_size, c.num_kv_heads, c.head_dim), dtype)
    return {f"layer_{i}": {"k": zeros(), "v": zeros(),
                           "end_index": jnp.zeros((batch_size,), jnp.int32)}
            for i in range(c.num_layers)}


def _below(tensors, prefix: str):
  return {name.removeprefix(prefix): x for name, x in tensors.items()
          if name.startswith(prefix)}


@functools.cache
def _mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))


def around():
  """Its trainers shard what they are given over the current mesh."""
  return _mesh()


def load(job: timing.Job, name: str) -> GPT2:
  tensors = safetensors_numpy.load_file(
      job.weights / name / "model.safetensors")
  place = jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec())
  return GPT2(jax.device_put(tensors, place), job.size)


class Tokenizer:
  """Ids as words; one past the vocabulary ends and pads."""

  def __init__(self, size: work.Size):
    self._no_id = size.no_id

  def encode(self, text: str) -> list[int]:
    return list(map(int, text.split()))

  def decode(self, ids) -> str:
    return " ".join(map(str, ids))

  def bos_id(self):
    return None

  def eos_id(self) -> int:
    return self._no_id

  def pad_id(self) -> int:
    return self._no_id


def _prompts(job) -> list[str]:
  return [" ".join(map(str, row)) for row in job.inputs["prompts"].tolist()]


def _parts(job):
  """(prompt ids, response ids)."""
  tokens = jnp.asarray(job.inputs["tokens"])
  return tokens[:, :job.size.prompt], tokens[:, job.size.prompt:]


def _adam():
  return optax.adamw(work.LEARNING_RATE, *work.BETAS, eps=work.EPS,
                     weight_decay=0.0)


# ----------------------------------------------------------------- rollout


def _rollout_config(size: work.Size, **changes):
  return base_rollout.RolloutConfig(**dict(
      max_tokens_to_generate=size.response, max_prompt_length=size.prompt,
      temperature=1.0, top_p=1.0, top_k=None, kv_cache_size=size.length)
      | changes)


def _vanilla(job, model):
  c = model.config
  return vanilla_rollout.VanillaRollout(
      model, Tokenizer(job.size), base_rollout.CacheConfig(
          cache_size=job.size.length, num_layers=c.num_layers,
          num_kv_heads=c.num_kv_heads, head_dim=c.head_dim))


def rollout(job):
  engine, prompts = _vanilla(job, load(job, "policy")), _prompts(job)
  numbers = itertools.count()

  def call():
    config = _rollout_config(
        job.size, seed=jax.random.PRNGKey(next(numbers)))
    found = engine.generate(prompts, config)
    timing.check_rollout(np.stack(found.tokens), job.size)

  return call


# ----------------------------------------------------------------- scoring


def _logprobs(job, model):
  """A function of nothing: float32 [B, R], as the learner computes them."""
  graph, state = nnx.split(model)
  prompt, response = _parts(job)
  return lambda: common.compute_per_token_logps(
      graph, state, prompt, response, pad_id=job.size.no_id,
      eos_id=job.size.no_id)


def _scores(job, model):
  """A function of nothing: float32 [B, T], as the learner computes them."""
  prompt, response = _parts(job)
  return lambda: common.compute_score(
      model, prompt, response, job.size.no_id, job.size.no_id)


def score(job):
  functions = [_logprobs(job, load(job, "policy")),
               _logprobs(job, load(job, "reference")),
               _scores(job, load(job, "reward"))]

  def call():
    jax.block_until_ready([function() for function in functions])

  return call


def value_fwd(job):
  function = _scores(job, load(job, "value"))

  def call():
    function().block_until_ready()

  return call


# --------------------------------------------------------------------- PPO


def _ppo_config():
  return ppo_learner.PPOConfig(
      gamma=work.DISCOUNT, gae_lambda=work.GAE_LAMBDA, beta=work.KL_COEF,
      epsilon=work.CLIP_EPS, clip_range_value=work.VALUE_CLIP_EPS,
      kl_method="kl")


def _learner(job):
  size = job.size
  roles = rl_cluster_lib.Role
  rows = size.batch // size.minibatches
  training = rl_cluster_lib.RLTrainingConfig(
      actor_optimizer=_adam(), critic_optimizer=_adam(),
      eval_every_n_steps=_MANY, max_steps=_MANY, mini_batch_size=rows,
      train_micro_batch_size=rows)
  cluster = rl_cluster_lib.RLCluster(
      actor=load(job, "policy"), critic=load(job, "value"),
      reference=load(job, "reference"), reward=load(job, "reward"),
      tokenizer=Tokenizer(size),
      cluster_config=rl_cluster_lib.ClusterConfig(
          role_to_mesh={role: _mesh() for role in roles},
          training_config=training, rollout_config=_rollout_config(size)))
  return ppo_learner.PPOLearner(cluster, _ppo_config())


def _experience(job):
  i = job.inputs
  prompt, response = _parts(job)
  ones = lambda x: jnp.ones(x.shape, bool)
  numbers = {name: jnp.asarray(i[name]) for name in (
      "advantages", "returns", "old_values")}
  return ppo_learner.TrainExample(
      prompt_ids=prompt, prompt_mask=ones(prompt).astype(jnp.int32),
      completion_ids=response, completion_mask=ones(response),
      ref_per_token_logps=None,
      old_per_token_logps=jnp.asarray(i["old_logprobs"]), **numbers)


def ppo_update(job):
  """By the cluster's own calls, actor first, as its learner makes them."""
  cluster, experience = _learner(job).rl_cluster, _experience(job)
  size, rng = job.size, np.random.default_rng(0)

  def call():
    for _ in range(size.epochs):
      parts = np.split(rng.permutation(size.batch), size.minibatches)
      examples = [jax.tree.map(lambda x, rows=rows: x[rows], experience)
                  for rows in parts]
      for example in examples:
        cluster.update_actor([example], None)
        cluster.update_critic([example], None)
    jax.block_until_ready([nnx.state(trainer.model) for trainer in (
        cluster.actor_trainer, cluster.critic_trainer)])

  return call


def _recorded(recorder, item):
  """The item again and again; from one demand to the next is an interval."""
  recorder.start()
  yield item
  while True:
    recorder.stop_or_end()
    recorder.start()
    yield item


def ppo_iteration(job):
  """Its learner samples the prompts of a minibatch after the update before:
  an iteration is M rollouts of B / M rows and M updates."""
  learner = _learner(job)
  batches = _recorded(job.recorder, {"prompts": _prompts(job)})
  return timing.times_itself(lambda: learner.train(batches))


# --------------------------------------------------------------------- SFT


def _sft_trainer(job):
  optimizer = optax.chain(
      optax.clip_by_global_norm(work.CLIP_NORM), _adam())
  trainer = peft_trainer.PeftTrainer(
      load(job, "policy"), optimizer,
      peft_trainer.TrainingConfig(
          eval_every_n_steps=_MANY, max_steps=_MANY))

  def model_input(x):
    real = x.input_tokens != job.size.no_id
    return {
        "input_tokens": x.input_tokens, "input_mask": x.input_mask,
        "positions": sft_utils.build_positions_from_mask(real),
        "attention_mask": sft_utils.make_causal_attn_mask(real)}

  return trainer.with_gen_model_input_fn(model_input)


def _sft_batch(job):
  tokens = job.inputs["tokens"]
  return peft_trainer.TrainingInput(
      input_tokens=tokens, input_mask=np.ones_like(tokens, bool))


def sft_step(job):
  trainer = _sft_trainer(job)
  batches = _recorded(job.recorder, _sft_batch(job))
  return timing.times_itself(lambda: trainer.train(batches))


PHASES = {
    "rollout": rollout,
    "score": score,
    "value_fwd": value_fwd,
    "ppo_update": ppo_update,
    "ppo_iteration": ppo_iteration,
    "sft_step": sft_step,
}


# ----------------------------------------------------------------- outputs


def outputs(job: timing.Job) -> dict[str, np.ndarray]:
  """What must agree with the other systems' (benchmarks/README.md).

  Its advantages are left out: 0.1.7 rounds scores to whole numbers, in the
  integer array of its rewards.
  """
  size = job.size
  policy, value = load(job, "policy"), load(job, "value")
  engine, prompts = _vanilla(job, policy), _prompts(job)
  greedy = np.stack(engine.generate(prompts, _rollout_config(
      size, temperature=0.0, top_p=None)).tokens)
  sampled = np.stack(engine.generate(prompts, _rollout_config(size)).tokens)
  prompt, _ = _parts(job)
  found = dict(
      logprobs=_logprobs(job, policy)(),
      ref_logprobs=_logprobs(job, load(job, "reference"))(),
      values=_scores(job, value)()[:, -size.response - 1:-1],
      scores=_scores(job, load(job, "reward"))()[:, -1],
      greedy_ids=greedy[:, :work.GREEDY],
      sampled_logprobs=common.compute_per_token_logps(
          *nnx.split(policy), prompt, jnp.asarray(sampled),
          pad_id=size.no_id, eos_id=size.no_id))
  example, ids = _experience(job), dict(pad_id=size.no_id, eos_id=size.no_id)
  losses = {
      "policy": (policy, lambda model: algo_core.ppo_policy_loss_fn(
          model, example, _ppo_config(), **ids)),
      "value": (value, lambda model: algo_core.ppo_value_loss_fn(
          model, example, work.VALUE_CLIP_EPS, **ids)),
  }
  for name, (model, loss) in losses.items():
    (result, _), grads = nnx.value_and_grad(loss, has_aux=True)(model)
    found |= {f"{name}_loss": result,
              f"{name}_grad_norm": optax.tree.norm(grads)}
  trainer = _sft_trainer(job)
  step, _ = trainer.jit_train_and_eval_step()
  loss, _, norm = step(_sft_batch(job))
  found |= {"sft_loss": loss, "sft_grad_norm": norm}
  return {name: np.asarray(x) for name, x in found.items()}


if __name__ == "__main__":
  timing.main(sys.modules[__name__])
