"""Ahead-of-time compilation by the TPU compiler of the libtpu package."""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import os
import pathlib
import re
import tempfile
import time
from typing import Any

from jax.experimental import topologies
from jax.sharding import Mesh

from rlhf_jax import sharding
from rlhf_jax.plan.chips import PlanError, Topology
from rlhf_jax.plan.programs import Program, device_bytes

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one program, per device.

  Attributes:
    text: the optimized module; "" where it does not fit.
    argument_bytes: of all arguments, as laid out.
    temporary_bytes: of activations and all else that lives inside, with the
      results that are not an argument's memory.
    largest: (bytes, type) of the largest arrays inside, largest first.
    seconds: of compilation.
    refusal: the compiler's words where it does not fit.
  """

  text: str
  argument_bytes: int
  temporary_bytes: int
  largest: tuple[tuple[int, str], ...]
  seconds: float
  refusal: str = ""


def tpu_devices(topology: Topology) -> Sequence[Any]:
  """The devices of a topology that is not there.

  Raises:
    PlanError: libtpu is not installed, or the topology does not exist.
  """
  # No TPU is asked for: neither its metadata server nor its lock is needed.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # Nor does it matter on which it would run: else the library complains.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  slices = {}
  if topology.num_slices > 1:
    slices["num_slices"] = topology.num_slices
  try:
    return topologies.get_topology_desc(
        topology_name=topology.name, platform="tpu", **slices).devices
  except Exception as error:
    text = str(error)
    if "libtpu" in text and "opology" not in text:
      raise PlanError(
          "the TPU compiler is not installed: pip install "
          "'rlhf_jax[plan]' (libtpu, no TPU needed), or plan for GPUs, as "
          f"--topology=h100:4x8 ({text.splitlines()[0]})") from error
    raise PlanError(
        f"--topology={topology.name} does not exist: "
        f"{text.splitlines()[0]}; take a shape that is sold, as v5p:4x4x4 or "
        "v5e:4x4.") from error


def compile_all(
    programs: Sequence[Program], mesh: Mesh, axis_rules: sharding.AxisRules,
    report: Callable[[Program, Compiled], None],
) -> dict[str, Compiled]:
  """Compiles all programs, two at a time; reports each when it is done."""
  with futures.ThreadPoolExecutor(max_workers=2) as pool:
    waiting = {
        pool.submit(compile_program, p, mesh, axis_rules): p for p in programs}
    found = {}
    for done in futures.as_completed(waiting):
      program = waiting[done]
      found[program.name] = done.result()
      report(program, found[program.name])
  return found


def compile_program(
    program: Program, mesh: Mesh, axis_rules: sharding.AxisRules
) -> Compiled:
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    # The module's text is taken from its dump: Compiled.as_text() cannot read
    # back all that this compiler writes.
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    with sharding.use(mesh, axis_rules):
      lowered = program.function.lower(*program.args)
    try:
      compiled = lowered.compile(compiler_options=options)
    except Exception as error:
      return _refused(
          program, str(error), folder, time.monotonic() - started)
    memory = compiled.memory_analysis()
    return Compiled(
        text=_dumped(folder, "after_optimizations.txt"),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=(
            memory.temp_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes),
        largest=_largest(_dumped(folder, "buffer-assignment.txt")),
        seconds=time.monotonic() - started)


def _refused(
    program: Program, message: str, folder: str, seconds: float
) -> Compiled:
  """Of a program that the compiler found too large; other errors go on.

  Raises:
    PlanError: the compiler failed for another reason.
  """
  found = re.search(
      r"\(([\d.]+)([BKMGT])\) exceeds available HBM|"
      r"[Uu]sed ([\d.]+)([BKMGT]) of [\d.]+[KMGT] hbm", message)
  if "RESOURCE_EXHAUSTED" not in message or not found:
    raise PlanError(f"the compiler failed: {message[:2000]}")
  number, unit = (group for group in found.groups() if group)
  arguments = device_bytes(program.args)  # are in what it says is needed
  inside = int(float(number) * _UNITS[unit]) - arguments
  return Compiled(
      text="", argument_bytes=arguments, temporary_bytes=max(inside, 0),
      largest=_largest(_dumped(folder, "buffer-assignment.txt", missing="")),
      seconds=seconds, refusal=message.splitlines()[0])


def _dumped(folder: str, ending: str, missing: str | None = None) -> str:
  """The largest dumped file of that ending, the program's own module.

  Raises:
    PlanError: there is none, and nothing to take for it.
  """
  files = [p for p in pathlib.Path(folder).iterdir() if p.name.endswith(ending)]
  if not files and missing is not None:
    return missing
  if not files:
    raise PlanError(f"the compiler dumped no *{ending}")
  return max(files, key=lambda path: path.stat().st_size).read_text()


def _largest(text: str) -> tuple[tuple[int, str], ...]:
  """(bytes, type), each type once, of a buffer assignment."""
  sizes = {}
  for size, kind in re.findall(
      r"\(size=(\d+),offset=\d+\): (\w+\[[\d,]*\])", text):
    sizes[kind] = max(sizes.get(kind, 0), int(size))
  ordered = sorted(sizes.items(), key=lambda item: -item[1])
  return tuple((size, kind) for kind, size in ordered[:12])
