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

COMPUTE, HBM, ICI, NETWORK = "compute", "HBM", "ICI", "network"


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
    seconds, busy = collections.Counter(), collections.Counter()
    for segment in segments:
      times = self.seconds_of(segment.work)
      slowest = max(times, key=times.get)
      seconds[slowest] += segment.times * times[slowest]
      for resource, time in times.items():
        busy[resource] += segment.times * time
    return Roofline(sum(seconds.values()), dict(seconds), dict(busy))

  def seconds_of(self, work: Work) -> dict[str, float]:
    """Of each resource."""
    dims, network = collections.Counter(), 0.0
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
                    self._topology.num_slices, self._topology.num_slices)
      return {}, sent * size / self._chip.network_bandwidth
    if axes not in self._paths:
      self._paths[axes] = chips.paths_of(self._topology, self._devices, axes)
    paths = self._paths[axes]
    inside = {}
    if paths.bandwidths:
      carried = size * factor(kind, paths.group_size, paths.longest)
      # all dimensions carry a part at once
      time = carried / sum(paths.bandwidths.values())
      inside = dict.fromkeys(paths.bandwidths, time)
    # each chip sends the part that its slice's others do not
    outside = size / paths.group_size * factor(
        kind, paths.num_slices, paths.num_slices)
    return inside, outside / self._chip.network_bandwidth


def factor(kind: str, group_size: int, longest: int) -> float:
  """Bytes that a chip sends for a byte of the array, by the usual algorithms:
  rings for gather, scatter and reduction; each of an exchange's parts goes a
  quarter of the longest ring on average."""
  if group_size <= 1:
    return 0.0
  share = (group_size - 1) / group_size
  return {
      "all-gather": share, "reduce-scatter": share, "all-reduce": 2 * share,
      "all-to-all": max(longest / 4, share), "collective-permute": 1.0,
  }[kind]
