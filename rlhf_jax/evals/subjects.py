"""A run's policies and reward models as evaluators see them.

`Bench` has what measures every policy of a run alike, compiled once; `Policy`
is the `model.Model` of one, and `RewardModel` a reward model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import ahead, sampler, scoring, sharding
from rlhf_jax.data import batches
from rlhf_jax.evals import (
    divergence, facts as facts_lib, items as items_lib, language_loss, ranking,
    responses, reward_model,
)
from rlhf_jax.evals.model import Completion, Likelihood
from rlhf_jax.evals.responses import Responses
from rlhf_jax.run import Run

# A greedy answer has at most so many tokens, fewer where the run's responses
# do; a benchmark's answers seldom have more.
MAX_NEW_TOKENS = 256
# Texts are padded to the context's length or, where that does, to a quarter,
# a sixteenth ... of it, but not to less than this.
_MIN_LENGTH = 64
Tokens = Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a run is measured.

  Attributes:
    reference: whom the KL is to.
    batch_size: rows of a compiled batch.
    num_prompts: held-out prompts.
    temperature: of the responses to them.
    limit: items of a benchmark, windows of held-out text; None for all.
    seed: of the responses' noise, beside the run's own.
  """

  reference: str
  batch_size: int
  num_prompts: int
  temperature: float
  limit: int | None
  seed: int


class Bench:
  """What measures all policies of a run. Call it under `sharding.use`.

  Args:
    run: whose.
    settings: how.
    tick: called with the number of texts that were read or written.
  """

  def __init__(self, run: Run, settings: Settings,
               tick: Callable[[int], None] = lambda number: None):
    self.run, self.settings, self.tick = run, settings, tick
    # filled up to a row a batch shard
    self.batch_size = run.batch_size_for(settings.batch_size)
    self.context_length = run.config.model.context_length
    self.new_tokens = min(run.response_length, MAX_NEW_TOKENS)
    policy, replicated = run.policy(), sharding.replicated(run.mesh)
    self.row_logprobs = jax.jit(
        language_loss.make_row_logprobs(policy), out_shardings=replicated)
    self.complete = sampler.make_sharded_generate(
        policy, mesh=run.mesh, axis_rules=run.axis_rules,
        decode_dtype=run.config.decode.dtype,
        decode_axis_rules=run.config.decode.axis_rules,
        response_length=self.new_tokens, temperature=0.0,
        eos_id=run.tokenizer.eos_id, num_parts=1, refills=False)
    self.respond = sampler.make_generate(
        run, policy, temperature=settings.temperature)
    self.kl = jax.jit(
        divergence.make_kl(policy, settings.temperature or 1.0),
        out_shardings=replicated)
    self.scorer = scoring.Scorer(run, run.scalar(), self.batch_size)

  @functools.cached_property
  def reference(self) -> Any:
    """Parameters of the KL's reference, loaded when first asked for."""
    return self.run.policy_params(self.settings.reference)

  def release(self) -> None:
    """Frees the reference's parameters; they are loaded again if asked for."""
    vars(self).pop("reference", None)

  @functools.cached_property
  def prompts(self) -> list[Mapping[str, Any]]:
    """The held-out prompts."""
    return responses.held_out_prompts(self.run, self.settings.num_prompts)

  @functools.cached_property
  def windows(self) -> list[np.ndarray]:
    """Windows of held-out pretraining text."""
    rows = self.run.source("pretrain", "validation")
    numbers = items_lib.spread(range(len(rows)), self.settings.limit)
    return [np.asarray(rows[number]["tokens"]) for number in numbers]

  @functools.cached_property
  def facts(self) -> list[facts_lib.Fact]:
    """Those of the run's Smallworld."""
    return items_lib.spread(
        facts_lib.of_world(self.run.world.world), self.settings.limit)

  def lengths(self) -> list[int]:
    """What texts are padded to, from the shortest."""
    found = [self.context_length]
    while found[0] // 4 >= _MIN_LENGTH:
      found.insert(0, found[0] // 4)
    return found

  def batches(self, number: int) -> Iterator[int]:
    """The real rows of each batch, as `number` rows are cut into them."""
    size = self.batch_size
    for start in range(0, number, size):
      yield min(size, number - start)


class Policy:
  """The `model.Model` of a run's policy, by its stage's name."""

  def __init__(self, bench: Bench, name: str, params: Any):
    self._bench, self._name, self._params = bench, name, params

  def likelihoods(
      self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | None]:
    encode = self._bench.run.tokenizer.encode_batch
    contexts, texts = (encode(of) for of in zip(*pairs)) if pairs else ((), ())
    fitted = [self._fit(*of) for of in zip(contexts, texts)]
    kept = [of for of in fitted if of is not None]
    found = iter(self._likelihoods(kept, self._bench.tick))
    self._bench.tick(len(fitted) - len(kept))
    return [
        None if of is None else dataclasses.replace(
            next(found), is_cut=len(of[0]) < len(self._context(context)))
        for of, context in zip(fitted, contexts)]

  def text_likelihoods(self, texts: Sequence[str]) -> list[list[Likelihood]]:
    step = self._bench.context_length - 1
    cut = []
    for ids in self._bench.run.tokenizer.encode_batch(texts):
      ids = [*self._context([]), *ids]
      cut.append([(ids[start:start + 1], ids[start + 1:start + 1 + step])
                  for start in range(0, len(ids) - 1, step)])
    windows = [pair for pairs in cut for pair in pairs]
    found = iter(self._likelihoods(windows, scaled(
        self._bench.tick, len(texts), len(windows))))
    return [[next(found) for _ in pairs] for pairs in cut]

  def held_out(self) -> list[Likelihood]:
    """Of the windows of the run's held-out pretraining text."""
    return self._likelihoods(
        [(window[:1], window[1:]) for window in self._bench.windows],
        self._bench.tick)

  def facts(self) -> list[facts_lib.Fact]:
    """What can be asked about the run's Smallworld."""
    return self._bench.facts

  def complete(self, prompts: Sequence[str]) -> list[Completion]:
    bench = self._bench
    length = bench.context_length - bench.new_tokens
    tokens = [self._context(ids)
              for ids in bench.run.tokenizer.encode_batch(prompts)]
    written = []
    for _, part in sampler.respond(
        bench.run, bench.complete, self._params, jax.random.key(0),
        [of[-length:] for of in tokens], range(len(tokens)),
        bench.batch_size, length):
      written += part
      bench.tick(len(part))
    return [Completion(of.text, len(ids) > length)
            for of, ids in zip(written, tokens)]

  @functools.cached_property
  def responses(self) -> Responses:
    """To the run's held-out prompts."""
    bench, rows = self._bench, self._bench.prompts
    key = bench.run.key(f"evaluate/{self._name}")
    if bench.settings.seed:  # 0: the samples of the stage `evaluate`
      key = jax.random.fold_in(key, bench.settings.seed)
    found = responses.sample(
        bench.run, bench.respond, bench.kl, key, self._params,
        bench.reference, rows, bench.batch_size, bench.tick)
    return Responses([row["prompt"] for row in rows], *found,
                     tokenizer=bench.run.tokenizer.digest,
                     world=bench.run.rubric)

  def _context(self, ids: Tokens) -> list[int]:
    """A context as the model reads it: nothing is the beginning of a document,
    which follows the end of another."""
    tokenizer = self._bench.run.tokenizer
    return [*tokenizer.start_ids, *ids] or [tokenizer.eos_id]

  def _fit(self, context: Tokens, text: Tokens) -> tuple[Tokens, Tokens] | None:
    """The end of the context, as much as fits with the text; else None."""
    room = self._bench.context_length - len(text)
    if room < 1 or not len(text):
      return None
    return self._context(context)[-room:], text

  def _likelihoods(
      self, pairs: Sequence[tuple[Tokens, Tokens]],
      tick: Callable[[int], None]) -> list[Likelihood]:
    """Of token pairs that fit, each padded to the least length that does."""
    totals = np.zeros(len(pairs))
    sizes = np.array([len(context) + len(text) for context, text in pairs])
    shorter = 0
    for length in self._bench.lengths():
      numbers = np.flatnonzero((shorter < sizes) & (sizes <= length))
      if len(numbers):
        totals[numbers] = self._totals(
            [pairs[n] for n in numbers.tolist()], length, tick)
      shorter = length
    return [Likelihood(float(total), len(text))
            for total, (_, text) in zip(totals, pairs)]

  def _totals(self, pairs, length: int, tick) -> np.ndarray:
    """float [N]: summed log-probabilities, in batches of one shape."""
    bench, run = self._bench, self._bench.run
    at = run.batches(
        batches.demonstration_examples(
            [{"prompt_tokens": context, "response_tokens": text}
             for context, text in pairs], None, length=length,
            pad_id=run.config.model.vocab_size),
        bench.batch_size)

    def computed():
      for number, real in enumerate(bench.batches(len(pairs))):
        rows = run.put(at(number))
        yield real, bench.row_logprobs(self._params, {
            name: rows[name] for name in ("tokens", "mask", "loss_mask")})

    parts = []
    for real, found in ahead.one_behind(computed()):
      parts.append(jax.device_get(found)[:real])
      tick(real)
    return np.concatenate(parts)


def scaled(tick: Callable[[int], None], whole: int, number: int
           ) -> Callable[[int], None]:
  """For what counts up to `number`, a `tick` that counts up to `whole`."""
  done = 0

  def smaller(count: int) -> None:
    nonlocal done
    before, done = done, done + count
    tick(done * whole // number - before * whole // number)

  return smaller


class RewardModel:
  """A reward model of a run, by its stage's name."""

  def __init__(self, bench: Bench, name: str, params: Any):
    self._bench, self._name, self._params = bench, name, params

  def scores(self, rows: ranking.Rows) -> ranking.Scores:
    """A score a response of each comparison."""
    return reward_model.score_rows(self._bench.scorer, self._params, rows)

  def held_out(self) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The run's validation comparisons, and the group of each."""
    run = self._bench.run
    rows = list(run.comparisons(self._name, "validation"))
    return rows, reward_model.comparison_groups(run, rows)

  def prepared(self, row: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison of a file with its tokens; `is_cut` where the prompt's
    beginning, or a response's end, did not fit."""
    run = self._bench.run
    prompt = run.prompt_tokens(row["prompt"])
    replies = [run.response_tokens(text) for text in row["responses"]]
    is_cut = len(prompt) > run.prompt_length or any(
        reply[-1] != run.tokenizer.eos_id for reply in replies)
    return {**row, "prompt_tokens": prompt[-run.prompt_length:],
            "response_tokens": replies, "is_cut": is_cut}

  def scores_of(
      self, found: Sequence[Responses]) -> dict[tuple[str, str], float]:
    """(prompt, response) -> score, for policies of any run: of the tokens that
    were sampled, or where another tokenizer made them of their text."""
    run = self._bench.run
    replies: dict[tuple[str, str], Tokens] = {}
    for of in found:
      is_ours = of.tokenizer == run.tokenizer.digest
      for prompt, response in zip(of.prompts, of.responses):
        replies.setdefault(
            (prompt, response.text),
            response.tokens if is_ours else reply_tokens(
                run, response.text, response.ended))
    pairs = [(run.prompt_tokens(prompt)[-run.prompt_length:], reply)
             for (prompt, _), reply in replies.items()]
    return dict(zip(replies, map(float, self._bench.scorer(
        self._params, pairs))))


def reply_tokens(run: Run, text: str, ended: bool) -> Tokens:
  """A response's text in a run's tokens; an end only where it had one."""
  tokens = run.response_tokens(text)
  if tokens[-1] == run.tokenizer.eos_id and len(tokens) > 1 and not ended:
    return tokens[:-1]
  return tokens
