"""Goldens of the schedules and of Adam."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import optimizer


def _first_step(gradient, **overrides):
  settings = dict(
      b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.0, clip_norm=float("inf"))
  tx = optimizer.make_adam(1.0, **(settings | overrides))
  params = {"w": jnp.zeros(1)}
  updates, _ = jax.jit(tx.update)(
      {"w": jnp.array([gradient])}, tx.init(params), params)
  return updates["w"][0]


def _tensorflow_first_step(gradient, b1=0.9, b2=0.95, eps=1e-5):
  """Kingma and Ba's "epsilon hat": eps is added before the bias correction."""
  moment, second_moment = (1 - b1) * gradient, (1 - b2) * gradient**2
  learning_rate = np.sqrt(1 - b2) / (1 - b1)
  return -learning_rate * moment / (np.sqrt(second_moment) + eps)


class ScheduleTest(parameterized.TestCase):

  @parameterized.parameters((0, 9.65e-6), (500, 5.3075e-6), (1000, 9.65e-7))
  def test_cosine_golden(self, step, expected):
    schedule = optimizer.cosine_to_fraction(9.65e-6, 1000)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)

  def test_cosine_warmup_joins_without_a_jump(self):
    schedule = optimizer.cosine_to_fraction(
        1.0, 24, final_fraction=0.0, warmup_steps=4)
    rates = [schedule(step) for step in range(6)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    self.assertLess(rates[5], 1.0)
    np.testing.assert_allclose(schedule(14), 0.5, rtol=1e-6)
    np.testing.assert_allclose(schedule(24), 0.0, atol=1e-7)

  def test_cosine_needs_a_step_after_the_warmup(self):
    with self.assertRaisesRegex(ValueError, "num_steps=5"):
      optimizer.cosine_to_fraction(1.0, 5, warmup_steps=5)

  def test_ppo_warmup_golden(self):
    schedule = optimizer.ppo_warmup(2e-6, steps_per_iter=8)
    expected = [.10, .19, .28, .37, .46, .55, .64, .73, .82, .91, 1.0, 1.0]
    for iteration, fraction in enumerate(expected):
      for step in (8 * iteration, 8 * iteration + 7):
        np.testing.assert_allclose(
            schedule(step), 2e-6 * fraction, rtol=1e-6, err_msg=f"{step=}")
    np.testing.assert_allclose(schedule(4000), 2e-6, rtol=1e-6)

  def test_ppo_without_warmup_is_constant(self):
    schedule = optimizer.ppo_warmup(2e-6, steps_per_iter=8, warmup_iters=0)
    np.testing.assert_allclose([schedule(0), schedule(9)], 2e-6, rtol=1e-6)

  def test_ppo_warmup_rejects_empty_iterations(self):
    with self.assertRaisesRegex(ValueError, "steps_per_iter=0"):
      optimizer.ppo_warmup(2e-6, steps_per_iter=0)


class AdamTest(parameterized.TestCase):

  @parameterized.parameters((1e-5, -0.5, -0.18274), (1e-3, -0.99010, -0.95719))
  def test_first_step_golden(self, gradient, expected, tensorflow):
    np.testing.assert_allclose(_first_step(gradient), expected, atol=1e-5)
    np.testing.assert_allclose(
        _tensorflow_first_step(gradient), tensorflow, atol=1e-5)

  def test_clips_before_adam(self):
    # Clipped to 1e-5, where eps halves the step; unclipped it would be -1.
    np.testing.assert_allclose(
        _first_step(1e3, clip_norm=1e-5), -0.5, rtol=1e-4)

  def test_decays_matrices_only(self):
    params = {
        "embedding": jnp.ones((2, 3)),
        "up": {"kernel": jnp.ones((4, 2, 3)), "bias": jnp.ones((4, 3))},
        "norm": {"scale": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    }
    tx = optimizer.make_adam(
        0.5, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    zeros = optax.tree.zeros_like(params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["embedding"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["up"]["kernel"], -0.05, rtol=1e-6)
    # Stacked over layers, these have two axes and are still not matrices.
    np.testing.assert_array_equal(updates["up"]["bias"], 0.0)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)
    np.testing.assert_array_equal(updates["norm"]["bias"], 0.0)

  def test_follows_the_schedule(self):
    tx = optimizer.make_adam(
        optimizer.ppo_warmup(1.0, steps_per_iter=1),
        b1=0.0, b2=0.0, eps=0.0, weight_decay=0.0, clip_norm=float("inf"))
    params = {"w": jnp.zeros(1)}
    state = tx.init(params)
    for fraction in (0.10, 0.19, 0.28):
      updates, state = jax.jit(tx.update)({"w": jnp.ones(1)}, state, params)
      np.testing.assert_allclose(updates["w"], -fraction, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
