"""A step holds its state once: the new one is written where the old one was."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.plan import programs
from tests import tiny_run

STEPS = {"pretrain": "lm_step", "rm": "rm_step", "ppo/step": "ppo_step"}


def zeros(abstract):
  """Arrays of any content: what a step computes of them does not matter."""
  def leaf(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
  return jax.tree.map(leaf, abstract)


@pytest.fixture(name="program", scope="module", params=STEPS)
def _program(request):
  """(a program of the tiny run, compiled for two devices), as a stage has
  it."""
  config = tiny_run.tiny_config(mesh__data=1, mesh__fsdp=2)
  # in two microbatches gradients are added up, beside the state
  config.pretrain.num_microbatches = config.rm.num_microbatches = 2
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
  program, = (p for p in programs.programs_of(config, mesh)
              if p.name == request.param)
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    with sharding.use(mesh, config.axis_rules):
      yield program, program.function.lower(*program.args).compile()
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


def aliases(text):
  """Output -> the parameter whose memory it takes, of a compiled module."""
  header = text[:text.index("\n")]
  pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}, \w+-alias\)", header)
  return {int(output): int(parameter) for output, parameter in pairs}


def test_every_array_of_the_state_takes_the_memory_of_the_old_one(program):
  program, compiled = program
  assert STEPS[program.name] in compiled.as_text().partition("\n")[0]
  found = aliases(compiled.as_text())
  num_leaves = len(jax.tree.leaves(program.args[0]))
  # the state comes first among the results, its metrics take memory of none
  assert set(found) == set(range(num_leaves))
  assert len(set(found.values())) == num_leaves


def test_what_is_shared_is_the_whole_state_and_nothing_else(program):
  program, compiled = program
  memory = compiled.memory_analysis()
  state = programs.device_bytes(program.args[0])
  assert memory.alias_size_in_bytes == state
  # beside it the results are scalars, and the table of where they are
  assert memory.output_size_in_bytes - state < 4096 < state


def test_the_old_arrays_are_gone_after_a_call(program):
  program, _ = program
  args = zeros(program.args)
  state = args[0]
  new, _ = program.function(*args)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, args[1:])))
  assert jax.tree.map(lambda x: x.sharding, new) == jax.tree.map(
      lambda x: x.sharding, program.args[0])
