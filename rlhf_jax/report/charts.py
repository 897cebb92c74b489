"""Which metrics are drawn together, and what to look for in each chart."""

from collections.abc import Sequence
import dataclasses
import fnmatch
from typing import Any

import numpy as np

from rlhf_jax.report import series
from rlhf_jax.report.folder import Folder


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of chart: its name, heading, how to read it, and what it shows.

  `metrics` are patterns; a metric is drawn in the first chart that has it.
  """

  name: str
  title: str
  reading: str
  metrics: tuple[str, ...]


KINDS = (
    Kind("score", "Score and reward",
         "The reward model's score of a response, and the reward, which is the "
         "score less the KL penalty. They rise, then level off.",
         ("train/ppo/score", "train/ppo/reward")),
    Kind("gold", "Gold score",
         "What the labelers' rubric says, which no model sees. It should rise "
         "with the score; if only the score rises, the reward model is "
         "exploited.", ("train/ppo/gold",)),
    Kind("kl", "KL to the reference",
         "Nats a response, by two estimators that agree on average. It rises, "
         "then levels off.", ("train/ppo/kl", "train/ppo/kl_k3")),
    Kind("entropy", "Entropy",
         "Nats a token. It falls a little; near 0 the policy says the same to "
         "everything.", ("train/ppo/entropy_estimate",)),
    Kind("length", "Response length",
         "Tokens. A score that only rises with it is a reward for length.",
         ("train/ppo/response_length",)),
    Kind("ended", "Share that ends, and diversity",
         "Ended: responses with an end token, near 1. Distinct: different "
         "pairs of tokens, as a share of all pairs.",
         ("train/ppo/ended", "train/ppo/distinct")),
    Kind("clip", "Clip fraction",
         "Share of probability ratios (policy) and values (critic) that are "
         "clipped. Always 0: updates do little; above 0.3: they are too large.",
         ("train/*/clip_frac",)),
    Kind("value", "Explained variance of the value function",
         "1 foresees every return, 0 guesses their mean. It should come near "
         "1.", ("train/critic/explained_variance",)),
    Kind("ptx", "Pretraining loss in PPO (ptx)",
         "Nats a token, of the pretraining text that PPO trains on. It should "
         "not rise.", ("train/ptx/loss",)),
    Kind("ppo_loss", "Losses of policy and critic",
         "The policy's is small and has no trend to read; the critic's falls.",
         ("train/ppo/policy_loss", "train/critic/loss")),
    Kind("loss", "Loss",
         "Training and validation. Where validation rises and training falls, "
         "the model learns by heart.", ("*/loss",)),
    Kind("accuracy", "Accuracy of the reward model",
         "Share of pairs ranked as the labelers did, with a 95 % interval in "
         "validation. 0.5 is chance.", ("*/rm/accuracy*",)),
    Kind("grad_norm", "Gradient norms",
         "Before clipping; of RL, pretraining (ptx) and critic apart. A spike "
         "is an odd batch; steady growth is not.",
         ("*grad_norm",)),
    Kind("ratio", "Probability ratios",
         "New policy to old: the mean, and how far the farthest is from 1.",
         ("train/ppo/ratio", "train/ppo/ratio_max_deviation")),
    Kind("approx_kl", "KL of one update",
         "Nats a token between the policy before and after an iteration.",
         ("train/ppo/approx_kl",)),
    Kind("kl_coef", "Coefficient of the KL penalty",
         "Moves only with the adaptive controller.", ("train/ppo/kl_coef",)),
    Kind("spread", "Spread of scores, values and advantages",
         "The standard deviation of scores; the means of values and of "
         "whitened advantages, the last near 0.",
         ("train/ppo/score_sd", "train/critic/value",
          "train/ppo/advantage_mean")),
    Kind("same", "Sampler, old and new log-probs",
         "How far two computations of the same number differ before any "
         "update: rounding only.",
         ("train/ppo/first_ratio_deviation", "train/ppo/sampler_drift*")),
    Kind("kl_se", "Standard error of the KL",
         "Nats a response.", ("train/ppo/kl_se",)),
    Kind("skipped", "Skipped updates",
         "Optimizer steps that were not applied since the stage began; 0 is "
         "well.", ("train/skipped*",)),
    Kind("seconds", "Seconds an iteration",
         "Of all, and of sampling alone. The first compiles.",
         ("train/*_seconds",)),
    Kind("rows", "Rows and tokens read",
         "What a step was given.",
         ("train/*/tokens", "train/*/pairs", "train/*/prompts",
          "validation/*/pairs", "validation/*/epoch")),
    Kind("next_row", "Pretraining rows read in PPO",
         "In all.", ("train/ptx/next_row",)),
)


@dataclasses.dataclass(frozen=True)
class Stage:
  """What is drawn of a stage, lines of several runs together.

  Attributes:
    charts: as JSON for page.js: {"id", "title", "reading", "lines"}, a line
      {"run", "metric", "x", "y"}; "run" is the number of the folder.
    constants: "metric value" of what is the same in all rows of all runs.
  """

  charts: list[dict[str, Any]]
  constants: list[str]


def of_runs(folders: Sequence[Folder]) -> dict[str, Stage]:
  """Those of all stages that have rows to draw."""
  stages = dict.fromkeys(
      stage for folder in folders for stage in folder.stages)
  found = {stage: _of_stage(folders, stage) for stage in stages}
  return {stage: of for stage, of in found.items()
          if of.charts or of.constants}


def name_of(stage: str, kind: str) -> str:
  """The id of a chart in the page."""
  return f"chart-{stage}-{kind}"


def _of_stage(folders: Sequence[Folder], stage: str) -> Stage:
  curves = [folder.curves.get(stage, {}) for folder in folders]
  by_kind, constants = {kind: [] for kind in KINDS}, []
  for metric in dict.fromkeys(name for of in curves for name in of):
    found = [(number, of[metric]) for number, of in enumerate(curves)
             if metric in of]
    if all(len(whole.steps) == 1 for _, whole in found):
      continue  # the tables have it
    values = np.concatenate([whole.values for _, whole in found])
    if (values == values[0]).all():
      constants.append(f"{_short(metric)} {values[0]:.5g}")
    else:
      by_kind.setdefault(kind_of(metric), []).extend(
          _line(number, metric, whole) for number, whole in found)
  return Stage(
      [{"id": name_of(stage, kind.name), "title": kind.title,
        "reading": kind.reading, "lines": lines}
       for kind, lines in by_kind.items() if lines], constants)


def kind_of(metric: str) -> Kind:
  """The first kind of chart that has a metric, else one of its own."""
  for kind in KINDS:
    if any(fnmatch.fnmatchcase(metric, pattern) for pattern in kind.metrics):
      return kind
  return Kind(metric, metric, "", (metric,))


def _line(number: int, metric: str, whole: series.Series) -> dict[str, Any]:
  thinned = series.thin(whole)
  return {
      "run": number,
      "metric": _short(metric),
      "x": thinned.steps.tolist(),
      "y": [float(f"{value:.5g}") if np.isfinite(value) else None
            for value in thinned.values.tolist()]}


def _short(metric: str) -> str:
  return metric.removeprefix("train/")
