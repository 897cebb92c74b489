"""Seconds of a phase if everything that can overlap does, and what bounds it.

A segment of a program takes as long as the slowest of its resources: matrix
units, HBM, each dimension of the chips' torus, the network between slices.
Segments follow each other. Real runs are slower: nothing here waits for
latencies, stalls or the host.
"""

import collections
from collections.abc import Iterable
import dataclasses

import numpy as np

from rlhf_jax.plan import chips
from rlhf_jax.plan import costs
from rlhf_jax.plan.chips import Topology
from rlhf_jax.plan.costs import Segment, Work

# ICI: links of the torus, or NVLink.
RESOURCES = COMPUTE, HBM, ICI, NETWORK = "compute", "HBM", "ICI", "network"


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Attributes:
    seconds: of the phase.
    seconds_by_bound: of its segments by what is slowest in them.
    busy_seconds: of each resource, were it alone.
  """

  seconds: float
  seconds_by_bound: dict[str, float]
  busy_seconds: dict[str, float]

  @property
  def bound(self) -> str:
    if not self.seconds:
      return COMPUTE
    return max(self.seconds_by_bound, key=self.seconds_by_bound.get)


class Rates:
  """How long work takes on a mesh of a topology."""

  def __init__(self, topology: Topology, mesh_devices: np.ndarray):
    self._chip = topology.chip
    self._topology = topology
    # groups of TPUs are within a slice: all slices are alike
    self._devices = mesh_devices[:len(mesh_devices) // topology.num_slices]
    self._paths: dict[tuple[int, ...], chips.Paths] = {}

  def roofline(self, segments: Iterable[Segment]) -> Roofline:
    seconds: dict[str, float] = collections.defaultdict(float)
    busy: dict[str, float] = collections.defaultdict(float)
    for segment in segments:
      times = self.seconds_of(segment.work)
      slowest = max(times, key=times.get)
      seconds[slowest] += segment.times * times[slowest]
      for resource, time in times.items():
        busy[resource] += segment.times * time
    return Roofline(sum(seconds.values()), dict(seconds), dict(busy))

  def seconds_of(self, work: Work) -> dict[str, float]:
    """Of each resource."""
    dims: dict[int, float] = collections.defaultdict(float)
    network = 0.0
    for (kind, axes), size in work.collectives.items():
      inside, outside = self._collective_seconds(kind, axes, size)
      network += outside
      for dim, time in inside.items():
        dims[dim] += time
    return {
        COMPUTE: work.flops / self._chip.flops,
        HBM: work.hbm_bytes / self._chip.hbm_bandwidth,
        ICI: max(dims.values(), default=0.0), NETWORK: network}

  def _collective_seconds(
      self, kind: str, axes: tuple[int, ...], size: float
  ) -> tuple[dict[int, float], float]:
    """(seconds by dimension of the torus, seconds of the network)."""
    if kind.startswith(costs.BETWEEN_SLICES):
      sent = factor(kind.removeprefix(costs.BETWEEN_SLICES),
                    self._topology.num_slices)
      return {}, sent * size / self._chip.network_bandwidth
    if axes not in self._paths:
      self._paths[axes] = chips.paths_of(self._topology, self._devices, axes)
    paths = self._paths[axes]
    # each chip sends the part that its slice's others do not; of an exchange
    # its own
    own = size if kind == "all-to-all" else size / paths.group_size
    outside = factor(kind, paths.num_slices) * own
    return inside_seconds(kind, size, paths), (
        outside / self._chip.network_bandwidth)


def inside_seconds(
    kind: str, size: float, paths: chips.Paths) -> dict[int, float]:
  """Seconds by dimension of the torus, within a slice or node.

  All dimensions carry a part of a gather, scatter or sum at once. Every byte
  of an exchange crosses all of them, a quarter of each ring on average; where
  each sees all others, the one "dimension", it goes once. A permutation takes
  one dimension, in one direction and another beside it in the other.
  """
  if not paths.bandwidths:
    return {}
  if kind == "all-to-all":
    share = factor(kind, paths.group_size)
    return {dim: size * max(paths.lengths[dim] / 4, share) / bandwidth
            for dim, bandwidth in paths.bandwidths.items()}
  if kind == "collective-permute":
    dim = max(paths.bandwidths, key=paths.bandwidths.get)
    return {dim: size / paths.bandwidths[dim]}
  time = size * factor(kind, paths.group_size) / sum(paths.bandwidths.values())
  return dict.fromkeys(paths.bandwidths, time)


def factor(kind: str, group_size: int) -> float:
  """Bytes that each of a group sends for a byte of the array, by rings.

  Raises:
    PlanError: a kind of collective that is not known here.
  """
  if group_size <= 1:
    return 0.0
  share = (group_size - 1) / group_size
  factors = {
      "all-gather": share, "reduce-scatter": share, "all-reduce": 2 * share,
      "all-to-all": share, "collective-permute": 1.0, "one-to-one": 1.0}
  if kind not in factors:
    raise chips.PlanError(f"no figures for collectives of the kind {kind!r}")
  return factors[kind]
