"""A policy's responses to a run's held-out prompts: sampled, and described."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from rlhf_jax import profiling, sampler
from rlhf_jax.data.smallworld import Judgment, Smallworld
from rlhf_jax.data.smallworld.prompts import Task
from rlhf_jax.evals import diversity, intervals, results
from rlhf_jax.evals.results import Row
from rlhf_jax.run import Run
from rlhf_jax.sampler import Response


@dataclasses.dataclass(frozen=True)
class Responses:
  """One response a prompt.

  Attributes:
    prompts: their texts.
    responses: to each.
    kl: float [N], the KL to the reference at every sampled prefix, summed over
      a response's tokens, in nats; None of a prompted policy.
    kl_sampled: float [N], the log-ratio of the sample (k1); likewise.
    tokenizer: the digest of that which the responses' tokens are of.
    world: the Smallworld of the prompts, if they are of one.
  """

  prompts: Sequence[str]
  responses: Sequence[Response]
  kl: np.ndarray | None
  kl_sampled: np.ndarray | None
  tokenizer: str = ""
  world: Smallworld | None = None

  @property
  def text_of(self) -> dict[str, str]:
    """Prompt -> response."""
    return dict(zip(self.prompts, (r.text for r in self.responses)))

  @functools.cached_property
  def judgments(self) -> list[Judgment]:
    """Of each response, by the rubric of its world."""
    return [self.world.judge(prompt, response.text)
            for prompt, response in zip(self.prompts, self.responses)]

  @property
  def tasks(self) -> list[Task]:
    """What each prompt asks for, as its world understands it."""
    return [self.world.parse(prompt) for prompt in self.prompts]

  @property
  def num_tokens(self) -> list[int]:
    return [len(response.tokens) for response in self.responses]


def held_out_prompts(
    run: Run, limit: int | None) -> list[Mapping[str, Any]]:
  """The first test prompts, or all (None)."""
  return list(itertools.islice(run.source("prompts", "test"), limit))


def sample(
    run: Run, generate, kl: Callable[..., Any], key: jax.Array, params,
    reference, rows: Sequence[Mapping[str, Any]], size: int,
    tick: Callable[[int], None] = lambda number: None,
) -> tuple[list[Response], np.ndarray, np.ndarray]:
  """One response a prompt.

  Args:
    run: for lengths, mesh and tokenizer.
    generate: as of `sampler.make_generate`.
    kl: as of `divergence.make_kl`, jitted.
    key: of the noise.
    params: the policy's.
    reference: whom the KL is to.
    rows: prepared prompts.
    size: of a compiled batch.
    tick: called with the number of each batch's responses.

  Returns:
    (responses, exact KL [N], sampled KL [N]).
  """
  responses, exact, sampled_kl = [], [], []
  for sampled, texts in sampler.respond(
      run, generate, params, key, [row["prompt_tokens"] for row in rows],
      range(len(rows)), size):
    responses += texts
    with profiling.phase("KL"):
      both = jax.device_get(kl(params, reference, sampled))
    exact.append(both[0][:len(texts)])
    sampled_kl.append(both[1][:len(texts)])
    tick(len(texts))
  return responses, np.concatenate(exact), np.concatenate(sampled_kl)


def style(found: Responses) -> Iterator[Row]:
  """Yields `tokens` a response, the end counted, the share that `ended`, and
  `distinct_1` and `distinct_2` (Li et al. 2016) over all responses."""
  yield results.mean("tokens", found.num_tokens)
  yield results.share("ended", [float(r.ended) for r in found.responses])
  for n in (1, 2):
    yield results.row(f"distinct_{n}", diversity.distinct_interval(
        [response.tokens for response in found.responses], n))


def divergence(found: Responses) -> Iterator[Row]:
  """Yields the KL to the reference in nats: `kl` a response and `kl_per_token`,
  of the whole next-token distribution at every sampled prefix, and
  `kl_sampled` a response, the mean log-ratio of the samples (k1). Nothing for
  a prompted policy: it reads other contexts than the reference."""
  if found.kl is None:
    return
  yield results.mean("kl", found.kl)
  yield results.row("kl_per_token",
                    intervals.ratio(found.kl, found.num_tokens))
  yield results.mean("kl_sampled", found.kl_sampled)
