"""Laws of pytree names, sizes and averages."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import tree


def _params():
  return {
      "mlp": {"up": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)}},
      "scale": jnp.array(1.0, jnp.bfloat16),
  }


class TreeTest(parameterized.TestCase):

  def test_names_follow_leaf_order(self):
    self.assertEqual(
        tree.names(_params()), ["mlp/up/bias", "mlp/up/kernel", "scale"])

  def test_sizes_of_real_and_abstract_trees(self):
    for params in (_params(), jax.eval_shape(_params)):
      self.assertEqual(tree.num_params(params), 10)
      self.assertEqual(tree.num_bytes(params), 9 * 4 + 2)

  def test_global_norm(self):
    norm = tree.global_norm(_params())
    np.testing.assert_allclose(norm, np.sqrt(6 * 4 + 3 + 1), rtol=1e-6)
    self.assertEqual(norm.dtype, jnp.float32)
    self.assertEqual(tree.global_norm({}), 0.0)
    # 300 ones: a bfloat16 sum would stop at 256.
    ones = {"a": jnp.ones(300, jnp.bfloat16)}
    np.testing.assert_allclose(tree.global_norm(ones), np.sqrt(300), rtol=1e-6)

  @parameterized.parameters(0, 1, 10, 500)
  def test_ema_error_decays_geometrically(self, num_updates):
    target = {"w": jnp.array([3.0, -1.0])}
    start = {"w": jnp.zeros(2)}
    average = jax.lax.fori_loop(
        0, num_updates, lambda _, old: tree.ema(old, target, 0.992), start)
    error = (target["w"] - average["w"]) / target["w"]
    np.testing.assert_allclose(
        error, np.full(2, 0.992**num_updates), rtol=1e-4)

  def test_ema_fixed_point_and_dtype(self):
    params = _params()
    average = tree.ema(params, params, 0.992)
    chex.assert_trees_all_equal(average, params)
    chex.assert_trees_all_equal_dtypes(average, params)

  def test_add_and_scale_are_linear(self):
    params = _params()
    double = tree.add(params, params)
    chex.assert_trees_all_equal(double, tree.scale(params, 2.0))
    scaled = tree.scale(params, jnp.float32(2.0))
    chex.assert_trees_all_equal_dtypes(scaled, params)

  @parameterized.parameters((0.0, True), (jnp.nan, False), (jnp.inf, False))
  def test_all_finite(self, value, expected):
    params = {"a": jnp.array([1.0, value]), "step": jnp.array(3)}
    self.assertEqual(bool(tree.all_finite(params)), expected)

  def test_structures_must_agree(self):
    with self.assertRaises(AssertionError):
      tree.add({"a": jnp.ones(2)}, {"a": jnp.ones(3)})


if __name__ == "__main__":
  absltest.main()
