"""A compiled module's text, read into computations and instructions.

The text is that of XLA's optimized HLO, as of `Compiled.as_text()` or of
--xla_dump_to: one program for one device, each array in the shape of its
shard.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from rlhf_jax.plan.chips import PlanError

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
    "s32": 4, "u32": 4, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4,
    "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0,
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|body|called_computations)=\{?%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type: a leaf where the type is a tuple."""

  dtype: str
  shape: tuple[int, ...]
  is_in_hbm: bool  # else in memory on the chip or of the host

  @property
  def num_bytes(self) -> float:
    return _BYTES.get(self.dtype, 1) * math.prod(self.shape)

  @property
  def hbm_bytes(self) -> float:
    return self.num_bytes if self.is_in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  opcode: str
  type: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """The arrays of its result."""
    return [
        Array(dtype, tuple(int(n) for n in dims.split(",") if n),
              not re.search(r"S\([1-9]\d*\)", layout))
        for dtype, dims, layout in _ARRAY.findall(self.type)]

  @property
  def op_name(self) -> str:
    """Where in the Python program it comes from; "" where that is lost."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else ""

  def attribute(self, name: str) -> str | None:
    found = re.search(rf"\b{name}=([^ ]+?)(?:, |$)", self.attributes + ", ")
    return found.group(1) if found else None

  def callee(self, role: str) -> str:
    """The computation with that role, as the "body" of a loop."""
    return self.attribute(role).lstrip("%")

  @property
  def called(self) -> list[str]:
    return _CALLED.findall(self.attributes)


class Computation(dict):
  """Instruction by name, in the order of the text."""

  @property
  def root(self) -> Instruction:
    return next(i for i in self.values() if i.is_root)

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    found = [i for i in self.values() if i.opcode == "parameter"]
    return sorted(found, key=lambda i: int(i.operands[0]))

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Name -> the instructions that read it."""
    found: dict[str, list[Instruction]] = {name: [] for name in self}
    for instruction in self.values():
      for operand in dict.fromkeys(instruction.operands):
        if operand in found:
          found[operand].append(instruction)
    return found


@dataclasses.dataclass(frozen=True)
class Module:
  computations: dict[str, Computation]
  entry: str

  def __getitem__(self, name: str) -> Computation:
    return self.computations[name]


def parse(text: str) -> Module:
  """Reads the text of one module."""
  computations: dict[str, Computation] = {}
  entry, current = "", Computation()
  for line in text.splitlines():
    found = _INSTRUCTION.match(line)
    if found:
      instruction = _instruction(*found.groups())
      current[instruction.name] = instruction
      continue
    head = _HEAD.match(line)
    if head:
      current = computations[head.group(2)] = Computation()
      entry = head.group(2) if head.group(1) else entry
  if not entry:
    raise PlanError("the compiled module's text has no ENTRY computation")
  return Module(computations, entry)


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
  if rest.startswith("("):
    end = _closing(rest, 0) + 1
  else:
    end = rest.index(" ")
  opening = rest.index("(", end)
  closing = _closing(rest, opening)
  inside, opcode = rest[opening + 1:closing], rest[end:opening].strip()
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  if opcode in ("parameter", "constant"):
    operands = (inside,)
  return Instruction(
      name, opcode, rest[:end], operands, rest[closing + 1:].lstrip(", "),
      bool(root))


def _closing(text: str, start: int) -> int:
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if depth == 0:
      return place
  raise PlanError(f"unbalanced parentheses in a compiled module: {text[:80]}")


def trip_count(module: Module, loop: Instruction, outer: Computation) -> int:
  """How often the body of a `while` runs: its bound, where it may end early.

  Args:
    module: that of the loop.
    loop: the instruction.
    outer: the computation that it stands in.

  Raises:
    PlanError: its condition compares no counter with a constant.
  """
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known.group(1))
  found = [
      max(0, -(-(bound - _start(outer, loop, place))
               // _step(module[loop.callee("body")], place)))
      for place, bound in _bounds(
          module, module[loop.callee("condition")], {}, {})]
  if not found:
    raise PlanError(f"no bound in the condition of the loop {loop.name}")
  return max(found)


def _bounds(module: Module, computation: Computation, constants, places):
  """(place of a counter in the loop's tuple, constant that it is compared
  with); given are those of parameters by name."""
  constants, places = dict(constants), dict(places)
  for instruction in computation.values():
    if instruction.opcode == "constant":
      if re.fullmatch(r"-?\d+", instruction.operands[0]):
        constants[instruction.name] = int(instruction.operands[0])
    elif instruction.opcode == "get-tuple-element":
      places[instruction.name] = int(instruction.attribute("index"))
    elif instruction.opcode in _SAME:
      for known in (constants, places):
        if instruction.operands[0] in known:
          known[instruction.name] = known[instruction.operands[0]]
    elif instruction.opcode == "compare":
      if instruction.attribute("direction") in ("LT", "GT"):
        yield from (
            (places[a], constants[b])
            for a in instruction.operands for b in instruction.operands
            if a in places and b in constants)
    elif instruction.opcode in ("fusion", "call"):
      inner = module[instruction.called[0]]
      given = list(zip(inner.parameters, instruction.operands))
      yield from _bounds(
          module, inner,
          {p.name: constants[o] for p, o in given if o in constants},
          {p.name: places[o] for p, o in given if o in places})


_SAME = ("bitcast", "copy", "convert", "broadcast", "reshape")


def _source(computation: Computation, name: str) -> Instruction | None:
  """The instruction behind copies of its value."""
  found = computation.get(name)
  while found and found.opcode in _SAME:
    found = computation.get(found.operands[0])
  return found


def _constant(computation: Computation, name: str) -> int | None:
  found = _source(computation, name)
  if found and found.opcode == "constant" and re.fullmatch(
      r"-?\d+", found.operands[0]):
    return int(found.operands[0])
  return None


def _start(outer: Computation, loop: Instruction, place: int) -> int:
  """The counter's first value; 0 where it is not a constant."""
  given = outer[loop.operands[0]]
  if given.opcode != "tuple":
    return 0
  return _constant(outer, given.operands[place]) or 0


def _step(body: Computation, place: int) -> int:
  """What a trip adds to the counter; 1 where that is not written out."""
  root = body.root
  added = _source(body, root.operands[place]) if root.opcode == "tuple" else (
      None)
  if added is None or added.opcode != "add":
    return 1
  steps = [_constant(body, name) for name in added.operands]
  return next((step for step in steps if step), 1)


def first_group(instruction: Instruction, num_devices: int) -> list[int]:
  """One group of devices of a collective, by their places in the mesh.

  Raises:
    PlanError: the groups are written in a way not known here.
  """
  text = instruction.attributes
  found = re.search(r"source_target_pairs=\{\{([\d,{}]+)\}\}", text)
  if found:
    pairs = [p.split(",") for p in found.group(1).split("},{")]
    moved = [(int(a), int(b)) for a, b in pairs if a != b]
    return list(moved[0]) if moved else [0]
  found = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
  if found:
    return [int(n) for n in found.group(1).split(",")]
  found = re.search(
      r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if found:
    places = _iota(found.group(2), found.group(3))
    return places.reshape(_numbers(found.group(1)))[0].tolist()
  found = re.search(
      r"replica_groups=mesh\[([^\]]*)\]"
      r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", text)
  if found and ":" not in found.group(4):
    sizes = {name: int(size) for name, size in
             re.findall(r"'(\w+)'=(\d+)", found.group(1))}
    axes = re.findall(r"'(\w+)'", found.group(4))
    iota = found.group(2) or str(math.prod(sizes.values()))
    places = _iota(iota, found.group(3)).reshape(list(sizes.values()))
    index = tuple(slice(None) if name in axes else 0 for name in sizes)
    return places[index].ravel().tolist()
  if re.search(r"replica_groups=\{\}", text):
    return list(range(num_devices))
  raise PlanError(
      f"groups of the collective {instruction.name} are not understood: "
      f"{text[:200]}")


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
  """Counts up in `shape`, its axes then in that order."""
  places = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return places.transpose(_numbers(order)) if order else places


def varying_axes(group: list[int], mesh_shape: tuple[int, ...]):
  """The numbers of the mesh axes along which a group's devices differ."""
  places = np.array(np.unravel_index(group, mesh_shape))
  return tuple(
      axis for axis in range(len(mesh_shape))
      if len(set(places[axis].tolist())) > 1)
