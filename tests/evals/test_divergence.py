"""The exact KL is the KL of whole responses, by enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.evals import divergence
from rlhf_jax.models.policy import Policy
from rlhf_jax.rollout import Rollout
from tests import tiny

EOS, PAD = 0, 4
PROMPT = [[1, 3]]


@functools.cache
def models():
  """A policy of 4 tokens, and two sets of its parameters."""
  model = Policy(tiny.config(vocab_size=4, vocab_multiple=8))
  return model, tiny.params(model, seed=0), tiny.params(model, seed=1)


def rollout_of(responses):
  """Responses of at most 2 tokens to the one prompt."""
  rows = len(responses)
  tokens = np.array([r + [PAD] * (2 - len(r)) for r in responses], np.int32)
  return Rollout(
      prompt_tokens=np.repeat(np.array(PROMPT, np.int32), rows, 0),
      prompt_mask=np.ones((rows, 2), bool),
      response_tokens=tokens, response_mask=tokens != PAD,
      logprobs=np.zeros((rows, 2), np.float32))


def every_response():
  """All that can be sampled with T = 2: [EOS], and [a, b] for a != EOS."""
  return [[EOS]] + [[a, b] for a in (1, 2, 3) for b in range(4)]


@functools.cache
def log_probabilities(seed, temperature):
  """log p(response | prompt) of every response, by next-token tables."""
  model, params = models()[0], models()[1 + seed]
  seen = jnp.array([PROMPT[0] + [a] for a in range(4)], jnp.int32)
  logits = jax.jit(lambda p, x: model.apply({"params": p}, x, x >= 0))(
      params, seen)
  table = np.array(jax.nn.log_softmax(logits[..., :4] / temperature))
  first, second = table[0, 1], table[:, 2]  # [V], [V, V]
  return np.array([
      first[r[0]] + (second[r[0], r[1]] if len(r) > 1 else 0)
      for r in every_response()])


def kl_of(params, reference, rollout, temperature=1.0):
  return jax.jit(divergence.make_kl(models()[0], temperature))(
      params, reference, rollout)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_its_mean_over_samples_is_the_kl_of_the_responses(temperature):
  _, params, reference = models()
  exact, sampled = kl_of(
      params, reference, rollout_of(every_response()), temperature)
  ours, theirs = (log_probabilities(seed, temperature) for seed in (0, 1))
  assert np.exp(ours).sum() == pytest.approx(1, abs=1e-5)
  kl = (np.exp(ours) * (ours - theirs)).sum()
  assert kl > 0.01
  np.testing.assert_allclose(sampled, ours - theirs, atol=1e-5)
  assert (np.exp(ours) * exact).sum() == pytest.approx(kl, abs=1e-5)
  assert (exact >= 0).all() and (sampled < 0).any()
  # it varies less than the sampled log-ratio
  spread = lambda x: (np.exp(ours) * (x - kl)**2).sum()
  assert spread(exact) < spread(sampled)


def test_of_a_policy_to_itself_is_zero():
  _, params, _ = models()
  for kl in kl_of(params, params, rollout_of(every_response())):
    np.testing.assert_array_equal(kl, 0)


def test_what_follows_the_end_does_not_count():
  _, params, reference = models()
  ended = rollout_of([[EOS], [1, EOS]])
  shown = ended.replace(response_tokens=np.where(
      ended.response_mask, ended.response_tokens, 2))
  for a, b in zip(kl_of(params, reference, ended),
                  kl_of(params, reference, shown)):
    np.testing.assert_allclose(a, b, atol=1e-6)
