"""A policy behind a few-shot prefix: the paper's "GPT-3 (prompted)" (3.5).

STAGE+prompted has the parameters of STAGE and reads, before each held-out
prompt, some of the run's training demonstrations, as many as the context
holds. As in the paper several prefixes compete, and that whose responses to
validation prompts score best is used; scores are Smallworld's gold scores, or
else those of the run's reward model.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import random
from typing import Any

import jax
import numpy as np

from rlhf_jax import config as config_lib, sampler
from rlhf_jax.data.smallworld import text as text_lib
from rlhf_jax.evals import finished, subjects
from rlhf_jax.evals.registry import LeftOut
from rlhf_jax.evals.responses import Responses
from rlhf_jax.run import Run
from rlhf_jax.sampler import Response

# Prefixes that compete (the paper's two authors had two each), and validation
# prompts that each is tried on.
NUM_PREFIXES = 8
NUM_PROMPTS = 64
# Demonstrations that are drawn to fill one.
_NUM_DRAWN = 64


@dataclasses.dataclass(frozen=True)
class Form:
  """How a prompt and its response follow each other in plain text.

  Attributes:
    before: stands before a prompt.
    between: ends what a policy is given to continue.
    lead: what a response then begins with.
    after: between a response and the next prompt.
    stop: with this, written by the policy, its response is over.
  """

  before: str
  between: str
  lead: str
  after: str
  stop: str

  def shown(self, prompt: str, response: str) -> str:
    return f"{self.asked(prompt)}{self.lead}{response.strip()}{self.after}"

  def asked(self, prompt: str) -> str:
    return f"{self.before}{prompt}{self.between}"

  def cut(self, text: str) -> tuple[str, bool]:
    """(the response that a text begins with, whether it is over)."""
    response, stop, _ = text.strip().partition(self.stop)
    return response.strip(), bool(stop)


def form_of(run: Run) -> Form:
  """Two people talk, as they do in Smallworld's pretraining text; elsewhere the
  run's own prompts and responses, an empty line after each."""
  if run.world is None:
    data = run.config.data
    return Form("", data.prompt_suffix, data.response_prefix, "\n\n", "\n")
  person, person2 = run.world.world.words["person"][:2]
  talk = text_lib.QUOTED.format(
      person=person, person2=person2, request="{}", reply="{}")
  before, between, after = talk.split("{}")
  return Form(before, between, "", f"{after} ", '"')


def prefixes(run: Run) -> list[str]:
  """The prefixes that compete, a function of the run's seed and data.

  Raises:
    LeftOut: there is no demonstration that fits, or nothing to choose by.
  """
  _judge_of(run)
  _rows(run, "prompts", "validation")
  form, rows = form_of(run), _rows(run, "demonstrations", "train")
  room = (run.config.model.context_length - run.response_length
          - run.prompt_length)
  found = {}
  for number in range(NUM_PREFIXES):
    rng = random.Random(f"{run.config.seed}/prefix/{number}")
    drawn = rng.sample(range(len(rows)), min(len(rows), _NUM_DRAWN))
    found[_filled(run, form, [rows[n] for n in drawn], room)] = None
  found.pop("", None)
  if not found:
    raise LeftOut(
        f"--policies=...{finished.PROMPTED}: no training demonstration in "
        f"{run.workdir} fits into the {room} tokens that "
        f"{run.config.model.context_length} of context leave beside the "
        f"longest prompt ({run.prompt_length}) and response "
        f"({run.response_length})")
  return list(found)


def _filled(run: Run, form: Form, rows: Sequence[Mapping[str, Any]],
            room: int) -> str:
  """The demonstrations that fit, one after the other."""
  text = ""
  for row in rows:
    longer = text + form.shown(row["prompt"], row["response"])
    if form.stop not in row["response"].strip() and len(
        run.tokenizer.encode(longer + form.asked(""))) <= room:
      text = longer
  return text


def _rows(run: Run, kind: str, split: str) -> Sequence[Mapping[str, Any]]:
  """Prepared rows, of which there have to be some."""
  if (run.workdir / "data" / kind / "report.json").exists():
    rows = run.source(kind, split)
    if len(rows):
      return rows
  raise LeftOut(f"--policies=...{finished.PROMPTED}: {run.workdir} has no "
                f"{kind} prepared of the split {split!r}")


def _judge_of(run: Run) -> str:
  """The reward model that chooses; "" for the prompts' own rubric."""
  if run.rubric is not None:
    return ""
  there = finished.stages(run, config_lib.REWARD_MODELS)
  if not there:
    raise LeftOut(
        f"--policies=...{finished.PROMPTED}: {run.workdir} has no finished "
        "reward model to choose the prefix by")
  return there[0]


class PromptedPolicy:
  """What STAGE+prompted says.

  Args:
    bench: of the run.
    name: with the suffix.
    params: the stage's.
  """

  def __init__(self, bench: subjects.Bench, name: str, params: Any):
    self._bench, self._name, self._params = bench, name, params
    self._form = form_of(bench.run)

  @functools.cached_property
  def responses(self) -> Responses:
    """To the run's held-out prompts. A KL to a policy that reads other contexts
    means nothing, and there is none."""
    bench, run = self._bench, self._bench.run
    prompts = [row["prompt"] for row in bench.prompts]
    key = run.key(f"evaluate/{self._name}")
    if bench.settings.seed:
      key = jax.random.fold_in(key, bench.settings.seed)
    found = self._respond(
        key, [(self.prefix, prompt) for prompt in prompts], bench.tick)
    return Responses(prompts, found, None, None,
                     tokenizer=run.tokenizer.digest, world=run.rubric)

  @functools.cached_property
  def prefix(self) -> str:
    """The one whose responses score best on the average."""
    bench, run = self._bench, self._bench.run
    there = prefixes(run)
    rows = list(itertools.islice(_rows(run, "prompts", "validation"),
                                 NUM_PROMPTS))
    tried = [(prefix, row) for prefix in there for row in rows]
    found = self._respond(
        run.key(f"evaluate/{self._name}/prefix"),
        [(prefix, row["prompt"]) for prefix, row in tried],
        subjects.scaled(bench.tick, NUM_PREFIXES * NUM_PROMPTS, len(tried)))
    scores = self._scores([row for _, row in tried], found)
    return there[int(scores.reshape(len(there), -1).mean(axis=1).argmax())]

  def _scores(self, rows: Sequence[Mapping[str, Any]],
              found: Sequence[Response]) -> np.ndarray:
    run = self._bench.run
    judge = _judge_of(run)
    if not judge:
      return np.array([run.rubric.judge(row["prompt"], of.text).score
                       for row, of in zip(rows, found)])
    return self._bench.scorer(
        run.load(judge, "params", run.scalar()),
        [(row["prompt_tokens"], of.tokens) for row, of in zip(rows, found)])

  def _respond(self, key: jax.Array, asked: Sequence[tuple[str, str]],
               tick: Callable[[int], None]) -> list[Response]:
    """To each (prefix, prompt), cut where the form has its end."""
    bench, run = self._bench, self._bench.run
    length = bench.context_length - run.response_length
    start = run.tokenizer.start_ids
    tokens = [[*start, *ids][-length:] for ids in run.tokenizer.encode_batch(
        [prefix + self._form.asked(prompt) for prefix, prompt in asked])]
    found = []
    for _, part in sampler.respond(
        run, bench.respond, self._params, key, tokens, range(len(tokens)),
        bench.batch_size, length):
      found += [self._cut(of) for of in part]
      tick(len(part))
    return found

  def _cut(self, whole: Response) -> Response:
    text, is_over = self._form.cut(whole.text)
    ended = is_over or whole.ended
    return Response(text, np.asarray(subjects.reply_tokens(
        self._bench.run, text, ended), np.int32), ended)
