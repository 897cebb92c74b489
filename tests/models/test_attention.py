"""The fused attention kernels give what the plain products give."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from experiments import common
from rlhf_jax import losses
from rlhf_jax import sharding
from rlhf_jax.models import attention
from rlhf_jax.models import transformer
from rlhf_jax.plan import chips
from rlhf_jax.plan import compiling
from rlhf_jax.run import init_params
from tests import tiny

RULES = common.AXIS_RULES


def rows(batch=4, length=24):
  """(tokens, mask) [B, L]: padding on the left, on the right, two texts."""
  tokens = np.asarray(jax.random.randint(
      jax.random.key(1), (batch, length), 0, tiny.VOCAB_SIZE))
  mask = np.ones((batch, length), np.int32)
  mask[0, :5] = 0
  mask[1, -7:] = 0
  mask[2, 10:] = 2
  return tokens, mask


def loss_and_gradient(model, params, tokens, mask):
  """Of every token after one of its own text."""
  real = (mask[:, 1:] > 0) & (mask[:, 1:] == mask[:, :-1])

  def loss(params):
    hidden = model.apply({"params": params}, tokens, mask, method="hidden")
    logprobs = model.apply(
        {"params": params}, hidden[:, :-1], tokens[:, 1:], method="logprobs")
    return losses.lm_loss_sum(logprobs, real)[0]

  return jax.jit(jax.value_and_grad(loss))(params)


def assert_trees_close(got, expected, tolerance):
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance),
      got, expected)


class FlashTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_it_is_the_plain_one_with_its_gradients(self, scale_by_layer):
    make = functools.partial(tiny.policy, scale_by_layer=scale_by_layer)
    plain, flash = make(), make(attention_kernel="flash")
    params = tiny.params(plain)
    expected = loss_and_gradient(plain, params, *rows())
    with pltpu.force_tpu_interpret_mode():
      got = loss_and_gradient(flash, params, *rows())
    assert_trees_close(got, expected, 2e-4)

  def test_every_device_computes_its_own_rows_and_heads(self):
    shape = (4, 2, 24, 8)
    query, key, value = (
        jax.random.normal(jax.random.key(i), shape) for i in range(3))
    _, texts = rows()
    positions = transformer.positions_of(jnp.asarray(texts))
    mask, = transformer.attention_masks(
        tiny.config(), query_positions=positions, key_positions=positions,
        key_mask=jnp.asarray(texts),
        causal=transformer.causal_mask(24) & transformer.same_text(
            jnp.asarray(texts)))
    expected = attention.plain(query, key, value, mask, scale=0.3)
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    with sharding.use(mesh, RULES), pltpu.force_tpu_interpret_mode():
      got = jax.jit(functools.partial(attention.flash, scale=0.3))(
          query, key, value, texts)
    self.assertEqual(
        {shard.data.shape for shard in got.addressable_shards}, {(1, 1, 24, 8)})
    real = np.asarray(texts)[:, None, :, None] > 0
    np.testing.assert_allclose(
        np.where(real, got, 0), np.where(real, expected, 0), atol=2e-5)

  @parameterized.parameters(("flash", True), ("plain", False))
  def test_the_kernel_is_in_the_program_for_a_tpu(self, kernel, is_there):
    topology = chips.parse_topology("v5e:2x2")
    mesh = sharding.make_mesh(
        data=1, fsdp=2, tensor=2, devices=compiling.tpu_devices(topology))
    model = tiny.policy(
        attention_kernel=kernel, dtype="bfloat16", context_length=256,
        d_model=256, num_heads=2)
    abstract = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = sharding.abstract_with(
        abstract, sharding.shardings_for(abstract, mesh, RULES))
    batch = lambda dtype: jax.ShapeDtypeStruct(
        (4, 256), dtype, sharding=sharding.batch_sharding(mesh, RULES))

    def gradient(params, tokens, mask):
      return jax.grad(lambda p: model.apply(
          {"params": p}, tokens, mask).sum())(params)

    with sharding.use(mesh, RULES):
      text = jax.jit(gradient).lower(
          params, batch(jnp.int32), batch(jnp.int32)).compile().as_text()
    self.assertEqual("tpu_custom_call" in text, is_there)
    scores = "[2,1,256,256]"  # a device's, of a block
    self.assertEqual(scores in text, not is_there)


class CudnnTest(absltest.TestCase):

  def test_the_kernel_is_in_the_program_for_a_gpu(self):
    arrays = [jax.ShapeDtypeStruct((2, 4, 64, 64), jnp.bfloat16)] * 3
    mask = jax.ShapeDtypeStruct((2, 64, 64), jnp.bool_)

    def gradient(query, key, value, mask):
      return jax.grad(lambda q: attention.cudnn(
          q, key, value, mask, scale=0.125).astype(jnp.float32).sum())(query)

    # No GPU is here to ask what it can do.
    with mock.patch.multiple(
        "jax._src.cudnn.fused_attention_stablehlo",
        check_cudnn_version=lambda: 91000,
        check_compute_capability=lambda *unused: True,
        is_cuda_compute_capability_equal=lambda *unused: False):
      text = jax.jit(gradient).trace(*arrays, mask).lower(
          lowering_platforms=("cuda",)).as_text()
    self.assertIn("__cudnn$fmhaScaleBiasSoftmax", text)
    self.assertIn("__cudnn$fmhaScaleBiasSoftmaxBackward", text)


if __name__ == "__main__":
  absltest.main()
