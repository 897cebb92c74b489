"""Settings that may make a run fit, and the search among them."""

from collections.abc import Callable, Iterator
import copy
import dataclasses
import itertools
import math
from typing import Any

import ml_collections

from rlhf_jax import config as config_lib
from rlhf_jax import sharding
from rlhf_jax.config.names import kind_of
from rlhf_jax.plan.chips import Topology
from rlhf_jax.plan.planning import Plan

Overrides = dict[str, Any]
# Compilations that one program is given before the next.
_MOST_TRIES = 8


def proposals(
    config: ml_collections.ConfigDict, program: str, mesh: dict[str, int]
) -> Iterator[Overrides]:
  """Overrides of the config that take less memory in `program`, the cheapest
  first: more parts, all activations computed again, a larger cut."""
  stage = program.partition("/")[0]
  settings = config[stage]
  shards = sharding.batch_shards(mesh, config.axis_rules)
  model = "rm_model" if kind_of(stage) == "rm" else "model"
  is_training = not program.endswith(("/generate", "/decode_copy"))
  if is_training and config[model].remat != "block":
    yield {f"{model}.remat": "block"}
  if program.endswith("/generate"):
    decode = sharding.batch_shards(mesh, config.decode.axis_rules)
    rows = settings.batch_size if kind_of(stage) == "ppo" else (
        settings.prompts_per_batch * settings.max_responses)
    yield from _more(f"{stage}.num_rollout_parts", settings.num_rollout_parts,
                     rows // decode)
  elif program.endswith("/step"):
    yield from _more_of_ppo(stage, settings, shards)
  elif kind_of(stage) in ("lm", "rm"):
    key = "pretrain_batch_size" if not settings.batch_size else "batch_size"
    yield from _more(f"{stage}.num_microbatches", settings.num_microbatches,
                     max(settings[key] // shards, 1))
    if kind_of(stage) == "rm":
      yield from _more(f"{stage}.num_row_parts", settings.num_row_parts,
                       settings.block_rows)
  yield from _other_meshes(mesh)


def _more_of_ppo(stage: str, settings, shards: int) -> Iterator[Overrides]:
  """Parts of the minibatch and of its pretraining rows, together."""
  method = settings.method
  updates = method.num_epochs * method.num_minibatches
  rows = settings.batch_size // method.num_minibatches // shards
  ptx_rows = settings.ptx_batch_size // updates // shards
  parts = [n for n in _divisors(rows) if n > method.num_microbatches]
  ptx_parts = [
      n for n in _divisors(ptx_rows) if n > method.num_ptx_microbatches]
  for number in range(max(len(parts), len(ptx_parts))):
    found = {}
    if parts:
      found[f"{stage}.method.num_microbatches"] = parts[
          min(number, len(parts) - 1)]
    if ptx_parts:
      found[f"{stage}.method.num_ptx_microbatches"] = ptx_parts[
          min(number, len(ptx_parts) - 1)]
    yield found


def _more(key: str, now: int, most: int) -> Iterator[Overrides]:
  yield from ({key: n} for n in _divisors(most) if n > now)


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def _other_meshes(mesh: dict[str, int]) -> Iterator[Overrides]:
  """Parameters cut into more parts."""
  total = math.prod(mesh.values())
  fsdp, tensor = mesh["fsdp"], mesh["tensor"]
  for new_fsdp, new_tensor in (
      (fsdp * 2, tensor), (fsdp * 4, tensor), (fsdp, tensor * 2),
      (fsdp * 2, tensor * 2)):
    if total % (new_fsdp * new_tensor) == 0:
      yield {"mesh.data": total // (new_fsdp * new_tensor),
             "mesh.fsdp": new_fsdp, "mesh.tensor": new_tensor}


def with_overrides(
    config: ml_collections.ConfigDict, overrides: Overrides
) -> ml_collections.ConfigDict:
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(overrides)
  return config


def as_flags(overrides: Overrides) -> str:
  return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def advice(plan: Plan) -> str:
  """The settings to try first in each program that does not fit."""
  lines = []
  for name in misfits(plan):
    valid = list(_valid(plan.config, plan.topology, proposals(
        plan.config, name, plan.mesh_shape)))
    first = " or ".join(as_flags(found) for found in valid[:2])
    lines.append(
        f"  {name}: " + (f"try {first}" if first else
                         "no setting is left to try; more devices, or a "
                         "smaller model"))
  return "\n".join(lines)


def search(
    plan: Plan, make_plan: Callable[..., Plan], say: Callable[[str], None],
    only: str = "",
) -> tuple[Plan, Overrides]:
  """Tries the proposals of each program that does not fit.

  Args:
    plan: of all programs.
    make_plan: (config, topology, only=program) -> Plan.
    say: prints a line.
    only: as the plan was made with.

  Returns:
    (the plan with what helped, the overrides); it may still not fit.
  """
  found: Overrides = {}
  topology, tried = plan.topology, set()
  while waiting := [name for name in misfits(plan) if name not in tried]:
    name = waiting[0]
    tried.add(name)
    for proposal in itertools.islice(_valid(
        plan.config, topology, proposals(plan.config, name, plan.mesh_shape)),
        _MOST_TRIES):
      config = with_overrides(plan.config, proposal)
      attempt = make_plan(config, topology, only=name)
      say(f"{name} with {as_flags(proposal)}: "
          + ("fits" if attempt.fits else "does not fit"))
      if attempt.fits:
        found |= proposal
        stage = name.partition("/")[0]
        is_own = all(key.startswith(f"{stage}.") for key in proposal)
        plan = replaced(plan, attempt) if is_own else (
            make_plan(config, topology, only=only))
        break
  return plan, found


def replaced(plan: Plan, newer: Plan) -> Plan:
  """The plan with the phases of the newer one's programs, and its config."""
  phases = {p.phase.name: p for p in newer.phases}
  return dataclasses.replace(
      plan, config=newer.config,
      phases=tuple(phases.get(p.phase.name, p) for p in plan.phases),
      compile_seconds=plan.compile_seconds | newer.compile_seconds)


def _valid(config, topology: Topology, found: Iterator[Overrides]):
  """Those that suit the devices."""
  for proposal in found:
    try:
      config_lib.validate(
          with_overrides(config, proposal), topology.num_devices,
          slice_count=topology.num_slices, check_inputs=False)
    except config_lib.ConfigError:
      continue
    yield proposal


def misfits(plan: Plan) -> list[str]:
  """Names of the programs that do not fit."""
  return list(dict.fromkeys(
      p.program for p in plan.phases if not plan.fits_in(p)))
