"""Best-of-n against every subset, counted one by one."""

import itertools
import math

from etils import epath
import jax
import numpy as np
import pytest

from rlhf_jax import pipeline, scoring, sharding
from rlhf_jax.evals import best_of_n
from tests import tiny_run

NUM_SAMPLES = 7


@pytest.fixture(name="rng")
def _rng():
  return np.random.default_rng(0)


def brute_force(proxy, values, n):
  """The mean over all subsets of n, ties broken every way."""
  found = []
  for subset in itertools.combinations(range(len(proxy)), n):
    best = max(proxy[i] for i in subset)
    found.append(np.mean([values[i] for i in subset if proxy[i] == best]))
  return np.mean(found)


@pytest.mark.parametrize("n", range(1, NUM_SAMPLES + 1))
@pytest.mark.parametrize("num_scores", [1000, 3])  # without ties and with
def test_is_the_mean_over_all_subsets(rng, n, num_scores):
  proxy = rng.integers(num_scores, size=(4, NUM_SAMPLES))
  values = rng.normal(size=proxy.shape)
  np.testing.assert_allclose(
      best_of_n.expected_best(proxy, values, n),
      [brute_force(*of, n) for of in zip(proxy, values)])


def test_the_order_of_samples_does_not_matter(rng):
  proxy = rng.integers(3, size=(4, 16))
  values = rng.normal(size=proxy.shape)
  order = rng.permutation(16)
  np.testing.assert_allclose(
      best_of_n.expected_best(proxy, values, 5),
      best_of_n.expected_best(proxy[:, order], values[:, order], 5))


def test_the_best_of_one_and_of_all(rng):
  proxy, values = rng.normal(size=(2, 4, 16))
  np.testing.assert_allclose(
      best_of_n.expected_best(proxy, values, 1), values.mean(1))
  np.testing.assert_allclose(
      best_of_n.expected_best(proxy, values, 16),
      values[range(4), proxy.argmax(1)])


@pytest.mark.parametrize("n", [1, 2, 100, 256, 511, 512])
def test_weights_of_many_samples(n):
  of = best_of_n.weights(512, n)
  assert of.sum() == pytest.approx(1.0, abs=1e-12)
  exact = [math.comb(i - 1, n - 1) / math.comb(512, n) for i in range(1, 513)]
  np.testing.assert_allclose(of, exact, rtol=1e-12)


@pytest.mark.parametrize("n", [0, 513])
def test_more_than_there_are_is_refused(n):
  with pytest.raises(ValueError, match=f"n={n} is not known from num_samples="):
    best_of_n.weights(512, n)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_kl_is_that_of_the_highest_of_n(n):
  """Of the maximum of n uniform numbers, whose density is n u^(n - 1)."""
  u = (np.arange(200_000) + 0.5) / 200_000
  density = n * u ** (n - 1)
  log_density = np.log(n) + (n - 1) * np.log(u)
  assert best_of_n.kl(n) == pytest.approx(
      (density * log_density).mean(), abs=1e-4)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_kl_is_a_bound_where_answers_are_alike(n):
  """Of three answers with scores of their own, counted exactly."""
  shares = np.array([0.5, 0.3, 0.2])  # by rising score
  below = np.cumsum(shares)
  of_best = np.diff(below**n, prepend=0.0)  # all n are no better than it
  exact = np.sum(of_best * np.log(of_best / shares))
  assert 0 < exact < best_of_n.kl(n) * 0.9
  assert "bound" in best_of_n.kl.__doc__.partition("\n")[0]


def test_at_a_kl(rng):
  proxy, values = rng.normal(size=(2, 4, 16))
  for n in (1, 3, 16):
    found, of = best_of_n.at_kl(proxy, values, best_of_n.kl(n))
    assert found == pytest.approx(n)
    np.testing.assert_allclose(of, best_of_n.expected_best(proxy, values, n))
  halfway = (best_of_n.kl(3) + best_of_n.kl(4)) / 2
  found, of = best_of_n.at_kl(proxy, values, halfway)
  assert found == pytest.approx(3.5)
  np.testing.assert_allclose(of, (
      best_of_n.expected_best(proxy, values, 3)
      + best_of_n.expected_best(proxy, values, 4)) / 2)
  assert best_of_n.at_kl(proxy, values, best_of_n.kl(16) + 0.01) is None


def test_powers_of_two():
  assert best_of_n.powers_of_two(16) == [1, 2, 4, 8, 16]
  assert best_of_n.powers_of_two(31) == [1, 2, 4, 8, 16]


@pytest.fixture(name="run", scope="module")
def _run():
  return pipeline.open_run(epath.Path(tiny_run.base().workdir))


@pytest.fixture(name="in_a_hurry", scope="module")
def _in_a_hurry():
  """It is mostly compiling."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(name="samples", scope="module")
def _samples(run, in_a_hurry):
  del in_a_hurry
  return best_of_n.sample_many(run, "rl_init", num_prompts=5, num_samples=30)


def test_every_sample_has_noise_of_its_own(samples):
  assert [len(group) for group in samples.responses] == [30] * 5
  for group in samples.responses:
    assert len({response.tokens.tobytes() for response in group}) > 20


def test_gold_and_scores_are_those_of_each_sample(run, samples):
  gold = best_of_n.gold(run, samples)
  scores = best_of_n.scores(run, "rm", samples)
  assert gold.shape == scores.shape == (5, 30)
  with sharding.use(run.mesh, run.axis_rules):
    expected = scoring.Scorer(run, run.scalar(), 32)(
        run.load("rm", "params", run.scalar()),
        [(samples.rows[p]["prompt_tokens"], samples.responses[p][k].tokens)
         for p in range(5) for k in range(30)])
  np.testing.assert_allclose(
      scores.ravel(), expected, rtol=1e-4, atol=1e-5)
  for p, k in ((0, 0), (2, 7), (4, 29)):
    assert gold[p, k] == run.world.judge(
        samples.prompts[p], samples.responses[p][k].text).score


def test_a_text_is_measured_once(samples):
  asked = []
  twice = best_of_n.Samples(
      samples.rows, [[*group, *group] for group in samples.responses])
  found = twice.measure(lambda *of: asked.append(of) or float(len(of[1])))
  assert len(asked) == len(set(asked))
  assert {(prompt, response.text)
          for prompt, group in zip(samples.prompts, samples.responses)
          for response in group} == set(asked)
  np.testing.assert_array_equal(found[:, :30], found[:, 30:])
