"""Assumed figures of accelerators, and topologies made of them.

Every time that a plan states rests on this one table.
"""

import dataclasses
import math
import re

import numpy as np

GIB = 2**30


class PlanError(ValueError):
  """What a person can mend: a topology, a mesh, a missing package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One accelerator.

  Attributes:
    platform: "tpu" or "gpu".
    flops: peak bf16 FLOP/s.
    hbm_bytes: memory that a program can have.
    hbm_bandwidth: bytes/s.
    link_bandwidth: of one link in one direction, bytes/s: a TPU's link to a
      neighbour in the torus, all NVLinks of a GPU together.
    torus_dims: 3 or 2 of TPUs; 0 of GPUs, which see all others of their node.
    wraps_at: a dimension of a multiple of so many chips closes to a ring.
    network_bandwidth: of one chip in one direction, between slices or nodes.
    source: where the figures stand.
  """

  platform: str
  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  torus_dims: int
  wraps_at: int
  network_bandwidth: float
  source: str


_TPU_DOCS = "docs.cloud.google.com/tpu/docs/"
# Links: "bidirectional ICI bandwidth per chip" over both directions of 6 (3D)
# or 4 (2D) links. hbm_bytes of TPUs: what their compiler grants a program.
CHIPS = {
    "v4": Chip(
        platform="tpu", flops=275e12, hbm_bytes=int(30.75 * GIB),
        hbm_bandwidth=1.2e12, link_bandwidth=50e9, torus_dims=3, wraps_at=4,
        network_bandwidth=6.25e9, source=_TPU_DOCS + "v4"),
    "v5e": Chip(
        platform="tpu", flops=197e12, hbm_bytes=int(15.75 * GIB),
        hbm_bandwidth=819e9, link_bandwidth=50e9, torus_dims=2, wraps_at=16,
        network_bandwidth=3.125e9, source=_TPU_DOCS + "v5e"),
    "v5p": Chip(
        platform="tpu", flops=459e12, hbm_bytes=int(95.74 * GIB),
        hbm_bandwidth=2765e9, link_bandwidth=100e9, torus_dims=3, wraps_at=4,
        network_bandwidth=6.25e9, source=_TPU_DOCS + "v5p"),
    "v6e": Chip(
        platform="tpu", flops=918e12, hbm_bytes=int(31.25 * GIB),
        hbm_bandwidth=1638e9, link_bandwidth=100e9, torus_dims=2, wraps_at=16,
        network_bandwidth=12.5e9, source=_TPU_DOCS + "v6e"),
    "a100": Chip(
        platform="gpu", flops=312e12, hbm_bytes=80 * 10**9,
        hbm_bandwidth=2039e9, link_bandwidth=300e9, torus_dims=0, wraps_at=0,
        network_bandwidth=25e9, source="NVIDIA A100 80GB SXM data sheet"),
    "h100": Chip(
        platform="gpu", flops=989e12, hbm_bytes=80 * 10**9,
        hbm_bandwidth=3350e9, link_bandwidth=450e9, torus_dims=0, wraps_at=0,
        network_bandwidth=50e9, source="NVIDIA H100 SXM data sheet"),
    "h200": Chip(
        platform="gpu", flops=989e12, hbm_bytes=141 * 10**9,
        hbm_bandwidth=4800e9, link_bandwidth=450e9, torus_dims=0, wraps_at=0,
        network_bandwidth=50e9, source="NVIDIA H200 SXM data sheet"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """`num_slices` tori of TPUs of one shape, or nodes x GPUs a node."""

  name: str
  chip: Chip
  shape: tuple[int, ...]
  num_slices: int = 1

  @property
  def num_devices(self) -> int:
    return math.prod(self.shape) * self.num_slices

  @property
  def text(self) -> str:
    return self.name + f" x {self.num_slices} slices" * (self.num_slices > 1)


def parse_topology(name: str, num_slices: int = 1) -> Topology:
  """"v5p:4x4x4" -> a topology.

  Raises:
    PlanError: no such chip, or a shape that it has not.
  """
  kind, _, shape_text = name.partition(":")
  if kind not in CHIPS:
    raise PlanError(
        f"--topology={name}: no figures of {kind!r}; the chips are "
        f"{', '.join(CHIPS)}, written as v5p:4x4x4, v5e:4x4 or (nodes x GPUs "
        "a node) h100:4x8.")
  chip = CHIPS[kind]
  dims = chip.torus_dims or 2
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape_text) or (
      len(shape_text.split("x")) != dims):
    example = {"tpu": "x".join("4" * dims), "gpu": "4x8"}[chip.platform]
    raise PlanError(
        f"--topology={name}: a shape of {kind} has {dims} sizes, as "
        f"{kind}:{example}.")
  if num_slices < 1 or (num_slices > 1 and chip.platform == "gpu"):
    raise PlanError(
        f"--num_slices={num_slices}: TPU slices are counted from 1; nodes of "
        "GPUs stand in the topology, as h100:4x8.")
  return Topology(
      name, chip, tuple(map(int, shape_text.split("x"))), num_slices)


@dataclasses.dataclass(frozen=True)
class Paths:
  """What joins the devices of a collective's group.

  Attributes:
    group_size: devices of a group in one slice or node.
    num_slices: slices (or nodes) that a group spans.
    bandwidths: one for each dimension of the torus that is spanned, by its
      number: bytes/s of one chip, both directions of a ring together.
    lengths: chips along each of these dimensions; 1 where all see each other.
  """

  group_size: int
  num_slices: int
  bandwidths: dict[int, float]
  lengths: dict[int, int]


def paths_of(topology: Topology, mesh_devices: np.ndarray, axes) -> Paths:
  """The paths between devices that differ along the mesh axes `axes` only.

  Args:
    topology: of the devices.
    mesh_devices: array of the mesh's shape; TPU devices, or the numbers of
      GPUs in order, `shape[1]` a node.
    axes: numbers of the axes.
  """
  chip = topology.chip
  index = tuple(
      slice(None) if axis in axes else 0 for axis in range(mesh_devices.ndim))
  group = np.asarray(mesh_devices[index]).ravel()
  if chip.platform == "gpu":
    nodes = len({int(number) // topology.shape[1] for number in group})
    return Paths(len(group) // nodes, nodes,
                 {0: chip.link_bandwidth} if len(group) > nodes else {}, {0: 1})
  slices = len({getattr(d, "slice_index", 0) or 0 for d in group})
  bandwidths, lengths = {}, {}
  for dim, size in enumerate(topology.shape):
    places = len({d.coords[dim] for d in group})
    if places > 1:
      is_ring = places == size and size % chip.wraps_at == 0
      bandwidths[dim] = chip.link_bandwidth * (2 if is_ring else 1)
      lengths[dim] = places
  return Paths(len(group) // slices, slices, bandwidths, lengths)
