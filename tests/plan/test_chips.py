"""Topologies, and what joins their devices."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.plan import chips
from rlhf_jax.plan import roofline
from rlhf_jax.plan.chips import PlanError
from rlhf_jax.plan.costs import Segment, Work


@dataclasses.dataclass(frozen=True)
class Device:
  """As far as paths ask for one."""

  coords: tuple[int, int, int]
  slice_index: int = 0


def torus(*shape, slices=1):
  return np.array([
      Device((x, y, z), s) for s in range(slices) for x in range(shape[0])
      for y in range(shape[1]) for z in range(shape[2])])


@pytest.mark.parametrize("name, message", [
    ("v9:4x4", "no figures of 'v9'; the chips are v4, v5e, v5p"),
    ("v5p:4x4", "a shape of v5p has 3 sizes, as v5p:4x4x4"),
    ("v5e:4x4x4", "a shape of v5e has 2 sizes, as v5e:4x4"),
    ("v5p:4xax4", "a shape of v5p has 3 sizes"),
    ("v5p:0x4x4", "a shape of v5p has 3 sizes"),
    ("h100:8", "a shape of h100 has 2 sizes, as h100:4x8"),
])
def test_topologies_that_are_none(name, message):
  with pytest.raises(PlanError, match=message):
    chips.parse_topology(name)


def test_slices_are_of_tpus():
  assert chips.parse_topology("v5p:4x4x4", 2).num_devices == 128
  with pytest.raises(PlanError, match="nodes of GPUs stand in the topology"):
    chips.parse_topology("h100:2x8", 2)


def test_every_chip_names_its_source():
  for name, chip in chips.CHIPS.items():
    assert chip.source and chip.hbm_bytes > 10 * chips.GIB, name


def test_rings_have_both_directions_and_lines_one():
  topology = chips.parse_topology("v5p:2x4x4")
  devices = torus(2, 4, 4).reshape(2, 4, 4)
  one = topology.chip.link_bandwidth
  assert chips.paths_of(topology, devices, (0,)).bandwidths == {0: one}
  assert chips.paths_of(topology, devices, (1,)).bandwidths == {1: 2 * one}
  both = chips.paths_of(topology, devices, (1, 2))
  assert both.bandwidths == {1: 2 * one, 2: 2 * one}
  assert both.group_size == 16 and both.num_slices == 1


def test_a_part_of_a_dimension_is_a_line():
  topology = chips.parse_topology("v5p:4x4x4")
  devices = torus(4, 4, 4).reshape(2, 2, 16)
  paths = chips.paths_of(topology, devices, (0,))
  assert paths.bandwidths == {0: topology.chip.link_bandwidth}


def test_slices_are_joined_by_the_network():
  topology = chips.parse_topology("v5p:4x4x4", 2)
  devices = torus(4, 4, 4, slices=2).reshape(4, 32, 1)
  paths = chips.paths_of(topology, devices, (0,))
  assert paths.num_slices == 2 and paths.group_size == 2


def rates(name, shape):
  topology = chips.parse_topology(name)
  return topology.chip, roofline.Rates(
      topology, torus(*topology.shape).reshape(shape))


def test_a_segment_takes_as_long_as_its_slowest():
  chip, found = rates("v5p:4x4x4", (4, 16, 1))
  work = Work(flops=chip.flops * 3, hbm_bytes=chip.hbm_bandwidth * 2)
  # a ring of 4: 3/4 of the array, both directions
  work.collectives["all-gather", (0,)] = chip.link_bandwidth * 2 * 4 / 3
  seconds = found.seconds_of(work)
  np.testing.assert_allclose(
      [seconds[n] for n in ("compute", "HBM", "ICI", "network")], [3, 2, 1, 0])
  line = found.roofline([Segment("", 5, work)])
  np.testing.assert_allclose(line.seconds, 15)
  assert line.bound == "compute"


def test_segments_do_not_overlap():
  chip, found = rates("v5p:4x4x4", (4, 16, 1))
  line = found.roofline([
      Segment("", 1, Work(flops=chip.flops)),
      Segment("", 1, Work(hbm_bytes=2 * chip.hbm_bandwidth))])
  np.testing.assert_allclose(line.seconds, 3)
  assert line.bound == "HBM"


def test_collectives_over_other_dimensions_overlap():
  chip, found = rates("v5p:4x4x4", (4, 4, 4))
  work = Work()
  for axis in range(3):
    work.collectives["reduce-scatter", (axis,)] = chip.link_bandwidth
  alone = Work()
  alone.collectives["reduce-scatter", (1,)] = chip.link_bandwidth
  assert found.seconds_of(work)["ICI"] == found.seconds_of(alone)["ICI"] > 0


@pytest.mark.parametrize("kind, expected", [
    ("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-reduce", 1.5),
    ("all-to-all", 0.75), ("collective-permute", 1.0), ("one-to-one", 1.0)])
def test_what_one_of_four_sends(kind, expected):
  assert roofline.factor(kind, 4) == expected
  assert roofline.factor(kind, 1) == 0


def test_a_kind_that_is_not_known():
  with pytest.raises(PlanError, match="of the kind 'broadcast'"):
    roofline.factor("broadcast", 4)


def test_an_exchange_is_held_up_by_the_middle_of_the_torus():
  """8 x 8 chips: half of what 32 have goes over 16 links, both ways."""
  topology = chips.parse_topology("v5p:8x8x1")
  found = roofline.Rates(topology, torus(8, 8, 1).reshape(1, 64, 1))
  work = Work()
  work.collectives["all-to-all", (1,)] = 1e9
  middle = 32 * 1e9 / 2 / (16 * topology.chip.link_bandwidth)
  np.testing.assert_allclose(found.seconds_of(work)["ICI"], middle)


def test_a_permutation_takes_one_dimension():
  topology = chips.parse_topology("v5p:4x4x4")
  found = roofline.Rates(topology, torus(4, 4, 4).reshape(4, 16, 1))
  work = Work()
  work.collectives["collective-permute", (1,)] = 1e9
  np.testing.assert_allclose(
      found.seconds_of(work)["ICI"], 1e9 / (2 * topology.chip.link_bandwidth))
