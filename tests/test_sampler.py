"""Laws of the decode layout: what no device ever holds."""

import math
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import rollout, run, sharding
from tests import tiny

BATCH, PROMPT, RESPONSE = 48, 5, 6
# No two sizes are alike: 8 heads of 3, width 24, 40 rows of vocabulary, caches
# of 11 places.
MODEL = tiny.policy(num_heads=8, d_model=24, context_length=16)
NUM_LAYERS = MODEL.config.num_layers


def _abstract_params(mesh, axis_rules, is_unstacked=False):
  def params():
    made = run.init_params(MODEL, jax.random.key(0))
    return rollout.unstacked(made, NUM_LAYERS) if is_unstacked else made

  abstract = jax.eval_shape(params)
  return sharding.abstract_with(
      abstract, sharding.shardings_for(abstract, mesh, axis_rules))


def _abstract_rows(mesh):
  """The key and rows of a call, as training has them."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  by_batch = sharding.batch_sharding(mesh, tiny.RULES["large"])
  rows = [
      jax.ShapeDtypeStruct(shape, dtype, sharding=by_batch)
      for shape, dtype in (((BATCH, PROMPT), jnp.int32),
                           ((BATCH, PROMPT), jnp.bool_), ((BATCH,), jnp.int32))]
  return key, *rows


def _shapes(program):
  """The shapes of all arrays of a compiled program: those of one device."""
  found = re.findall(r"(?:f32|s32|u32|pred)\[([\d,]+)\]", program.as_text())
  return {tuple(map(int, shape.split(","))) for shape in found}


class DecodeLayoutTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    tiny.in_a_hurry(self)

  @parameterized.parameters(("fsdp_tensor", 2), ("all_axes", 1))
  def test_no_device_holds_a_whole(self, name, num_parts):
    mesh = tiny.make_mesh(name)
    data, fsdp, tensor = tiny.MESHES[name]
    rows, heads = BATCH // data // num_parts, 8 // (fsdp * tensor)
    generate = tiny.make_generate(MODEL, mesh, "large", RESPONSE, num_parts)
    with sharding.use(mesh, tiny.RULES["large"]):
      sample = _shapes(generate.sample.lower(
          _abstract_params(mesh, tiny.DECODE_RULES["large"], is_unstacked=True),
          *_abstract_rows(mesh)).compile())
    length = PROMPT + RESPONSE
    caches = {s for s in sample if len(s) == 4 and s[2:] == (length, 3)}
    self.assertEqual(caches, {(rows, heads, length, 3)})
    # nor do rows move to where training wants them and back at every token
    self.assertEqual(
        {s[0] for s in sample if s[1:] == (1, 24)}, {rows, rows * PROMPT})
    # logits and noise: no row has its whole vocabulary
    self.assertIn((rows, 40 // (fsdp * tensor)), sample)
    self.assertEmpty({
        s for s in sample if s[-1] == 40 and max(s[:-1], default=1) > 1
        and s[0] >= rows})

  @parameterized.parameters("fsdp_tensor", "all_axes")
  def test_refilled_slots_stay_in_their_shards(self, name):
    mesh = tiny.make_mesh(name)
    data, fsdp, tensor = tiny.MESHES[name]
    generate = tiny.make_generate(
        MODEL, mesh, "large", RESPONSE, num_parts=2, refills=True)
    with sharding.use(mesh, tiny.RULES["large"]):
      program = generate.sample.lower(
          _abstract_params(mesh, tiny.DECODE_RULES["large"], is_unstacked=True),
          *_abstract_rows(mesh)).compile()
    rows, heads = BATCH // data // 2, 8 // (fsdp * tensor)
    largest = rows * heads * (PROMPT + RESPONSE) * 3  # a cache's part
    caches = {s for s in _shapes(program)
              if len(s) == 4 and s[1:] == (heads, PROMPT + RESPONSE, 3)}
    self.assertIn((rows, heads, PROMPT + RESPONSE, 3), caches)
    for shape in _shapes(program):
      if shape[-2:] == (PROMPT + RESPONSE, 3):
        self.assertLessEqual(math.prod(shape), largest, shape)

  def test_refilled_slots_on_a_mesh_change_no_response(self):
    mesh = tiny.make_mesh("all_axes")
    rows = (*tiny.prompts(BATCH, PROMPT), np.arange(BATCH, dtype=np.int32))
    found = []
    for refills in (False, True):
      generate = tiny.make_generate(
          MODEL, mesh, "large", RESPONSE, num_parts=2, refills=refills)
      with sharding.use(mesh, tiny.RULES["large"]):
        params, _ = tiny.shard(tiny.params(MODEL), mesh, tiny.RULES["large"])
        names = ("prompt_tokens", "prompt_mask", "row_ids")
        put = sharding.put_batch(
            dict(zip(names, rows)), mesh, tiny.RULES["large"])
        found.append(jax.device_get(generate(params, jax.random.key(3), put)))
    for name in ("prompt_tokens", "response_tokens", "response_mask"):
      np.testing.assert_array_equal(
          getattr(found[0], name), getattr(found[1], name), name)
    np.testing.assert_allclose(
        found[0].logprobs, found[1].logprobs, atol=1e-5)

  @parameterized.parameters("data", "data_fsdp", "fsdp_tensor", "all_axes")
  def test_moving_parameters_makes_none_whole(self, name):
    mesh = tiny.make_mesh(name)
    generate = tiny.make_generate(MODEL, mesh, "large", RESPONSE)
    with sharding.use(mesh, tiny.RULES["large"]):
      program = generate.to_decode_layout.lower(
          _abstract_params(mesh, tiny.RULES["large"])).compile()
    _, fsdp, tensor = tiny.MESHES[name]
    # the largest matrix of a block, cut over the mesh axes that cut it in
    # decoding, or the part of the stack that a device has in training
    moved, held = 24 * 96 // (fsdp * tensor), 2 * 24 * 96 // math.prod(
        n for n in tiny.MESHES[name])
    for shape in _shapes(program):
      self.assertLessEqual(math.prod(shape), max(moved, held), shape)
    self.assertIn(moved, map(math.prod, _shapes(program)))

  def test_is_cast_and_moved(self):
    mesh = tiny.make_mesh("all_axes")
    generate = tiny.make_generate(MODEL, mesh, "large", RESPONSE)
    with sharding.use(mesh, tiny.RULES["large"]):
      params, shardings = tiny.shard(
          rollout.unstacked(tiny.params(MODEL), NUM_LAYERS), mesh,
          tiny.DECODE_RULES["large"])
      source, _ = tiny.shard(tiny.params(MODEL), mesh, tiny.RULES["large"])
      moved = generate.to_decode_layout(source)
    self.assertEqual(sharding.shardings_of(moved), shardings)
    for found, expected in zip(
        jax.tree.leaves(moved), jax.tree.leaves(params)):
      self.assertTrue((found == expected).all())


if __name__ == "__main__":
  absltest.main()
