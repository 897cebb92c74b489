"""Log-probabilities in parts are those in one, with less memory."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax.models.policy import Policy
from tests import tiny

BATCH, LENGTH = 4, 13


def _loss(model):
  """(its parameters, hidden) -> a weighted sum of log-probabilities."""
  tokens = tiny.tokens(BATCH, LENGTH)
  weights = np.cos(np.arange(BATCH * LENGTH)).reshape(BATCH, LENGTH)
  return lambda params, hidden: (weights * model.apply(
      {"params": params}, hidden, tokens, 0.7, method="logprobs")).sum()


def _compiled(model, num_tokens=LENGTH):
  params = tiny.params(model)
  hidden = np.sin(np.arange(BATCH * num_tokens * 16)).reshape(
      BATCH, num_tokens, 16).astype(np.float32)
  return jax.jit(jax.value_and_grad(_loss(model), argnums=(0, 1))).lower(
      params, hidden).compile(), (params, hidden)


class LogitPartsTest(parameterized.TestCase):

  @parameterized.product(parts=(2, 5, 13), tied=(True, False))
  def test_value_and_gradients_are_the_same(self, parts, tied):
    def found(parts):
      function, args = _compiled(Policy(tiny.config(
          logit_parts=parts, tied_unembedding=tied)))
      return function(*args)
    for one, other in zip(
        jax.tree.leaves(found(1)), jax.tree.leaves(found(parts))):
      np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)

  def test_no_more_than_a_part_of_the_logits_is_held(self):
    held = lambda parts: _compiled(Policy(tiny.config(
        vocab_size=5_000, logit_parts=parts)))[0].memory_analysis(
            ).temp_size_in_bytes
    whole = 4 * BATCH * LENGTH * 5_000
    self.assertGreater(held(1), whole)
    self.assertLess(held(13), held(1) - 0.8 * whole)


if __name__ == "__main__":
  absltest.main()
