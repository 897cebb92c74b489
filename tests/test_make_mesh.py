"""Laws of the mesh: its sizes, and which devices are neighbours in it."""

import dataclasses
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import sharding


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(
      ((1, -1, 1), (1, 8, 1)), ((-1, 2, 2), (2, 2, 2)), ((2, 4, 1), (2, 4, 1)))
  def test_one_size_may_be_the_rest(self, sizes, expected):
    data, fsdp, tensor = sizes
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    self.assertEqual(tuple(mesh.shape.values()), expected)

  @parameterized.parameters(
      ((2, 2, 1), "needs 4 devices, but 8"),
      ((3, -1, 1), "needs 6 devices, but 8"),
      ((-1, -1, 1), "at most one is -1"),
      ((0, 8, 1), "sizes are positive"))
  def test_wrong_sizes_raise(self, sizes, message):
    data, fsdp, tensor = sizes
    with self.assertRaisesRegex(ValueError, message):
      sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


@dataclasses.dataclass(frozen=True)
class _Tpu:
  """What the layout of a mesh reads of a TPU device."""

  id: int
  coords: tuple[int, int, int]
  slice_index: int
  core_on_chip: int = 0
  process_index: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v5"


def _slices(num_slices, shape):
  """Devices of slices of a 3D torus, in an order that means nothing."""
  places = itertools.product(range(num_slices), *map(range, shape))
  devices = [_Tpu(i, coords, of) for i, (of, *xyz) in enumerate(places)
             for coords in (tuple(xyz),)]
  return [devices[i] for i in np.random.default_rng(0).permutation(
      len(devices))]


class SliceTest(parameterized.TestCase):

  @parameterized.parameters((8, 8, 1), (64, 1, 1), (2, 4, 8), (1, 16, 4))
  def test_any_sizes_fit_a_torus(self, *sizes):
    devices = _slices(1, (4, 4, 4))
    placed = sharding.arrange(devices, sizes)
    self.assertEqual(placed.shape, sizes)
    self.assertEqual(set(placed.flat), set(devices))

  @parameterized.parameters((2, 4, 2), (4, 2, 2), (16, 1, 1))
  def test_slices_lie_along_data_outermost(self, *sizes):
    devices = _slices(2, (2, 2, 2))
    self.assertEqual(sharding.slice_count(devices), 2)
    placed = sharding.arrange(devices, sizes)
    self.assertEqual(placed.shape, sizes)
    self.assertEqual(set(placed.flat), set(devices))
    half = sizes[0] // 2
    for number in range(2):
      part = placed[number * half:(number + 1) * half]
      self.assertEqual({d.slice_index for d in part.flat}, {number})

  def test_slices_must_divide_data(self):
    with self.assertRaisesRegex(
        ValueError, r"data=1 is not a multiple of the 2 TPU slices.*"
        r"config.mesh.data a multiple of 2.*8 devices of a slice"):
      sharding.make_mesh(
          data=1, fsdp=-1, tensor=1, devices=_slices(2, (2, 2, 2)))

  def test_other_devices_have_no_slices(self):
    self.assertEqual(sharding.slice_count(jax.devices()), 1)


if __name__ == "__main__":
  absltest.main()
