"""A plan: every program compiled, its memory, its work, its time."""

from collections.abc import Callable, Iterable
import dataclasses
import functools

import ml_collections
import numpy as np

from rlhf_jax import config as config_lib
from rlhf_jax import sharding
from rlhf_jax.plan import analytic, compiling, costs, hlo, programs, roofline
from rlhf_jax.plan.chips import PlanError, Topology
from rlhf_jax.plan.costs import Segment
from rlhf_jax.plan.programs import Phase, Program

COMPILED, DERIVED = "compiled", "derived"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhasePlan:
  """One phase of one program, per device where nothing else is said.

  Attributes:
    phase: its name, model FLOPs and tokens (of all devices).
    program: the name of its program.
    bytes: kind -> bytes while its program runs.
    segments: its work; empty where the program does not fit.
    roofline: of that.
    largest: (bytes, type) of the program's largest arrays.
  """

  phase: Phase
  program: str
  runs: int
  bytes: dict[str, int]
  segments: tuple[Segment, ...]
  roofline: roofline.Roofline
  largest: tuple[tuple[int, str], ...]
  refusal: str

  @property
  def total_bytes(self) -> int:
    return sum(self.bytes.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """All phases of a run on a topology.

  Attributes:
    how: "compiled" by the TPU compiler, or "derived" from formulas.
    needs: what the run refuses to begin without, and a plan does not: inputs,
      data; "" where all is there.
  """

  config: ml_collections.ConfigDict
  topology: Topology
  mesh_shape: dict[str, int]
  how: str
  phases: tuple[PhasePlan, ...]
  compile_seconds: dict[str, float]
  needs: str = ""

  @property
  def hbm_bytes(self) -> int:
    return self.topology.chip.hbm_bytes

  def fits_in(self, phase: PhasePlan) -> bool:
    return not phase.refusal and phase.total_bytes <= self.hbm_bytes

  @property
  def fits(self) -> bool:
    return all(map(self.fits_in, self.phases))

  def mfu(self, phases: Iterable[PhasePlan]) -> float | None:
    """Model FLOPs of the phases over what the chips could do in their
    roofline time."""
    phases = list(phases)
    seconds = sum(p.roofline.seconds for p in phases)
    if not seconds:
      return None
    return sum(p.phase.model_flops for p in phases) / (
        seconds * self.topology.chip.flops * self.topology.num_devices)


def make_plan(
    config: ml_collections.ConfigDict, topology: Topology, *,
    only: str = "", report: Callable[[str, float, int, int], None],
) -> Plan:
  """Plans the programs whose names begin with `only`.

  Args:
    config: the experiment.
    topology: where it is to run.
    only: as "ppo"; "" for all.
    report: called with (program, seconds, programs done, programs).

  Raises:
    ConfigError: the config does not suit so many devices.
    PlanError: no such topology, no compiler, or nothing to plan.
  """
  if topology.chip.platform == "tpu":
    devices = compiling.tpu_devices(topology)
    count = len(devices)
  else:
    devices, count = None, topology.num_devices
  needs = checked(config, count, topology)
  mesh = (sharding.make_mesh(**config.mesh, devices=devices) if devices
          else analytic.abstract_mesh(config, count))
  found = [p for p in programs.programs_of(config, mesh)
           if p.name.startswith(only)]
  if not found:
    raise PlanError(
        f"--only={only}: no program's name begins so; config.stages = "
        f"{tuple(config.stages)} of which pretrain, sft, rl_init, rm and ppo "
        "have programs.")
  if devices:
    plan = _compiled(config, topology, mesh, found, report)
  else:
    plan = _derived(config, topology, mesh, found)
  return dataclasses.replace(plan, needs=needs)


def checked(config, device_count: int, topology: Topology) -> str:
  """What a run needs that its plan does not, as the run would say it.

  Raises:
    ConfigError: not even a plan can be made.
  """
  validate = functools.partial(
      config_lib.validate, config, device_count,
      slice_count=topology.num_slices, platform=topology.chip.platform)
  validate(check_inputs=False)
  try:
    validate()
  except config_lib.ConfigError as error:
    return str(error)
  return ""


def _compiled(config, topology, mesh, found, report) -> Plan:
  done = []

  def on_done(program: Program, compiled: compiling.Compiled) -> None:
    done.append(program.name)
    report(program.name, compiled.seconds, len(done), len(found))

  compiled = compiling.compile_all(found, mesh, config.axis_rules, on_done)
  rates = roofline.Rates(topology, mesh.devices)
  phases = tuple(
      phase for program in found
      for phase in _phases(
          program, compiled[program.name],
          slice_shape(mesh, topology.num_slices), rates))
  return Plan(
      config=config, topology=topology, mesh_shape=dict(mesh.shape),
      how=COMPILED, phases=phases,
      compile_seconds={n: c.seconds for n, c in compiled.items()})


def slice_shape(mesh, num_slices: int) -> tuple[int, ...]:
  """The mesh of one slice: they lie along the first axis."""
  data, *rest = mesh.devices.shape
  return data // num_slices, *rest


def _phases(program: Program, compiled, mesh_shape, rates):
  scopes = tuple(p.scope for p in program.phases if p.scope)
  segments = costs.count(
      hlo.parse(compiled.text), mesh_shape, scopes) if compiled.text else []
  for phase in program.phases:
    # what is under no scope is the program's first phase's
    own = tuple(
        s for s in segments if s.scope == phase.scope
        or (not s.scope and phase is program.phases[0]))
    yield PhasePlan(
        phase=phase, program=program.name, runs=program.runs,
        bytes=bytes_by_kind(program, compiled), segments=own,
        roofline=rates.roofline(own), largest=compiled.largest,
        refusal=compiled.refusal)


def bytes_by_kind(program: Program, compiled) -> dict[str, int]:
  """What one device holds while a program runs: its arguments by kind, what
  their layout adds, what lives inside, and what lies beside them."""
  arguments = {
      kind: programs.device_bytes(tree) for kind, tree in program.kinds.items()}
  found = dict(arguments)
  found["layout"] = max(
      compiled.argument_bytes - sum(arguments.values()), 0)
  found["temporaries"] = compiled.temporary_bytes
  for kind, tree in program.resident.items():
    found[f"resident {kind}"] = programs.device_bytes(tree)
  return found


def _derived(config, topology, mesh, found) -> Plan:
  numbers = np.arange(topology.num_devices).reshape(
      tuple(mesh.shape.values()))
  rates = roofline.Rates(topology, numbers)
  phases = []
  for program in found:
    estimate = analytic.estimate(config, program, mesh)
    for phase in program.phases:
      own = tuple(estimate.segments[phase.name])
      phases.append(PhasePlan(
          phase=phase, program=program.name, runs=program.runs,
          bytes=bytes_by_kind(program, estimate), segments=own,
          roofline=rates.roofline(own), largest=(), refusal=""))
  return Plan(
      config=config, topology=topology, mesh_shape=dict(mesh.shape),
      how=DERIVED, phases=tuple(phases), compile_seconds={})


def work_of(phase: PhasePlan) -> costs.Work:
  return costs.total(list(phase.segments))


def axis_names(axes: tuple[int, ...]) -> str:
  return "+".join(sharding.MESH_AXES[a] for a in axes)
