"""Laws of reward model and critic: where they are read, and from what made."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import scoring
from rlhf_jax.models import scalar
from tests import tiny


@functools.partial(jax.jit, static_argnums=0)
def _values(model, params, tokens, mask):
  return model.apply({"params": params}, tokens, mask)


@functools.cache
def _scores(model):
  return jax.jit(scoring.make_scores(model))


class PaddingTest(parameterized.TestCase):

  @parameterized.parameters(("float32", 1e-5), ("bfloat16", 2e-2))
  def test_moves_no_value_and_no_score(self, dtype, tolerance):
    model = tiny.scalar(dtype=dtype)
    params, row = tiny.params(model), tiny.tokens(7)
    # Row p: p pads on the left, 5 - p on the right, noise under all of them.
    tokens, mask = tiny.tokens(6, 12, seed=1), np.zeros((6, 12), bool)
    for p in range(6):
      tokens[p, p:p + 7], mask[p, p:p + 7] = row, True
    values = _values(model, params, tokens, mask)
    self.assertEqual(values.dtype, jnp.float32)
    scores = _scores(model)(params, tokens, mask)
    expected = _values(model, params, row[None], np.ones((1, 7), bool))[0]
    self.assertGreater(expected.std(), 0.1)
    for p in range(6):
      np.testing.assert_allclose(
          values[p, p:p + 7], expected, atol=tolerance)
    np.testing.assert_allclose(
        scores, np.full(6, expected[-1]), atol=tolerance)


class ReadingTest(parameterized.TestCase):

  def test_at_last_token(self):
    values = jnp.arange(15.0).reshape(3, 5)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(
        scalar.at_last_token(values, mask), [4.0, 6.0, 13.0])

  def test_packed_scores_are_those_of_each_text_alone(self):
    model = tiny.scalar()
    params = tiny.params(model)
    tokens, mask = tiny.prompts(6, 12)
    alone = _scores(model)(params, tokens, mask)
    texts = [row[real] for row, real in zip(tokens, mask)]
    rows = np.full((1, 2, 36), tiny.PAD_ID, np.int32)
    marks = np.zeros((1, 2, 36), np.int32)
    last_token = np.zeros((1, 2, 3), np.int32)
    for row in range(2):
      end = 0
      for k, text in enumerate(texts[3 * row:3 * row + 3]):
        start, end = end, end + len(text)
        rows[0, row, start:end], marks[0, row, start:end] = text, k + 1
        last_token[0, row, k] = 36 * row + end - 1
    for num_row_parts in (1, 2):
      packed = jax.jit(scoring.make_packed_scores(model, num_row_parts))(
          params, rows, marks, last_token)
      np.testing.assert_allclose(
          packed[0].ravel(), alone, rtol=1e-4, atol=1e-5)

  def test_parts_of_the_rows_do_not_change_the_gradient(self):
    model = tiny.scalar()
    params = tiny.params(model)
    tokens, mask = (x.reshape(2, 3, 12) for x in tiny.prompts(6, 12))
    last_token = np.array([[[11, 23, 35]], [[11, 23, 35]]])

    def gradient(num_row_parts):
      scores = scoring.make_packed_scores(model, num_row_parts)
      weights = np.arange(6.0).reshape(2, 1, 3) - 2
      return jax.jit(jax.grad(lambda p: (weights * scores(
          p, tokens, mask, last_token)).sum()))(params)

    chex.assert_trees_all_close(
        gradient(3), gradient(1), rtol=1e-4, atol=1e-5)


class HeadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.model = tiny.scalar()
    self.params = tiny.params(self.model)
    self.tokens, self.mask = tiny.prompts(6, 12)

  def test_starts_at_one_over_width(self):
    init = lambda key: scalar.Head().init(key, jnp.ones(16))["params"]
    heads = tiny.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), 1000))
    np.testing.assert_allclose(heads["kernel"].std(), 17**-0.5, rtol=0.02)
    np.testing.assert_array_equal(heads["bias"], 0.0)

  def test_shift_and_scale_centres_and_keeps_the_order(self):
    scores = _scores(self.model)
    far = scalar.shift_and_scale(self.params, bias=-2.0, scale=1.5)
    before = np.asarray(scores(far, self.tokens, self.mask))
    mean, sd = before.mean(), before.std()
    self.assertGreater(mean, 2.0)
    moved = scalar.shift_and_scale(far, bias=mean, scale=1 / sd)
    after = scores(moved, self.tokens, self.mask)
    np.testing.assert_allclose(after, (before - mean) / sd, atol=1e-5)
    np.testing.assert_allclose(after.mean(), 0.0, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(after), np.argsort(before))
    chex.assert_trees_all_equal(
        moved["transformer"], self.params["transformer"])

  def test_body_of_a_policy(self):
    policy = tiny.policy()
    body = tiny.params(policy, seed=1)
    params = scalar.from_policy(self.params, body)
    hidden = tiny.jit(functools.partial(policy.apply, method="hidden"))(
        {"params": body}, self.tokens, self.mask)
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(
        _values(self.model, params, self.tokens, self.mask), expected,
        atol=1e-5)
    chex.assert_trees_all_equal(params["head"], self.params["head"])


if __name__ == "__main__":
  absltest.main()
