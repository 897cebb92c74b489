"""Laws of microbatches: parts are the whole, and sums over them too."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import sharding, train_state
from tests import tiny


class RowsTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4, 12)
  def test_merge_is_the_inverse_of_split(self, num_parts):
    batch = {"x": jnp.arange(36).reshape(12, 3), "y": jnp.arange(12.0)}
    parts = train_state.split_rows(batch, num_parts)
    self.assertEqual(parts["x"].shape, (num_parts, 12 // num_parts, 3))
    np.testing.assert_array_equal(np.sort(parts["y"].ravel()), batch["y"])
    np.testing.assert_array_equal(parts["x"][..., 0], 3 * parts["y"])
    chex.assert_trees_all_equal(train_state.merge_rows(parts), batch)

  def test_rows_must_divide(self):
    with self.assertRaisesRegex(ValueError, "12 rows.*into 5"):
      train_state.split_rows(jnp.ones((12, 3)), 5)

  @parameterized.parameters("data", "all_axes")
  def test_cutting_a_sharded_batch_moves_no_data(self, name):
    mesh, mesh_in_use = tiny.use_mesh(name)
    rows = np.arange(96).reshape(32, 3)
    with mesh_in_use:
      batch = sharding.put_batch(rows, mesh, tiny.AXIS_RULES)
      split = jax.jit(
          lambda x: train_state.split_rows(x, 4)).lower(batch).compile()
      merge = jax.jit(train_state.merge_rows)
      parts = split(batch)
      merged = merge.lower(parts).compile()
      for program in (split, merged):
        self.assertNotRegex(
            program.as_text(), "all-gather|all-to-all|collective|all-reduce")
      np.testing.assert_array_equal(merged(parts), rows)
    num_shards = sharding.batch_shards(mesh.shape, tiny.AXIS_RULES)
    self.assertEqual(
        parts.addressable_shards[0].data.shape, (4, 8 // num_shards, 3))


class AccumulateTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4, 12)
  def test_sums_and_maxima_do_not_depend_on_the_parts(self, num_parts):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)

    def function(part, number):
      del number
      return {"total": part.sum(0), "count": jnp.float32(part.shape[0]),
              "max": {"of_all": part.max()}}

    found = jax.jit(
        lambda x: train_state.accumulate(function, x, num_parts))(x)
    expected = {"total": x.sum(0), "count": 12.0, "max": {"of_all": x.max()}}
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)

  @parameterized.parameters(1, 2, 4)
  def test_every_part_has_its_number(self, num_parts):
    numbers = train_state.accumulate(
        lambda part, number: jnp.zeros(4, jnp.int32).at[number].add(1),
        jnp.zeros((4, 1)), num_parts)
    np.testing.assert_array_equal(
        numbers, [1] * num_parts + [0] * (4 - num_parts))


class ApplyGradientsTest(parameterized.TestCase):

  def test_one_step_of_sgd(self):
    tx = optax.sgd(0.5)
    state = train_state.create({"w": jnp.array([1.0, 2.0])}, tx)
    done = train_state.apply_gradients(
        state.params, state.opt_state, {"w": jnp.array([2.0, -2.0])}, tx,
        jnp.float32(1.0))
    np.testing.assert_array_equal(done.params["w"], [0.0, 3.0])
    np.testing.assert_allclose(done.grad_norm, 8**0.5)
    self.assertTrue(done.is_applied)

  @parameterized.product(
      where=("loss", "gradient", "parameter"), value=(np.nan, np.inf))
  def test_what_is_not_finite_is_not_applied_and_counted(self, where, value):
    tx = optax.adam(0.5)
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(0.0)}
    if where == "parameter":
      params["b"] = jnp.array(value)
    state = train_state.create(params, tx)
    good = {"w": jnp.array([2.0, -2.0]), "b": jnp.array(1.0)}
    bad = good | ({"b": jnp.array(value)} if where == "gradient" else {})
    loss = jnp.float32(value if where == "loss" else 1.0)
    after, values = jax.jit(
        lambda s: train_state.update(s, bad, tx, loss))(state)
    chex.assert_trees_all_equal(
        (after.params, after.opt_state), (state.params, state.opt_state))
    self.assertEqual(
        (after.step, values["train/skipped"], values["train/skipped_in_a_row"]),
        (1, 1, 1))
    if where != "parameter":
      after, values = train_state.update(after, good, tx, jnp.float32(1.0))
      self.assertFalse((after.params["w"] == state.params["w"]).any())
      self.assertEqual((values["train/skipped"],
                        values["train/skipped_in_a_row"]), (1, 0))


if __name__ == "__main__":
  absltest.main()
