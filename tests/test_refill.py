"""Refilled slots give every prompt the response that it gets alone."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import refill, rollout
from tests import tiny

NUM, PROMPT, RESPONSE = 24, 5, 9
KEY = jax.random.key(7)


@functools.cache
def _rows():
  return (*tiny.prompts(NUM, PROMPT), np.arange(NUM, dtype=np.int32))


@functools.cache
def _plain(model, eos_id):
  """The rollout in which every prompt has a row from start to end."""
  return jax.device_get(tiny.jit(rollout.make_generate(
      model, response_length=RESPONSE, temperature=1.0, eos_id=eos_id))(
          tiny.params(model), KEY, *_rows()))


@functools.cache
def _end():
  """A token that is sampled often."""
  tokens = _plain(tiny.policy(), -1).response_tokens
  return int(np.bincount(tokens.ravel()).argmax())


class RefillTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(num_parts=3), dict(num_parts=24), dict(num_parts=1),
      dict(num_parts=2, num_groups=2), dict(num_parts=5, num_groups=3),
      dict(num_parts=3, pattern="alternating"))
  def test_the_same_responses(
      self, num_parts, num_groups=1, pattern="dense"):
    model = tiny.policy(attention_pattern=pattern)
    expected = _plain(model, _end())
    lengths = expected.response_mask.sum(-1)
    self.assertGreater(len(set(lengths)), 3)  # some wait for others
    found = jax.device_get(tiny.jit(refill.make_generate(
        model, response_length=RESPONSE, temperature=1.0, eos_id=_end(),
        num_parts=num_parts, num_groups=num_groups))(
            tiny.params(model), KEY, *_rows()))
    for name in ("prompt_tokens", "prompt_mask", "response_tokens",
                 "response_mask"):
      np.testing.assert_array_equal(
          getattr(found, name), getattr(expected, name), name)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
