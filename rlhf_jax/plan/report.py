"""A plan as tables for people and as one object for machines."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import tabulate

from rlhf_jax.models.policy import Policy
from rlhf_jax.plan import planning
from rlhf_jax.plan import roofline
from rlhf_jax.plan.chips import GIB, Chip
from rlhf_jax.plan.planning import COMPILED, DERIVED, PhasePlan, Plan
from rlhf_jax.run import transformer_config

_KINDS = ("parameters", "optimizer", "ema", "frozen", "batch", "layout",
          "temporaries", "resident")
_SECONDS_A_DAY = 86_400


def as_object(plan: Plan) -> dict[str, Any]:
  """For --json: bytes, flops, hbm_traffic and collectives are those of one
  device in one run of the phase; model_flops and tokens those of all."""
  iteration = iteration_of(plan)
  return {
      "name": plan.config.name,
      "fits": plan.fits,
      "needs": plan.needs.splitlines(),
      "topology": plan.topology.text,
      "num_devices": plan.topology.num_devices,
      "hbm_bytes": plan.hbm_bytes,
      "mesh": plan.mesh_shape,
      "how": {
          "bytes": plan.how, "flops": plan.how, "hbm_traffic": plan.how,
          "collectives": plan.how, "model_flops": DERIVED,
          "roofline_seconds": DERIVED, "mfu": DERIVED},
      "phases": {p.phase.name: _phase(plan, p) for p in plan.phases},
      "iteration": iteration,
      "compile_seconds": {
          name: round(s, 1) for name, s in plan.compile_seconds.items()},
  }


def _phase(plan: Plan, phase: PhasePlan) -> dict[str, Any]:
  work = planning.work_of(phase)
  has_work = bool(phase.segments)
  return {
      "program": phase.program,
      "fits": plan.fits_in(phase),
      "bytes": phase.bytes | {"total": phase.total_bytes},
      "largest": [
          {"bytes": size, "array": kind} for size, kind in phase.largest],
      "flops": work.flops if has_work else None,
      "model_flops": phase.phase.model_flops,
      "tokens": phase.phase.tokens,
      "hbm_traffic": work.hbm_bytes if has_work else None,
      "collectives": {
          f"{kind}/{planning.axis_names(axes)}": size
          for (kind, axes), size in sorted(work.collectives.items())},
      "roofline_seconds": phase.roofline.seconds if has_work else None,
      "busy_seconds": phase.roofline.busy_seconds,
      "bound": phase.roofline.bound if has_work else None,
      "mfu": plan.mfu([phase]),
  }


def iteration_of(plan: Plan) -> dict[str, Any] | None:
  """Of PPO: seconds of an iteration, days and chip-hours of all; None where
  a part of it was not planned or does not fit."""
  phases = [p for p in plan.phases if p.program.startswith("ppo")]
  if len({p.program for p in phases}) < 3 or not all(
      p.segments for p in phases):
    return None
  seconds = sum(p.roofline.seconds for p in phases)
  iterations = phases[0].runs
  settings = plan.config[phases[0].program.partition("/")[0]]
  response_tokens = settings.batch_size * plan.config.data.max_response_tokens
  total = seconds * iterations
  return {
      "seconds": seconds,
      "iterations": iterations,
      "episodes": iterations * settings.batch_size,
      "response_tokens_per_second": response_tokens / seconds,
      "days": total / _SECONDS_A_DAY,
      "chip_hours": total / 3600 * plan.topology.num_devices,
      "mfu": plan.mfu(phases),
  }


# ------------------------------------------------------------------- text


def as_text(plan: Plan) -> str:
  parts = [
      _heading(plan), _memory_table(plan), _work_table(plan),
      _collectives_table(plan), _iteration_text(plan), _chip_text(plan),
      verdict(plan), _needs_text(plan)]
  return "\n\n".join(part for part in parts if part)


def _heading(plan: Plan) -> str:
  config = plan.config
  policy, rm_model = (
      Policy(transformer_config(sizes, 0.0)).config.num_params
      for sizes in (config.model, config.rm_model))
  mesh = " x ".join(f"{name}={size}" for name, size in plan.mesh_shape.items())
  how = {
      COMPILED: "compiled by the TPU compiler, ahead of time, in "
                f"{sum(plan.compile_seconds.values()):.0f} s of compilation",
      DERIVED: "derived from formulas, not compiled",
  }[plan.how]
  return (
      f"{config.name} on {plan.topology.text}: "
      f"{plan.topology.num_devices} devices, mesh {mesh}\n"
      f"policy {policy:,} parameters, reward model and critic "
      f"{rm_model:,} each\n{how}")


def _memory_table(plan: Plan) -> str:
  rows = []
  for phase in _one_a_program(plan.phases):
    sizes = collections.Counter()
    for kind, size in phase.bytes.items():
      sizes["resident" if kind.startswith("resident") else kind] += size
    rows.append([
        phase.program, *(sizes[kind] / GIB or None for kind in _KINDS),
        phase.total_bytes / GIB,
        f"{phase.total_bytes / plan.hbm_bytes:.0%}",
        "yes" if plan.fits_in(phase) else "NO"])
  return (
      f"Memory of one device, GiB of {plan.hbm_bytes / GIB:.2f} "
      f"({plan.how}; temporaries hold the activations; resident: what lies "
      "beside)\n" + _table(
          rows, ["program", *_KINDS, "total", "of HBM", "fits"], ".2f"))


def _work_table(plan: Plan) -> str:
  rows = []
  for phase in plan.phases:
    if not phase.segments:
      continue
    work, seconds = planning.work_of(phase), phase.roofline.seconds
    busy = phase.roofline.busy_seconds
    rows.append([
        phase.phase.name, _short(phase.phase.model_flops),
        _short(work.flops * plan.topology.num_devices),
        work.hbm_bytes / GIB, sum(work.collectives.values()) / GIB,
        *(f"{busy.get(name, 0):.3g}" for name in roofline.RESOURCES),
        f"{seconds:.3g}", phase.roofline.bound,
        *((f"{plan.mfu([phase]):.0%}", f"{phase.phase.tokens / seconds:,.0f}")
          if phase.phase.tokens else ())])
  return "" if not rows else (
      f"One run of each phase (FLOPs of all devices, bytes of one; work "
      f"{plan.how}, model FLOPs and times derived: at best)\n" + _table(
          rows, ["phase", "model FLOPs", "FLOPs", "HBM GiB", "collective GiB",
                 *(f"{name} s" for name in roofline.RESOURCES), "roofline s",
                 "bound", "MFU", "tokens/s"], ".1f"))


def _collectives_table(plan: Plan) -> str:
  found = {
      phase.phase.name: planning.work_of(phase).collectives
      for phase in plan.phases if phase.segments}
  keys = sorted({key for sizes in found.values() for key in sizes
                 if max(s.get(key, 0) for s in found.values()) > GIB / 1000})
  rows = [
      [f"{kind} over {planning.axis_names(axes)}",
       *(sizes.get((kind, axes), 0) / GIB or None
         for sizes in found.values())] for kind, axes in keys]
  return "" if not rows else (
      f"Collectives, GiB of arrays of one device ({plan.how})\n"
      + _table(rows, ["over", *found], ".2f"))


def _iteration_text(plan: Plan) -> str:
  iteration = iteration_of(plan)
  return "" if not iteration else (
      f"A PPO iteration takes {iteration['seconds']:.3g} s at best (MFU "
      f"{iteration['mfu']:.0%}, "
      f"{iteration['response_tokens_per_second']:,.0f} sampled tokens/s);\n"
      f"{iteration['episodes']:,} episodes in {iteration['iterations']} "
      f"iterations {iteration['days']:.2f} days, "
      f"{iteration['chip_hours']:,.0f} chip-hours (derived).")


def _chip_text(plan: Plan) -> str:
  chip: Chip = plan.topology.chip
  link = "a link and direction" if chip.torus_dims else "NVLink a direction"
  return (
      f"Assumed of a chip: {chip.flops / 1e12:.0f} TFLOP/s bf16, "
      f"{chip.hbm_bytes / GIB:.2f} GiB at {chip.hbm_bandwidth / 1e9:,.0f} "
      f"GB/s, {chip.link_bandwidth / 1e9:.0f} GB/s {link}, "
      f"{chip.network_bandwidth / 1e9:.4g} GB/s network ({chip.source}).")


def verdict(plan: Plan) -> str:
  """Whether it fits; if not, the cause in each program and ways out."""
  bad = [p for p in _one_a_program(plan.phases) if not plan.fits_in(p)]
  if not bad:
    return f"It fits: every program within {plan.hbm_bytes / GIB:.2f} GiB."
  lines = [f"It does NOT fit {plan.topology.text}:"]
  for phase in bad:
    most = sorted(phase.bytes, key=phase.bytes.get, reverse=True)[:3]
    lines.append(
        f"  {phase.program} needs {phase.total_bytes / GIB:.2f} of "
        f"{plan.hbm_bytes / GIB:.2f} GiB; the most are "
        + ", ".join(f"{k} {phase.bytes[k] / GIB:.2f}" for k in most) + "".join(
            f"\n    {size / GIB:.2f} GiB {array}"
            for size, array in phase.largest[:3]))
  return "\n".join(lines)


def _needs_text(plan: Plan) -> str:
  """What is not a matter of devices."""
  return plan.needs and (
      "Before it can run, as seen from here:\n"
      + "\n".join(f"  {line}" for line in plan.needs.splitlines()))


def growth_table(plans: Sequence[Plan]) -> str:
  """Temporaries and collectives of one device, by topology."""
  found = []
  for plan in plans:
    for phase in plan.phases:
      by_axis: dict[str, float] = collections.defaultdict(float)
      for (_, axes), size in planning.work_of(phase).collectives.items():
        by_axis[planning.axis_names(axes)] += size / GIB
      found.append((plan, phase, by_axis))
  over = sorted({name for _, _, sizes in found for name in sizes})
  rows = [
      [phase.phase.name, plan.topology.text, plan.topology.num_devices,
       phase.bytes["temporaries"] / GIB,
       *(sizes.get(name) or None for name in over), float(sum(sizes.values())),
       f"{phase.roofline.seconds:.3g}", f"{plan.mfu([phase]) or 0:.0%}"]
      for plan, phase, sizes in sorted(found, key=lambda f: f[1].phase.name)]
  return (
      "Growth: of one device, GiB\n" + _table(
          rows, ["phase", "topology", "devices", "temporaries",
                 *(f"over {name}" for name in over), "collectives",
                 "roofline s", "MFU"], ".2f"))


def _one_a_program(phases: Iterable[PhasePlan]) -> list[PhasePlan]:
  return list({p.program: p for p in phases}.values())


def _short(number: float) -> str:
  return f"{number:.2e}"


def _table(rows, headers, floats: str) -> str:
  return tabulate.tabulate(
      [[_cell(x, floats) for x in row] for row in rows], headers,
      tablefmt="github", disable_numparse=True)


def _cell(value, floats: str) -> str:
  if value is None:
    return ""
  return format(value, floats) if isinstance(value, float) else str(value)
