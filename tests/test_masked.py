"""Laws of masked sums, means and whitening."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import masked


class MaskedTest(parameterized.TestCase):

  def test_goldens(self):
    x = jnp.arange(1, 6)
    mask = jnp.array([True, True, False, False, True])
    np.testing.assert_allclose(masked.total(x, mask), 8.0)
    np.testing.assert_allclose(masked.mean(x, mask), 2.666667, rtol=1e-6)
    np.testing.assert_allclose(masked.var(x, mask), 2.888889, rtol=1e-6)

  def test_axis(self):
    x = jnp.array([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(masked.mean(x, mask, axis=1), [1.5, 4.0, 0.0])

  @parameterized.parameters(jnp.nan, jnp.inf, 1e30)
  def test_padding_is_ignored(self, garbage):
    rng = np.random.default_rng(0)
    mask = rng.random((4, 7)) < 0.6
    x = rng.normal(3.0, 2.0, (4, 7)).astype(np.float32)
    dirty = jnp.where(mask, x, garbage)
    real = x[mask].astype(np.float64)
    np.testing.assert_allclose(masked.total(dirty, mask), real.sum(), 1e-5)
    np.testing.assert_allclose(masked.mean(dirty, mask), real.mean(), 1e-5)
    np.testing.assert_allclose(masked.var(dirty, mask), real.var(), 1e-5)
    expected = np.zeros(x.shape)
    expected[mask] = (real - real.mean()) / np.sqrt(real.var() + 1e-8)
    np.testing.assert_allclose(
        masked.whiten(dirty, mask), expected, rtol=1e-5, atol=1e-6)
    # Gradients do not see the padding either.
    gradient = jax.grad(lambda y: masked.var(y, mask))(dirty)
    self.assertTrue(np.isfinite(gradient).all())
    np.testing.assert_array_equal(gradient[~mask], 0.0)

  @parameterized.parameters("total", "mean", "var", "whiten")
  def test_empty_mask_gives_zero(self, name):
    x = jnp.full((2, 3), jnp.nan)
    result = getattr(masked, name)(x, jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(result, np.zeros(result.shape))

  @parameterized.parameters(jnp.bfloat16, jnp.int32, bool)
  def test_results_are_float32(self, dtype):
    x = jnp.ones((300,), dtype)
    mask = jnp.ones((300,), bool)
    for function in (masked.total, masked.mean, masked.var, masked.whiten):
      self.assertEqual(function(x, mask).dtype, jnp.float32)
    # In bfloat16 a sum of ones would stop at 256.
    self.assertEqual(masked.total(x, mask), 300.0)

  def test_whiten_golden_keeps_the_mean(self):
    x = jnp.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    expected = [
        [0.0508, 0.4381, 0.8254],
        [1.2127, 1.6000, 1.9873],
        [2.3746, 2.7619, 3.1492],
    ]
    whitened = masked.whiten(x, jnp.ones(x.shape, bool), shift_mean=False)
    np.testing.assert_allclose(whitened, expected, atol=1e-4)

  def test_whiten_has_mean_zero_and_variance_one(self):
    x = jnp.array([[5.0, 7.0, 100.0], [6.0, 12.0, 100.0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0]], bool)
    whitened = masked.whiten(x, mask)
    np.testing.assert_allclose(masked.mean(whitened, mask), 0.0, atol=1e-6)
    np.testing.assert_allclose(masked.var(whitened, mask), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(whitened[:, 2], 0.0)

  def test_shapes_must_agree(self):
    with self.assertRaises(AssertionError):
      masked.mean(jnp.ones((2, 3)), jnp.ones((3,), bool))


if __name__ == "__main__":
  absltest.main()
