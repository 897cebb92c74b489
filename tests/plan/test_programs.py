"""What a plan lowers is what a run calls."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.data import batches
from rlhf_jax.plan import programs
from rlhf_jax.run import init_params
from tests import tiny
from tests import tiny_run

STEP_OF = {"sft": "lm_step", "rl_init": "lm_step", "rm": "rm_step",
           "decode_copy": "to_decode_layout", "generate": "sample",
           "step": "ppo_step"}


class Recorder:
  """jax.jit whose steps keep what they are called with."""

  def __init__(self):
    self.calls = []
    self._jit = jax.jit

  def __call__(self, function, **options):
    jitted = self._jit(function, **options)
    name = getattr(function, "__name__", "")
    if name not in STEP_OF.values():
      return jitted

    def call(*args):
      self.calls.append((name, jax.tree.map(described, args)))
      return jitted(*args)

    return call


@dataclasses.dataclass(frozen=True)
class Described:
  """An array's shape, dtype and what each device has of it."""

  shape: tuple
  dtype: str
  shards: tuple
  replicas: int


def described(x):
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return Described(x.shape, str(x.dtype), (), 0)  # on the host until called
  shards = {d: str(i) for d, i in
            x.sharding.devices_indices_map(x.shape).items()}
  return Described(
      x.shape, str(x.dtype), x.sharding.shard_shape(x.shape),
      len(shards) // len(set(shards.values())))


def test_arguments_are_those_of_a_run(tmp_path, monkeypatch):
  stages = ("sft", "rm", "rl_init", "ppo")
  config = tiny_run.only(
      stages, pretrain__num_steps=1, sft__num_steps=1, rl_init__num_steps=1,
      rm__num_epochs=1, rm__max_prompts=8, ppo__num_iters=1)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  recorder = Recorder()
  monkeypatch.setattr(jax, "jit", recorder)
  tiny_run.run(config, tmp_path / "run")
  mesh = sharding.make_mesh(**config.mesh)
  planned = list(programs.programs_of(config, mesh))
  assert [p.name for p in planned] == [
      "sft", "rm", "rl_init", "ppo/decode_copy", "ppo/generate", "ppo/step"]
  for program in planned:
    name = STEP_OF[program.name.rpartition("/")[2]]
    args = jax.tree.map(described, program.args)
    differences = [
        different(args, found) for called, found in recorder.calls
        if called == name
        and jax.tree.structure(found) == jax.tree.structure(args)]
    assert differences, f"{program.name}: {args}"
    assert min(differences, key=len) == {}, program.name


def different(left, right):
  """Leaves that differ, by path."""
  pairs = zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right))
  return {jax.tree_util.keystr(path): (a, b) for (path, a), b in pairs if a != b}


def test_demonstrations_have_numbers_for_a_mask_packed_or_not():
  """As `batches.demonstration_examples` gives them: texts are numbered."""
  for is_packed in (True, False):
    config = tiny_run.tiny_config(data__pack_demonstrations=is_packed)
    sft = next(p for p in programs.programs_of(
        config, sharding.make_mesh(**config.mesh)) if p.name == "sft")
    row = {"prompt_tokens": np.arange(3), "response_tokens": np.arange(2)}
    example = batches.demonstration_examples(
        [row], None, length=64, pad_id=511, packed=is_packed)[0]
    for name, array in sft.args[1]["demonstrations"].items():
      assert array.dtype == example[name].dtype, (is_packed, name)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_device_bytes_are_those_of_real_arrays(shape):
  mesh = sharding.make_mesh(**dict(zip(sharding.MESH_AXES, shape)))
  state, shardings = sharding.init_sharded(
      lambda: init_params(tiny.policy(), jax.random.key(0)), mesh,
      tiny.AXIS_RULES)
  abstract = sharding.abstract_with(
      jax.eval_shape(lambda: state), shardings)
  held = sum(
      s.data.nbytes for x in jax.tree.leaves(state)
      for s in x.addressable_shards if s.device == jax.devices()[0])
  assert programs.device_bytes(abstract) == held


def test_forward_flops_of_a_model_by_its_parts():
  """Every weight of a matrix once a token, and half of the square of
  attention."""
  model = tiny.config()
  length, d, layers = 16, model.d_model, model.num_layers
  params = layers * (4 + 8) * d * d
  expected = 2 * params * length + layers * 2 * length**2 * d
  assert programs.forward_flops(model, length) == expected
  assert programs.forward_flops(model, length, num_logits=3) == (
      expected + 2 * d * model.vocab_size * 3)


def test_flops_of_decoding_add_up_to_those_of_the_whole():
  model = tiny.config()
  prefill, decode = programs.generate_phases("ppo", model, 4, 10, 6)
  whole = 4 * programs.forward_flops(model, 15, num_logits=6)
  assert prefill.model_flops + decode.model_flops == whole
