"""Best-of-n: of n samples that which a proxy scores highest.

From N samples a prompt the expectation of any value of the best of n is
estimated without bias for every n up to N (Nakano et al. 2021, arXiv:
2112.09332, appendix I), and an interval is over prompts.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from rlhf_jax import metrics, sampler, scoring, sharding
from rlhf_jax.evals import responses as responses_lib
from rlhf_jax.run import Run
from rlhf_jax.sampler import Response

BATCH_SIZE = 128  # rows of a compiled batch


# ------------------------------------------------------------------ estimates


def weights(num_samples: int, n: int) -> np.ndarray:
  """float64 [N]: how likely the i-th of N samples, from the lowest proxy, is
  the best of n of them that are drawn without putting back.

  w_i = C(i - 1, n - 1) / C(N, n) for i = 1 .. N, by its recursion from the
  highest, w_N = n / N and w_i = w_(i+1) (i - n + 1) / i: nothing overflows.

  Raises:
    ValueError: n is not within 1 .. N.
  """
  if not 1 <= n <= num_samples:
    raise ValueError(
        f"the best of {n=} is not known from {num_samples=}; draw {n} samples "
        f"or more, or take n from 1 to {num_samples}")
  i = np.arange(num_samples - 1, 0, -1)
  ratios = np.maximum(i - n + 1, 0) / i
  return n / num_samples * np.cumprod([1.0, *ratios])[::-1]


def expected_best(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
  """The expected value of the best of n by the proxy, of each prompt.

  Samples that the proxy ties are as likely to be taken as one another, so
  their order does not matter.

  Args:
    proxy: float [P, N], scores.
    values: float [P, N], of the same samples: gold scores, or the proxy's own.
    n: 1 to N.

  Returns:
    float64 [P].
  """
  of = weights(np.shape(proxy)[1], n)
  return np.array([_weighted(*row, of) for row in zip(proxy, values)])


def _weighted(proxy: np.ndarray, values: np.ndarray, of: np.ndarray) -> float:
  """Of one prompt: ties share the weights of their places."""
  _, tie, counts = np.unique(proxy, return_inverse=True, return_counts=True)
  shared = np.bincount(np.repeat(np.arange(len(counts)), counts), of) / counts
  return float(np.dot(shared[tie], values))


def kl(n):
  """A bound from above on the KL, in nats, of the best of n to the policy that
  is sampled: log n - (n - 1)/n.

  It is the KL itself only where no two samples are alike; where they are, as
  short answers may be, the KL is less (Beirami et al. 2024, arXiv:2401.01879).
  """
  return np.log(n) - (n - 1) / n


def at_kl(proxy: np.ndarray, values: np.ndarray, nats: float
          ) -> tuple[float, np.ndarray] | None:
  """The expected value of the best of as many as have a KL of `nats` at most.

  It is `kl` that says so, a bound: where samples are alike the best of more
  would have that KL, and n is too small. Between two whole n it is
  interpolated in the bound.

  Returns:
    (n, a broken number; float64 [P]), or None beyond the best of N.
  """
  num_samples = np.shape(proxy)[1]
  kls = kl(np.arange(1, num_samples + 1))
  if not 0 <= nats <= kls[-1]:
    return None
  n = min(int(np.searchsorted(kls, nats, side="right")), num_samples - 1)
  share = (nats - kls[n - 1]) / (kls[n] - kls[n - 1])
  below, above = (expected_best(proxy, values, m) for m in (n, n + 1))
  return n + share, (1 - share) * below + share * above


def powers_of_two(most: int) -> list[int]:
  """1, 2, 4 ... up to `most`."""
  return [2**k for k in range(most.bit_length())]


# -------------------------------------------------------------------- samples


@dataclasses.dataclass(frozen=True)
class Samples:
  """N responses of a policy to each of P prompts.

  Attributes:
    rows: prepared prompts [P].
    responses: [P][N].
  """

  rows: Sequence[Mapping[str, Any]]
  responses: Sequence[Sequence[Response]]

  @property
  def prompts(self) -> list[str]:
    return [row["prompt"] for row in self.rows]

  def measure(self, value: Callable[[str, str], float]) -> np.ndarray:
    """float64 [P, N]: value(prompt, text), asked once for each that differ."""
    value = functools.cache(value)
    return np.array([
        [value(prompt, response.text) for response in group]
        for prompt, group in zip(self.prompts, self.responses)], np.float64)


def repeated(rows: Sequence[Any], num_samples: int) -> list[Any]:
  """[P] -> [P * N], a prompt's samples one after the other."""
  return [row for row in rows for _ in range(num_samples)]


def grouped(rows: Sequence[Mapping[str, Any]], responses: Sequence[Response]
            ) -> Samples:
  """The Samples of responses [P * N] to `repeated` rows."""
  n = len(responses) // len(rows)
  return Samples(rows, [
      responses[start:start + n] for start in range(0, len(responses), n)])


def sample_many(run: Run, policy: str, num_prompts: int, num_samples: int
                ) -> Samples:
  """Draws N samples of a policy for each of the first held-out prompts.

  Args:
    run: of Smallworld or any other.
    policy: the stage that left it.
    num_prompts: P, fewer where the run has fewer.
    num_samples: N.
  """
  rows = responses_lib.held_out_prompts(run, num_prompts)
  prompts = [row["prompt_tokens"] for row in repeated(rows, num_samples)]
  size = run.batch_size_for(BATCH_SIZE)
  drawn: list[Response] = []
  with sharding.use(run.mesh, run.axis_rules):
    generate = sampler.make_generate(run, run.policy(), temperature=1.0)
    with metrics.Progress(
        "best of n", 0, len(prompts), "text") as progress:
      for _, part in sampler.respond(
          run, generate, run.policy_params(policy),
          run.key(f"best_of_n/{policy}"), prompts, range(len(prompts)), size):
        drawn += part
        progress.update(len(part))
  return grouped(rows, drawn)


def gold(run: Run, samples: Samples) -> np.ndarray:
  """float64 [P, N]: Smallworld's own score."""
  return samples.measure(
      lambda prompt, text: run.world.judge(prompt, text).score)


def scores(run: Run, stage: str, samples: Samples) -> np.ndarray:
  """float64 [P, N]: of a reward model; responses alike are scored once.

  Args:
    run: whose reward model it is; its size may be another than that of the
      run that drew the samples, its tokens may not.
    stage: the reward model's.
    samples: of whatever policy.
  """
  numbers: dict[tuple[int, bytes], int] = {}
  at = np.array([
      [numbers.setdefault((p, response.tokens.tobytes()), len(numbers))
       for response in group] for p, group in enumerate(samples.responses)])
  kept = {number: (samples.rows[p]["prompt_tokens"], response.tokens)
          for p, group in enumerate(samples.responses)
          for number, response in zip(at[p], group)}
  with sharding.use(run.mesh, run.axis_rules):
    scorer = scoring.Scorer(
        run, run.scalar(), run.batch_size_for(BATCH_SIZE))
    found = scorer(run.load(stage, "params", run.scalar()),
                   [kept[number] for number in range(len(numbers))])
  return found.astype(np.float64)[at]
