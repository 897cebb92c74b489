"""FLOPs, HBM bytes and collective bytes of a compiled module.

The compiler's own count takes the body of a loop once; here every loop counts
as often as it runs. What runs together, the instructions of one computation
without its inner loops, is a segment: its parts can overlap in time, those of
different segments cannot.
"""

import collections
import dataclasses
import math
import re
from typing import Any

from rlhf_jax.plan import hlo
from rlhf_jax.plan.hlo import Computation, Instruction, Module

# (kind, numbers of the mesh axes that it runs over)
Collective = tuple[str, tuple[int, ...]]
_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
    "collective-permute")
# Between TPU slices the compiler writes no collectives: each device's part is
# sent through its host, with the kind of the whole beside it.
BETWEEN_SLICES = "between slices: "
# Neither read nor write memory.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all "
    "partition-id replica-id opt-barrier async-done async-update "
    "add-dependency".split())
_CALLS = ("call", "async-start")
_SLICES = ("dynamic-slice", "gather", "slice")


@dataclasses.dataclass
class Work:
  """What one device does.

  Attributes:
    flops: of matrix products, two for a multiplication with its addition.
    hbm_bytes: read and written.
    collectives: bytes of the arrays that a device gives to (or, of an
      all-gather, has after) each kind over each set of mesh axes.
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  collectives: dict[Collective, float] = dataclasses.field(
      default_factory=lambda: collections.defaultdict(float))

  def add(self, other: "Work", times: float = 1.0) -> None:
    self.flops += times * other.flops
    self.hbm_bytes += times * other.hbm_bytes
    for key, size in other.collectives.items():
      self.collectives[key] += times * size


@dataclasses.dataclass(frozen=True)
class Segment:
  """Work that can overlap, done `times` times, under one of the scopes."""

  scope: str
  times: float
  work: Work


def total(segments: list[Segment]) -> Work:
  work = Work()
  for segment in segments:
    work.add(segment.work, segment.times)
  return work


def count(
    module: Module, mesh_shape: tuple[int, ...], scopes: tuple[str, ...]
) -> list[Segment]:
  """The segments of a module.

  Args:
    module: compiled for a mesh of this shape.
    mesh_shape: that of one slice, in the order of the mesh's axes.
    scopes: names of `jax.named_scope`; an instruction is counted under the
      first that its origin names, or else under its loop's ("" outside all).
  """
  counter = _Counter(module, mesh_shape, scopes)
  walk = _Walk()
  counter.walk(walk, module.entry, 1.0, "")
  return walk.finished()


class _Walk:
  """Segments so far, and the collectives not yet put into them.

  One collective may stand in several places, by the same channel: a start,
  and steps beside products. It happens once where it stands the fewest times.
  """

  def __init__(self):
    self.segments: list[Segment] = []
    self.collectives: dict[str, tuple[float, Segment, Work]] = {}

  def add_collective(self, channel: str, segment: Segment, work: Work) -> None:
    found = self.collectives.get(channel)
    if found is None or segment.times < found[0]:
      self.collectives[channel] = segment.times, segment, work

  def finished(self) -> list[Segment]:
    for _, segment, work in self.collectives.values():
      segment.work.add(work)
    return self.segments

  def cost(self) -> tuple[float, float]:
    work = total(self.segments)
    return work.flops, work.hbm_bytes


class _Counter:
  """Walks a module."""

  def __init__(self, module, mesh_shape, scopes):
    self._module = module
    self._mesh_shape = mesh_shape
    self._scopes = scopes

  def walk(self, walk: _Walk, name: str, times: float, scope: str) -> None:
    """Adds the segments of a computation and of those that it calls."""
    computation, own = self._module[name], {}
    for instruction in computation.values():
      here = self._scope_of(instruction) or scope
      if instruction.opcode == "while":
        trips = hlo.trip_count(self._module, instruction, computation)
        self.walk(
            walk, instruction.callee("body"), times * trips, here)
      elif instruction.opcode in _CALLS:
        self.walk(walk, instruction.called[0], times, here)
      elif instruction.opcode == "conditional":
        self._walk_costliest(walk, instruction, times, here)
      else:
        if here not in own:
          own[here] = Segment(here, times, Work())
          walk.segments.append(own[here])
        self._add(walk, own[here], instruction, computation)

  def _scope_of(self, instruction: Instruction) -> str:
    places = {
        scope: found.start() for scope in self._scopes
        if (found := re.search(rf"(^|[/(]){scope}[/)]", instruction.op_name))}
    return min(places, key=places.get) if places else ""

  def _walk_costliest(self, walk: _Walk, instruction, times, scope) -> None:
    names = re.search(r"branch_computations=\{([^}]*)\}",
                      instruction.attributes)
    names = re.findall(r"%?([\w.\-]+)", names.group(1)) if names else (
        re.findall(r"(?:true|false)_computation=%?([\w.\-]+)",
                   instruction.attributes))
    branches = [_Walk() for _ in names]
    for branch, name in zip(branches, names):
      self.walk(branch, name, times, scope)
    costliest = max(branches, key=_Walk.cost)
    walk.segments += costliest.segments
    for channel, (_, segment, work) in costliest.collectives.items():
      walk.add_collective(channel, segment, work)

  def _add(self, walk, segment, instruction, computation) -> None:
    """One instruction that is neither loop nor call."""
    segment.work.hbm_bytes += self._bytes(instruction, computation)
    if instruction.opcode == "fusion":
      self._add_inside(walk, segment, instruction)
    else:
      segment.work.flops += product_flops(instruction, computation)
      self._add_collective(walk, segment, instruction, computation)

  def _add_inside(self, walk, segment, fusion: Instruction) -> None:
    """Products and collectives of a fusion; its memory is that outside."""
    inner = self._module[fusion.called[0]]
    is_scattered = "all-reduce-scatter" in fusion.attributes
    for instruction in inner.values():
      if instruction.opcode == "fusion":
        self._add_inside(walk, segment, instruction)
        continue
      segment.work.flops += product_flops(instruction, inner)
      self._add_collective(walk, segment, instruction, inner,
                           "reduce-scatter" if is_scattered else "")

  def _add_collective(
      self, walk, segment, instruction, computation, kind="") -> None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "send":
      self._add_send(segment, instruction, computation)
    if opcode not in _COLLECTIVES:
      return
    num_devices = math.prod(self._mesh_shape)
    group = hlo.first_group(instruction, num_devices)
    axes = hlo.varying_axes(group, self._mesh_shape)
    given = [array for operand in instruction.operands
             for array in computation[operand].arrays]
    gathered = len(group) if opcode == "all-gather" else 1
    if axes:
      work = Work(hbm_bytes=(1 + gathered) * _hbm(given))
      work.collectives[kind or opcode, axes] += gathered * sum(
          array.num_bytes for array in given)
      channel = instruction.attribute("channel_id") or instruction.name
      walk.add_collective(channel, segment, work)

  def _add_send(self, segment, instruction, computation) -> None:
    found = re.search(
        r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if found:
      kind = BETWEEN_SLICES + found.group(1).lower().replace("_", "-")
      segment.work.collectives[kind, (0,)] += sum(
          a.num_bytes for a in computation[instruction.operands[0]].arrays)

  def _bytes(self, instruction: Instruction, computation: Computation):
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
      return 0.0
    if opcode.removesuffix("-start") in _COLLECTIVES:
      return 0.0  # counted with the collective
    operand = lambda n: computation[instruction.operands[n]].arrays
    if opcode == "fusion":
      return self._fusion_bytes(instruction, computation)
    if opcode in _SLICES:
      return 2 * _hbm(instruction.arrays)
    if opcode == "dynamic-update-slice":
      return 2 * _hbm(operand(1))
    if opcode.endswith("-start"):  # (result, operand, context) or alike
      return _hbm(instruction.arrays)
    read = sum(_hbm(computation[name].arrays)
               for name in instruction.operands if name in computation)
    return read + _hbm(instruction.arrays)

  def _fusion_bytes(self, fusion: Instruction, outer: Computation) -> float:
    inner = self._module[fusion.called[0]]
    written = _written(inner, inner.root, fusion.arrays)
    read = 0.0
    for parameter, name in zip(inner.parameters, fusion.operands):
      read += self._read(inner, parameter, _hbm(outer[name].arrays))
    return read + written

  def _read(self, inner: Computation, parameter: Instruction, full: float):
    """Bytes of a fusion's operand that are read: of one that is only sliced,
    the slices; of one that is updated in place, none."""
    if not full:
      return 0.0
    parts, waiting = 0.0, [parameter]
    while waiting:
      source = waiting.pop()
      for user in inner.users[source.name]:
        is_first = user.operands[0] == source.name
        if user.opcode in ("bitcast", "reshape"):
          waiting.append(user)
        elif user.opcode in ("tuple", *_COLLECTIVES):
          continue  # handed on as it is; counted with the collective
        elif user.opcode in _SLICES and is_first:
          parts += sum(a.num_bytes for a in user.arrays)
        elif user.opcode == "fusion":
          nested = self._module[user.called[0]]
          parts += sum(
              self._read(nested, p, full)
              for p, name in zip(nested.parameters, user.operands)
              if name == source.name)
        elif user.opcode != "dynamic-update-slice" or not is_first:
          return full
    return min(parts, full)


def _hbm(arrays: list[hlo.Array]) -> float:
  return sum(array.hbm_bytes for array in arrays)


def _written(inner: Computation, root: Instruction, arrays) -> float:
  """Bytes of a fusion's result: of one updated in place, the update."""
  if root.opcode == "tuple":
    return sum(
        _written(inner, inner[name], [array])
        for name, array in zip(root.operands, arrays))
  source = root
  while source.opcode == "bitcast":
    source = inner[source.operands[0]]
  if source.opcode in ("parameter", *_COLLECTIVES):
    return 0.0
  if source.opcode == "dynamic-update-slice":
    update = sum(a.num_bytes for a in inner[source.operands[1]].arrays)
    return min(update, _hbm(arrays))
  return _hbm(arrays)


def product_flops(instruction: Instruction, computation: Computation) -> float:
  """FLOPs of a matrix product, which TPUs write as a convolution; else 0."""
  if instruction.opcode == "dot":
    contracted = re.search(
        r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    left = computation[instruction.operands[0]].arrays[0].shape
    dims = [int(d) for d in contracted.group(1).split(",") if d]
    return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(
        left[d] for d in dims)
  if instruction.opcode == "convolution":
    return _convolution_flops(instruction, computation)
  return 0.0


def _convolution_flops(instruction: Instruction, computation: Computation):
  left_labels, right_labels, out_labels = re.search(
      r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
  left, right = (computation[name].arrays[0].shape
                 for name in instruction.operands[:2])
  out = instruction.arrays[0].shape
  size = lambda shape, labels, label: shape[labels.index(label)]
  flops = 2.0 * size(out, out_labels, "b") * size(out, out_labels, "f")
  flops *= size(right, right_labels, "i")
  window = _window(instruction.attributes)
  for number, label in enumerate(sorted(c for c in out_labels if c.isdigit())):
    flops *= _valid_taps(
        size(left, left_labels, label), size(out, out_labels, label),
        size(right, right_labels, label),
        **{name: values[number] for name, values in window.items()})
  return flops


def _window(attributes: str) -> dict[str, list[Any]]:
  found = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(f.split("=") for f in found.group(1).split()) if found else {}
  number = len(fields.get("size", "1").split("x"))
  numbers = lambda name: [
      int(n) for n in fields.get(name, "x".join("1" * number)).split("x")]
  pads = fields.get("pad", "x".join(["0_0"] * number)).split("x")
  return {
      "stride": numbers("stride"), "left_dilation": numbers("lhs_dilate"),
      "right_dilation": numbers("rhs_dilate"),
      "pad": [int(p.split("_")[0]) for p in pads]}


def _valid_taps(
    length: int, out_length: int, taps: int, *, stride: int,
    left_dilation: int, right_dilation: int, pad: int
) -> int:
  """(output, tap) pairs of one spatial axis that meet an input: batched
  products are written as convolutions where most meet padding."""
  last = (length - 1) * left_dilation
  valid = 0
  for tap in range(taps):
    first = tap * right_dilation - pad
    for place in range(first, first + out_length * stride, stride):
      valid += 0 <= place <= last and place % left_dilation == 0
  return valid
