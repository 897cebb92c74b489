"""What compiled modules cost, against what is known of small ones."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from rlhf_jax.plan import costs, hlo

L, N, D = 6, 32, 64


def counted(function, *args, mesh_shape=(1, 1, 1), scopes=()):
  text = jax.jit(function).lower(*args).compile().as_text()
  return costs.count(hlo.parse(text), mesh_shape, scopes)


def scanned(weights, x):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def unrolled(weights, x):
  for w in weights:
    x = jnp.tanh(x @ w)
  return x


WEIGHTS = jax.ShapeDtypeStruct((L, D, D), jnp.float32)
X = jax.ShapeDtypeStruct((N, D), jnp.float32)


def test_loops_count_as_often_as_they_run():
  forward = 2 * L * N * D * D
  for function in (scanned, unrolled):
    assert costs.total(counted(function, WEIGHTS, X)).flops == forward
  loss = lambda function: jax.grad(lambda w, x: function(w, x).sum())
  # dx of the first layer is nobody's
  for function in (scanned, unrolled):
    backward = costs.total(counted(loss(function), WEIGHTS, X)).flops
    assert abs(backward - 3 * forward) <= forward / L


def test_loops_within_loops():
  twice = lambda w, xs: jax.lax.map(lambda x: scanned(w, x), xs)
  xs = jax.ShapeDtypeStruct((5, N, D), jnp.float32)
  assert costs.total(counted(twice, WEIGHTS, xs)).flops == 5 * (
      2 * L * N * D * D)


def test_a_stack_that_is_sliced_is_read_once():
  """Not once a step: each reads its slice of the weights."""
  work = costs.total(counted(scanned, WEIGHTS, X))
  weights, activations = 4 * L * D * D, 4 * L * N * D
  assert weights < work.hbm_bytes < 4 * (weights + 4 * activations)


def test_scopes_part_the_work_also_inside_loops():
  def both(weights, x):
    with jax.named_scope("score"):
      x = scanned(weights[:2], x)
    with jax.named_scope("update"):
      return scanned(weights, x)

  segments = counted(both, WEIGHTS, X, scopes=("score", "update"))
  flops = lambda scope: costs.total(
      [s for s in segments if s.scope == scope]).flops
  assert flops("score") == 2 * 2 * N * D * D
  assert flops("update") == L * 2 * N * D * D
  assert flops("") == 0


@pytest.fixture(name="mesh", scope="module")
def _mesh():
  return jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"),
                       axis_types=(AxisType.Auto,) * 3)


def placed(mesh, shape, *spec):
  return jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def test_collectives_by_axis(mesh):
  """Weights cut over fsdp are gathered there each step; a sum over all rows
  runs over both axes that cut them."""
  def total(weights, x):
    return scanned(weights, x).sum()

  work = costs.total(counted(
      total, placed(mesh, (L, D, D), None, "fsdp"),
      placed(mesh, (N, D), ("data", "fsdp")), mesh_shape=(2, 4, 1)))
  assert work.collectives["all-gather", (1,)] == 4 * L * D * D
  assert work.collectives["all-reduce", (0, 1)] == 4  # one number
  assert work.flops == 2 * L * N * D * D / 8


def test_work_of_one_device_times_devices_is_all_the_work(mesh):
  apart = costs.total(counted(
      scanned, placed(mesh, (L, D, D)), placed(mesh, (N, D), "data"),
      mesh_shape=(2, 4, 1)))
  assert apart.flops == 2 * L * N * D * D / 2  # fsdp repeats it


def test_products_written_as_convolutions():
  """As TPUs have them: `valid taps` of a batched product are its batches."""
  text = """ENTRY %main (a: f32[8,16,32], b: f32[8,32,24]) -> f32[8,16,24] {
  %a = f32[8,16,32]{2,1,0} parameter(0)
  %b = f32[8,32,24]{2,1,0} parameter(1)
  ROOT %c = f32[8,16,24]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""
  segments = costs.count(hlo.parse(text), (1, 1, 1), ())
  assert costs.total(segments).flops == 2 * 8 * 16 * 32 * 24


def test_valid_taps_by_a_loop():
  rng = np.random.default_rng(0)
  for _ in range(50):
    length, taps, stride, left, right, pad = rng.integers(1, 6, 6)
    padded = np.zeros((length - 1) * left + 1 + 2 * pad)
    padded[pad:pad + (length - 1) * left + 1:left] = 1
    reach = (taps - 1) * right + 1
    out = (len(padded) - reach) // stride + 1
    if out < 1:
      continue
    expected = sum(
        padded[o * stride + t * right] for o in range(out)
        for t in range(taps))
    assert costs._valid_taps(
        length, out, taps, stride=stride, left_dilation=left,
        right_dilation=right, pad=pad) == expected


def test_a_scattered_reduction_is_one():
  """The TPU compiler writes reduce-scatter as a fusion of a sum and a slice."""
  text = """%all-reduce-scatter.1 (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %sum = f32[64,8]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
  %at = s32[] constant(0)
  ROOT %slice = f32[16,8]{1,0} dynamic-slice(%sum, %at, %at), dynamic_slice_sizes={16,8}
}

ENTRY %main (a: f32[64,8]) -> f32[16,8] {
  %a = f32[64,8]{1,0} parameter(0)
  ROOT %r = f32[16,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  work = costs.total(costs.count(hlo.parse(text), (2, 4, 1), ()))
  assert dict(work.collectives) == {("reduce-scatter", (1,)): 4 * 64 * 8}


def test_a_collective_in_steps_happens_once():
  """Its start stands outside a loop, its steps beside the loop's products:
  all have one channel."""
  step = """  %c{n} = f32[8,4]{{1,0}} all-gather(%{x}), channel_id=3, replica_groups=[1,8]<=[8], dimensions={{0}}
"""
  text = """%body (p: (s32[], f32[1,4])) -> (s32[], f32[1,4]) {
  %p = (s32[], f32[1,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[1,4]{1,0} get-tuple-element(%p), index=1
""" + step.format(n=0, x="x") + """  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[1,4]{1,0}) tuple(%next, %x)
}

%condition (q: (s32[], f32[1,4])) -> pred[] {
  %q = (s32[], f32[1,4]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[1,4]) -> (s32[], f32[1,4]) {
  %a = f32[1,4]{1,0} parameter(0)
""" + step.format(n=1, x="a") + """  %zero = s32[] constant(0)
  %start = (s32[], f32[1,4]{1,0}) tuple(%zero, %a)
  ROOT %loop = (s32[], f32[1,4]{1,0}) while(%start), condition=%condition, body=%body
}
"""
  work = costs.total(costs.count(hlo.parse(text), (1, 8, 1), ()))
  assert dict(work.collectives) == {("all-gather", (1,)): 4 * 8 * 4}
