"""The last stage: every policy of the run on held-out prompts.

Prompts are of the test split (no user, slot or fact shared with training),
labelers are held-out ones, or a reward model that was not optimised against.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np

from rlhf_jax import (
    checkpoint, config as config_lib, guards, metrics, profiling, rollout,
    sampler, scoring, sharding,
)
from rlhf_jax.evals import (
    constant, contest, divergence, intervals, language_loss, ranking,
    responses, reward_model,
)
from rlhf_jax.run import Run
from rlhf_jax.sampler import Response


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What one policy did with the held-out prompts, in their order."""

  responses: list[Response]
  kl: np.ndarray  # float [N], exact, summed over tokens, nats
  kl_sampled: np.ndarray  # float [N], the log-ratio of the sample
  scores: np.ndarray  # float [N], of the optimised reward model
  judge_scores: np.ndarray | None  # float [N], of another reward model
  gold: np.ndarray | None  # float [N], Smallworld's rubric
  pretrain_loss: float  # nats a token

  @property
  def texts(self) -> list[str]:
    return [response.text for response in self.responses]


@dataclasses.dataclass(frozen=True)
class Instruments:
  """What measures every policy alike, compiled once for all of them."""

  generate: Callable[..., rollout.Rollout]
  kl: Callable[..., Any]
  scorer: scoring.Scorer
  pretrain_loss: Callable[[Any], Iterator]


def make_instruments(run: Run, settings) -> Instruments:
  policy = run.policy()
  return Instruments(
      generate=sampler.make_generate(
          run, policy, temperature=settings.temperature),
      kl=jax.jit(
          divergence.make_kl(policy, settings.temperature or 1.0),
          out_shardings=sharding.replicated(run.mesh)),
      scorer=scoring.Scorer(run, run.scalar(), settings.batch_size),
      pretrain_loss=language_loss.make_evaluate(
          run, ml_collections.ConfigDict(dict(
              eval_streams=("pretrain",),
              eval_batch_size=settings.pretrain_batch_size,
              max_eval_batches=settings.max_pretrain_batches))))


def run_stage(run: Run, stage: str) -> dict[str, Any]:
  """Writes samples.jsonl; returns the figures for done.json."""
  settings = run.config[stage]
  rows = responses.held_out_prompts(run, settings.num_prompts)
  prompts = [row["prompt"] for row in rows]
  with sharding.use(run.mesh, run.axis_rules):
    instruments = make_instruments(run, settings)
    outcomes = {
        name: evaluate_policy(run, instruments, name, rows, settings)
        for name in metrics.track(stage, list(settings.policies), "policy")
    }
    rm_figures = reward_model_figures(run, stage, instruments, settings)
  figures = {
      "eval": summarise(run, settings, prompts, outcomes),
      "rm": rm_figures,
  }
  if run.rubric is not None:
    figures["eval"]["best_constant_reply"] = constant.best_replies(
        run.rubric, responses.held_out_prompts(run, None),
        run.source("demonstrations", "train"),
        outcomes[settings.baseline].gold)
  write_samples(run, rows, outcomes)
  run.writer.rewind(stage, -1)
  message = guards.of_evaluation(
      figures["eval"], settings.policies[-1], settings.baseline)
  if message and run.config.guards.actions.over_optimised != guards.OFF:
    run.writer.note(stage, 0, "over_optimised", message)
  run.writer.write(stage, 0, flat_numbers(figures))
  return figures


def evaluate_policy(
    run: Run, instruments: Instruments, name: str,
    rows: Sequence[Mapping[str, Any]], settings
) -> Outcome:
  profiling.next_step()
  params = run.policy_params(name)
  reference = run.policy_params(settings.reference)
  sampled, kl, kl_sampled = responses.sample(
      run, instruments.generate, instruments.kl, run.key(f"evaluate/{name}"),
      params, reference, rows, settings.batch_size)
  pairs = [
      (row["prompt_tokens"], response.tokens)
      for row, response in zip(rows, sampled)
  ]
  score = lambda rm: instruments.scorer(
      run.load(rm, "params", run.scalar()), pairs)
  judge_scores = None
  if settings.judge != "labelers":
    judge_scores = score(settings.judge)
  gold = None
  if run.rubric is not None:
    gold = np.array([
        run.rubric.judge(row["prompt"], response.text).score
        for row, response in zip(rows, sampled)])
  losses = dict(instruments.pretrain_loss(params))
  return Outcome(
      sampled, kl, kl_sampled, score(settings.reward_model),
      judge_scores, gold, losses["validation/pretrain/loss"])


def reward_model_figures(
    run: Run, stage: str, instruments: Instruments, settings
) -> dict[str, Any]:
  """Accuracy on validation prompts: by labeler group where the labelers are
  known, by source otherwise; beside it the rule "the longer reply wins", and
  the accuracy of every reward model of these policies on the same rows."""
  rows = list(run.comparisons(stage, "validation"))
  scores = {
      name: reward_model.score_rows(
          instruments.scorer, run.load(name, "params", run.scalar()), rows)
      for name in reward_models(run, settings)}
  found = reward_model.evaluate(
      rows, scores[settings.reward_model],
      reward_model.comparison_groups(run, rows))
  return (named("accuracy", found["accuracy"])
          | named("longer_wins", found["longer_wins"])
          | {"accuracy_by_model": {
              name: ranking.accuracy(ranking.pairs(rows, of))
              for name, of in scores.items()}})


def reward_models(run: Run, settings) -> list[str]:
  """That of the evaluation, and those that its policies were optimised for."""
  trained = [run.config[name].reward_model for name in settings.policies
             if config_lib.name_of(name) == "ppo"
             and name in run.config.stages]
  return list(dict.fromkeys((settings.reward_model, *trained)))


def named(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  """{key: interval} -> the means under `name`, the rest beside them."""
  return {
      name: {key: value["mean"] for key, value in found.items()},
      f"{name}_intervals": dict(found),
  }


def summarise(
    run: Run, settings, prompts, outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
  """Figures by name, policies below."""
  by_policy = lambda pick: {
      name: pick(outcome) for name, outcome in outcomes.items()}
  figures = {
      "n": len(prompts),
      **named("score", by_policy(lambda o: intervals.mean(o.scores))),
      **named("kl", by_policy(lambda o: intervals.mean(o.kl))),
      **named("kl_sampled",
              by_policy(lambda o: intervals.mean(o.kl_sampled))),
      "pretrain_loss": by_policy(lambda o: o.pretrain_loss),
      "response_length": by_policy(
          lambda o: float(np.mean([len(r.tokens) for r in o.responses]))),
      "ended": by_policy(
          lambda o: float(np.mean([r.ended for r in o.responses]))),
  }
  if run.rubric is not None:
    figures |= named(
        "gold_score", by_policy(lambda o: intervals.mean(o.gold)))
  if settings.judge != "labelers":
    figures |= named(
        "judge_score", by_policy(lambda o: intervals.mean(o.judge_scores)))
  figures["win_rate"] = win_rates(run, settings, prompts, outcomes)
  best = settings.policies[-1]
  if best != settings.baseline:
    figures["win_rate_vs_sft"] = figures["win_rate"][best]
  figures["kl_to_sft"] = figures["kl"][best]
  return figures


def win_rates(
    run: Run, settings, prompts, outcomes: Mapping[str, Outcome]
) -> dict[str, dict[str, float]]:
  """How often each policy is preferred to the baseline."""
  said = {name: dict(zip(prompts, outcome.texts))
          for name, outcome in outcomes.items()}
  if settings.judge == "labelers":
    referee = contest.heldout_labelers(run)
  else:
    scores: dict[tuple[str, str], float] = {}
    for name, outcome in outcomes.items():
      for key, score in zip(said[name].items(), outcome.judge_scores):
        scores.setdefault(key, score)  # equal texts have one score
    referee = contest.of_scores(scores)
  return {
      name: intervals.mean(contest.preference(
          texts, said[settings.baseline], referee.judge))
      for name, texts in said.items() if name != settings.baseline}


def write_samples(run: Run, rows, outcomes: Mapping[str, Outcome]) -> None:
  """samples.jsonl: a held-out prompt a line with each policy's response."""
  lines = []
  for i, row in enumerate(rows):
    of_policies = {}
    for name, outcome in outcomes.items():
      values = {"score": outcome.scores[i], "kl": outcome.kl[i],
                "judge_score": outcome.judge_scores, "gold": outcome.gold}
      of_policies[name] = {"text": outcome.texts[i]} | {
          key: round(float(v if np.ndim(v) == 0 else v[i]), 4)
          for key, v in values.items() if v is not None}
    lines.append({"prompt": row["prompt"], "category": row["category"],
                  "responses": of_policies})
  checkpoint.write_lines(run.workdir / "samples.jsonl", lines)


def flat_numbers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
  """Nested figures -> {"a/b/c": number}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flat_numbers(value, f"{prefix}{name}/")
    elif isinstance(value, (int, float)):
      flat[prefix + name] = value
  return flat
