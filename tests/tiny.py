"""Models so small that a law is checked in milliseconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from rlhf_jax import optimizer, ppo_step, run, sampler, sharding
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.models.transformer import TransformerConfig

VOCAB_SIZE = 37
PAD_ID = VOCAB_SIZE
EOS_ID = 12
AXIS_RULES = common.AXIS_RULES
# Sizes along data, fsdp and tensor.
MESHES = {
    "one_device": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "data_fsdp": (2, 4, 1),
    "fsdp_tensor": (1, 2, 4),
    "all_axes": (2, 2, 2),
}
_SPLIT = ("mlp", "heads", "vocab")
# Axis rules of two kinds, for training and for decoding: those of one small
# machine, and those of many large ones.
RULES = {
    "small": AXIS_RULES,
    "large": (("batch", ("data", "fsdp")), ("embed", ("data", "fsdp")),
              *((name, "tensor") for name in _SPLIT)),
}
DECODE_RULES = {
    "small": AXIS_RULES,
    "large": (("batch", "data"), ("embed", None),
              *((name, ("fsdp", "tensor")) for name in _SPLIT)),
}


# Code that XLA compiles in a sixth of the time and optimises less.
QUICK = {"xla_backend_optimization_level": 0,
         "xla_cpu_use_fusion_emitters": False}
# For laws that do not depend on how XLA fuses.
jit = functools.partial(jax.jit, compiler_options=QUICK)


def in_a_hurry(test):
  """Until the test ends all is compiled as `QUICK` asks, inner jits as well."""
  jax.config.update("jax_disable_most_optimizations", True)
  test.addCleanup(jax.config.update, "jax_disable_most_optimizations", False)


def config(**changes) -> TransformerConfig:
  """The mini experiments' model, made smaller still."""
  sizes = common.model(common.MINI).to_dict() | dict(
      vocab_size=VOCAB_SIZE, vocab_multiple=8, num_layers=2, d_model=16,
      num_heads=2, context_length=32, dtype="float32", remat="none",
      scan_unroll=1, attention_pattern="dense", band_width=4)
  return TransformerConfig(**dict(dropout_rate=0.0) | sizes | changes)


def policy(**changes) -> Policy:
  return Policy(config(**changes))


def scalar(**changes) -> Scalar:
  return Scalar(config(**changes))


@functools.cache
def params(model, seed=0):
  """Parameters far from their start, biases and scales too: there most models
  are near uniform, and a law would hold whatever the code does."""
  rng = np.random.default_rng(seed)

  def far(path, leaf):
    start = float(path[-1].key == "scale")
    return jnp.asarray(
        start + rng.normal(0, 0.3, leaf.shape).astype(np.float32))

  abstract = jax.eval_shape(
      lambda: run.init_params(model, jax.random.key(0)))
  return jax.tree_util.tree_map_with_path(far, abstract)


def adam(learning_rate=1e-2):
  """Adam whose steps are smooth in small gradients."""
  return optimizer.make_adam(
      learning_rate, b1=0.9, b2=0.95, eps=1e-2, weight_decay=0.01,
      clip_norm=1.0)


def tokens(*shape, seed=0):
  """Random ids of the true vocabulary."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, VOCAB_SIZE, shape).astype(np.int32)


def prompts(batch, length, seed=0):
  """Left-padded prompts of 1 to `length` tokens: (tokens, mask) [B, P]."""
  sizes = 1 + np.arange(batch) % length
  mask = np.arange(length) >= length - sizes[:, None]
  return np.where(mask, tokens(batch, length, seed=seed), PAD_ID), mask


def make_mesh(name):
  data, fsdp, tensor = MESHES[name]
  return sharding.make_mesh(
      data=data, fsdp=fsdp, tensor=tensor,
      devices=jax.devices()[:data * fsdp * tensor])


def use_mesh(name):
  """(mesh, a context that makes it current)."""
  mesh = make_mesh(name)
  return mesh, sharding.use(mesh, AXIS_RULES)


def shard(tree, mesh, axis_rules=AXIS_RULES):
  """(a tree of parameters or states in its shards, the shardings)."""
  shardings = sharding.shardings_for(tree, mesh, axis_rules)
  # by way of the host: a donated state must not take these arrays along
  return jax.device_put(jax.tree.map(np.array, tree), shardings), shardings


def make_generate(
    model, mesh, kind, response_length, num_parts=1, refills=False):
  """A sampler in float32 by the rules of a kind."""
  return sampler.make_sharded_generate(
      model, mesh=mesh, axis_rules=RULES[kind], decode_dtype="float32",
      decode_axis_rules=DECODE_RULES[kind], response_length=response_length,
      temperature=1.0, eos_id=EOS_ID, num_parts=num_parts, refills=refills)


def settings(**changes) -> ppo_step.PPOSettings:
  constants = dict(
      temperature=1.0, kl_coef=0.05, ptx_coef=0.0, discount=1.0,
      gae_lambda=0.95, clip_eps=0.2, value_clip_eps=0.5,
      missing_eos_penalty=0.25, whiten_advantages=True, num_epochs=1,
      num_minibatches=2, num_microbatches=1, num_ptx_microbatches=1,
      ema_decay=0.9, kl_target=0.0, kl_horizon=100.0, eos_id=EOS_ID)
  return ppo_step.PPOSettings(**constants | changes)
