"""Laws of sampling: the right distribution, the right noise, the right end."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from rlhf_jax import ppo_step, rollout
from rlhf_jax.models import transformer
from tests import tiny

PATTERNS = ("dense", "alternating")
BATCH, PROMPT, RESPONSE = 96, 5, 8
NEVER = -1  # an end token that is no token
KEY = jax.random.key(7)


@functools.cache
def _generate(model, temperature=1.0, eos_id=NEVER, length=RESPONSE):
  return tiny.jit(rollout.make_generate(
      model, response_length=length, temperature=temperature, eos_id=eos_id))


@functools.partial(tiny.jit, static_argnums=0)
def _logits(model, params, tokens, mask):
  return model.apply({"params": params}, tokens, mask)


@functools.cache
def _endless():
  """(rows, their rollout where nothing ends a response)."""
  model = tiny.policy()
  rows = (*tiny.prompts(BATCH, PROMPT), np.arange(BATCH, dtype=np.int32))
  return rows, jax.device_get(
      _generate(model)(tiny.params(model), KEY, *rows))


@functools.cache
def _ending():
  """(an end token that is sampled often, the rollout that it ends)."""
  model = tiny.policy()
  rows, endless = _endless()
  eos_id = int(np.bincount(endless.response_tokens.ravel()).argmax())
  return eos_id, jax.device_get(
      _generate(model, eos_id=eos_id)(tiny.params(model), KEY, *rows))


class ChoiceTest(absltest.TestCase):

  def test_the_first_of_the_largest(self):
    x = jnp.array(
        [[0., 2., 2., 1.], [3., -jnp.inf, 3., 3.], [-1., -1., -1., 0.]])
    np.testing.assert_array_equal(rollout.first_largest(x), [1, 0, 3])

  def test_samples_are_those_of_categorical(self):
    keys = jax.random.split(KEY, 64)
    logits = jax.random.normal(jax.random.key(1), (64, 50)) * 2
    tokens, _ = rollout.sample_token(keys, logits, 0.7)
    np.testing.assert_array_equal(
        tokens, jax.vmap(jax.random.categorical)(keys, logits / 0.7))


class DistributionTest(parameterized.TestCase):

  @parameterized.parameters(1.0, 0.7)
  def test_pairs_of_tokens_have_the_frequencies_of_softmax(self, temperature):
    model, count = tiny.policy(), 8192
    params, prompt = tiny.params(model), tiny.tokens(4)
    sampled = _generate(model, temperature, length=2)(
        params, KEY, np.tile(prompt, (count, 1)), np.ones((count, 4), bool),
        np.arange(count))
    first, second = np.asarray(sampled.response_tokens).T
    observed = np.zeros((tiny.VOCAB_SIZE, tiny.VOCAB_SIZE))
    np.add.at(observed, (first, second), 1)  # also: no id past the vocabulary

    every_first = np.concatenate(
        [np.tile(prompt, (tiny.VOCAB_SIZE, 1)),
         np.arange(tiny.VOCAB_SIZE)[:, None]], axis=1)
    logits = np.asarray(_logits(
        model, params, every_first, np.ones_like(every_first, bool)),
        np.float64)[..., :tiny.VOCAB_SIZE]

    def p_value(at_temperature):
      probability = np.exp(logits / at_temperature)
      probability /= probability.sum(-1, keepdims=True)
      expected = count * probability[0, 3][:, None] * probability[:, 4]
      is_large = expected >= 5  # smaller cells are pooled
      pool = lambda x: np.append(x[is_large], x[~is_large].sum())
      return scipy.stats.chisquare(pool(observed), pool(expected)).pvalue

    self.assertGreater(p_value(temperature), 1e-3)
    self.assertLess(p_value(1.7 - temperature), 1e-6)  # the other temperature

  def test_padding_is_never_sampled_however_hot(self):
    model = tiny.policy()
    rows, _ = _endless()
    sampled = _generate(model, 100.0)(tiny.params(model), KEY, *rows)
    self.assertLess(sampled.response_tokens.max(), tiny.VOCAB_SIZE)
    self.assertGreater(len(np.unique(sampled.response_tokens)), 30)

  def test_zero_temperature_takes_the_likeliest(self):
    model = tiny.policy()
    params, (rows, _) = tiny.params(model), _endless()
    generate = _generate(model, 0.0)
    sampled = generate(params, KEY, *rows)
    logits = _logits(model, params, sampled.tokens, sampled.mask)
    np.testing.assert_array_equal(
        sampled.response_tokens, logits[:, PROMPT - 1:-1].argmax(-1))
    again = generate(params, jax.random.key(1), *rows)
    np.testing.assert_array_equal(
        sampled.response_tokens, again.response_tokens)


class ScorerTest(parameterized.TestCase):

  @parameterized.product(pattern=PATTERNS, temperature=(1.0, 0.7))
  def test_sampler_and_scorer_agree(self, pattern, temperature):
    difference = self._difference(
        tiny.policy(attention_pattern=pattern), temperature)
    self.assertLess(difference.max(), 1e-4)

  def test_sampler_and_scorer_agree_in_bfloat16(self):
    difference = self._difference(tiny.policy(dtype="bfloat16"), 1.0)
    self.assertLess(difference.mean(), 1e-2)

  def _difference(self, model, temperature):
    """|sampler's log-prob - scorer's| of every real token."""
    params, (rows, _) = tiny.params(model), _endless()
    eos_id, _ = _ending()
    sampled = _generate(model, temperature, eos_id)(params, KEY, *rows)
    logprobs = jax.jit(
        ppo_step.make_response_logprobs(model, temperature), static_argnums=3)
    scored = logprobs(params, sampled.tokens, sampled.mask, RESPONSE)
    mask = np.asarray(sampled.response_mask)
    self.assertGreater((~mask).sum(), 0)
    np.testing.assert_array_equal(sampled.logprobs[~mask], 0.0)
    return np.abs(sampled.logprobs - scored)[mask]

  @parameterized.parameters(*PATTERNS)
  def test_decoding_token_by_token_equals_the_full_forward_pass(self, pattern):
    model = tiny.policy(attention_pattern=pattern)
    params, (_, endless) = tiny.params(model), _endless()
    tokens, mask = endless.tokens[:12], endless.mask[:12]
    positions = transformer.positions_of(mask)

    @tiny.jit
    def decode(params):
      forward = rollout.make_cached_forward(model, params)
      caches = rollout.empty_caches(model.config, 12, PROMPT + RESPONSE)
      is_past = lambda n: mask & (np.arange(PROMPT + RESPONSE) < n)
      masks = lambda own, end: transformer.attention_masks(
          model.config, query_positions=own, key_positions=positions,
          key_mask=is_past(end), causal=positions[:, None] <= own[:, :, None])
      own = positions[:, :PROMPT]
      first, caches = forward(
          tokens[:, :PROMPT], own, masks(own, PROMPT), caches, 0)

      def next_token(caches, at):
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1)
        own = take(positions)
        logits, caches = forward(
            take(jnp.asarray(tokens)), own, masks(own, at + 1), caches, at)
        return caches, logits

      _, rest = jax.lax.scan(
          next_token, caches, PROMPT + jnp.arange(RESPONSE))
      return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    expected = _logits(model, params, tokens, mask)[:, PROMPT - 1:]
    np.testing.assert_allclose(
        decode(params)[..., :tiny.VOCAB_SIZE],
        expected[..., :tiny.VOCAB_SIZE], atol=1e-4)


class NoiseTest(parameterized.TestCase):

  def test_company_order_and_padding_change_no_sample(self):
    model = tiny.policy()
    (tokens, mask, row_ids), endless = _endless()
    picked = np.arange(BATCH)[::-7]
    widen = lambda x, fill: np.pad(
        x[picked], ((0, 0), (3, 0)), constant_values=fill)
    sampled = _generate(model)(
        tiny.params(model), KEY, widen(tokens, 0), widen(mask, False),
        row_ids[picked])
    np.testing.assert_array_equal(
        sampled.response_tokens, endless.response_tokens[picked])
    np.testing.assert_allclose(
        sampled.logprobs, endless.logprobs[picked], atol=1e-5)

  def test_noise_belongs_to_key_and_row(self):
    model = tiny.policy()
    (tokens, mask, _), _ = _endless()
    same = lambda x: np.repeat(x[-1:], BATCH, axis=0)  # one prompt for all
    row_ids = np.arange(BATCH, dtype=np.int32) // 2
    sample = lambda key: np.asarray(_generate(model)(
        tiny.params(model), key, same(tokens), same(mask), row_ids
    ).response_tokens)
    rows = sample(KEY)
    np.testing.assert_array_equal(rows[::2], rows[1::2])
    self.assertLen(np.unique(rows[::2], axis=0), BATCH // 2)
    others = sample(jax.random.key(8))
    self.assertLen(
        np.unique(np.concatenate([rows[::2], others[::2]]), axis=0), BATCH)


class EndTest(parameterized.TestCase):

  def test_end_token_cuts_the_endless_response(self):
    (tokens, mask, _), endless = _endless()
    eos_id, ended = _ending()
    np.testing.assert_array_equal(ended.prompt_tokens, tokens)
    np.testing.assert_array_equal(ended.prompt_mask, mask)
    lengths, num_ends = [], []
    for row in range(BATCH):
      response = endless.response_tokens[row].tolist()
      num_ends.append(response.count(eos_id))
      length = response.index(eos_id) + 1 if num_ends[-1] else RESPONSE
      lengths.append(length)
      self.assertSequenceEqual(
          ended.response_tokens[row].tolist(),
          response[:length] + [tiny.PAD_ID] * (RESPONSE - length))
      self.assertSequenceEqual(
          ended.response_mask[row].tolist(),
          [True] * length + [False] * (RESPONSE - length))
      np.testing.assert_allclose(
          ended.logprobs[row],
          np.where(ended.response_mask[row], endless.logprobs[row], 0.0),
          atol=1e-6)
    # The end token came first, last, never and several times.
    self.assertIn(1, lengths)
    self.assertIn(
        (RESPONSE, True), zip(lengths, ended.response_tokens[:, -1] == eos_id))
    self.assertIn(0, num_ends)
    self.assertGreater(max(num_ends), 1)

  def test_stopping_early_changes_nothing(self):
    model = tiny.policy()
    (tokens, mask, row_ids), _ = _endless()
    eos_id, ended = _ending()
    short = np.flatnonzero(ended.response_mask.sum(-1) <= 3)
    self.assertGreater(len(short), 3)
    picked = np.resize(short, BATCH)
    sampled = _generate(model, eos_id=eos_id)(
        tiny.params(model), KEY, tokens[picked], mask[picked],
        row_ids[picked])
    jax.tree.map(
        lambda found, whole: np.testing.assert_array_equal(
            found, whole[picked]), jax.device_get(sampled), ended)

  def test_response_must_fit_the_context(self):
    model = tiny.policy()
    rows, _ = _endless()
    with self.assertRaisesRegex(ValueError, "context_length=32"):
      _generate(model, length=28)(tiny.params(model), KEY, *rows)


if __name__ == "__main__":
  absltest.main()
