"""What an expert would point at in the figures of a run.

Each check is a pure function of arrays, rows of one PPO stage, oldest first:
one sentence with the figures that say so, or None. docs/report.md has a section
for each, of the same name, with what people do about it.

Guards (`guards`) see one step and may stop a run; these see the whole of it,
and only point.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from rlhf_jax import config as config_lib
from rlhf_jax.report.series import Curves

MIN_ROWS = 10  # fewer have no trend
_CLEAR = 3.0  # standard errors

Array = np.ndarray
Figures = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Check:
  """A look at some series.

  Attributes:
    name: its section in docs/report.md.
    title: what is wrong, in a few words.
    chart: the kind of chart that shows it (`charts.KINDS`).
    metrics: whose values `look` is given, in this order.
    look: (float [N], ...) -> a sentence, or None.
  """

  name: str
  title: str
  chart: str
  metrics: tuple[str, ...]
  look: Callable[..., str | None]


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a check said of a stage; no sentence where all is well."""

  check: Check
  stage: str
  sentence: str | None


def look(curves: Curves, evaluation: Figures | None) -> list[Finding]:
  """All checks that a run has the figures for.

  Args:
    curves: of all its stages.
    evaluation: the "eval" of its last evaluation, if it has one.
  """
  found = []
  for stage, by_metric in curves.items():
    checks = PPO_CHECKS if config_lib.name_of(stage) == "ppo" else ()
    for check in (*checks, SKIPPED):
      rows = _rows(by_metric, check.metrics)
      needed = 1 if check is SKIPPED else MIN_ROWS
      if rows is not None and rows.shape[1] >= needed:
        found.append(Finding(check, stage, check.look(*rows)))
  if evaluation is not None:
    found += [Finding(check, "evaluate", check.look(evaluation))
              for check in EVALUATION_CHECKS]
  return found


def _rows(by_metric, metrics) -> Array | None:
  """[metric, N]: the rows in which all of them are finite."""
  if not all(metric in by_metric for metric in metrics):
    return None
  columns = [by_metric[metric] for metric in metrics]
  if len({len(column.steps) for column in columns}) > 1:
    return None
  rows = np.stack([column.values for column in columns])
  return rows[:, np.isfinite(rows).all(0)]


# ------------------------------------------------------------------- trends


def _tenth(values: Array) -> int:
  return max(3, len(values) // 10)


def _first(values: Array) -> float:
  return float(values[:_tenth(values)].mean())


def _middle(values: Array) -> float:
  start = (len(values) - _tenth(values)) // 2
  return float(values[start:start + _tenth(values)].mean())


def _last(values: Array) -> float:
  return float(values[-_tenth(values):].mean())


def _rise(before: Array, after: Array) -> tuple[float, float]:
  """(difference of the means, its standard error)."""
  error = np.sqrt(before.var(ddof=1) / len(before)
                  + after.var(ddof=1) / len(after))
  return float(after.mean() - before.mean()), float(error)


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"


# ------------------------------------------------------------ checks of PPO


def kl_explodes(kl: Array) -> str | None:
  """Faster than in a straight line, where it should level off."""
  middle, last = _middle(kl), _last(kl)
  if last < 1 or last < 2.5 * middle:
    return None
  return (f"The KL to the reference grows ever faster: {middle:.2f} nats a "
          f"response half-way, {last:.2f} at the end, where it should level "
          "off.")


def kl_none(kl: Array) -> str | None:
  last = _last(kl)
  if last >= 0.05:
    return None
  return (f"The KL to the reference is {last:.3f} nats a response at the end: "
          "the policy has hardly moved from where it started.")


def length_exploited(score: Array, length: Array) -> str | None:
  """Score and length rise together."""
  first, last = _first(length), _last(length)
  if last < 1.25 * first or _last(score) <= _first(score):
    return None
  together = float(np.corrcoef(score, length)[0, 1])
  if together < 0.7:
    return None
  return (f"Score rises with length: responses grew from {first:.1f} to "
          f"{last:.1f} tokens while the score rose from {_first(score):.2f} to "
          f"{_last(score):.2f} (correlation over iterations {together:.2f}), "
          "so the reward may be for length.")


def length_drifts(length: Array) -> str | None:
  first, last = _first(length), _last(length)
  if 1 / 1.5 < last / max(first, 1e-9) < 1.5:
    return None
  return (f"The length of responses drifts from {first:.1f} to {last:.1f} "
          "tokens: people and the reward model now read another kind of text.")


def proxy_gold_gap(score: Array, gold: Array) -> str | None:
  """The reward model's score goes on rising, the gold score does not."""
  return _gold_falls(score, gold) or _gold_stalls(score, gold)


def _gold_falls(score: Array, gold: Array) -> str | None:
  """From its best tenth of the run."""
  size = _tenth(gold)
  means = np.convolve(gold, np.ones(size) / size, "valid")
  start = int(means.argmax())
  best, last = gold[start:start + size], gold[-size:]
  fall, error = _rise(best, last)
  score_then = float(score[start:start + size].mean())
  if -fall <= max(0.05 * abs(best.mean()), _CLEAR * error) or (
      _last(score) <= score_then):
    return None
  return (f"The gold score fell from {best.mean():.3f} to {last.mean():.3f} "
          f"while the reward model's score rose from {score_then:.2f} to "
          f"{_last(score):.2f}: the policy exploits the reward model.")


def _gold_stalls(score: Array, gold: Array) -> str | None:
  """In the last third, with a tenth of the score's whole rise or more."""
  third = max(3, len(gold) // 3)
  parts = slice(-2 * third, -third), slice(-third, None)
  score_rise, score_error = _rise(*(score[part] for part in parts))
  gold_rise, gold_error = _rise(*(gold[part] for part in parts))
  whole = _last(score) - _first(score)
  if score_rise <= max(0.1 * whole, _CLEAR * score_error) or (
      gold_rise > gold_error):
    return None
  return (f"In the last third the reward model's score rose by "
          f"{score_rise:.2f} and the gold score by {gold_rise:.3f}: what is "
          "still gained is not what the labelers want.")


def clip_high(clip_frac: Array) -> str | None:
  last = _last(clip_frac)
  if last <= 0.3:
    return None
  return (f"{_percent(last)} of the probability ratios are clipped at the end: "
          "updates are too large, and most of the gradient is thrown away.")


def clip_never(clip_frac: Array) -> str | None:
  if clip_frac.any():
    return None
  return (f"Not one probability ratio was clipped in {len(clip_frac)} rows: "
          "updates are very small, or clip_eps is wide.")


def value_dead(explained_variance: Array) -> str | None:
  last = _last(explained_variance)
  if last >= 0.1:
    return None
  return (f"The value function explains {_percent(last)} of the variance of "
          "returns at the end: advantages are little better than noise.")


def entropy_collapses(entropy: Array) -> str | None:
  first, last = _first(entropy), _last(entropy)
  if last >= 0.3 * first:
    return None
  return (f"The entropy fell from {first:.3f} to {last:.3f} nats a token: the "
          "policy says almost the same to everything, and explores no more.")


def unended(ended: Array) -> str | None:
  last = _last(ended)
  if last >= 0.9:
    return None
  return (f"Only {_percent(last)} of the responses end before the limit of "
          "tokens: the rest are cut off, and are scored so.")


def ptx_loss_rises(loss: Array) -> str | None:
  size = _tenth(loss)
  rise, error = _rise(loss[:size], loss[-size:])
  if rise <= max(0.01 * _first(loss), _CLEAR * error):
    return None
  return (f"The loss on pretraining text rose from {_first(loss):.4f} to "
          f"{_last(loss):.4f} during PPO, in spite of its pretraining "
          "gradients: the policy forgets.")


def skipped_updates(skipped: Array) -> str | None:
  """`skipped` counts from the start of the stage."""
  count = skipped[-1]
  if not count:
    return None
  return (f"{count:.0f} optimizer step(s) were not applied, for a loss, a "
          "gradient or a parameter was not finite.")


PPO_CHECKS = (
    Check("kl_explodes", "KL explodes", "kl", ("train/ppo/kl",), kl_explodes),
    Check("kl_none", "No KL", "kl", ("train/ppo/kl",), kl_none),
    Check("length_exploited", "Score for length", "length",
          ("train/ppo/score", "train/ppo/response_length"), length_exploited),
    Check("length_drifts", "Length drifts", "length",
          ("train/ppo/response_length",), length_drifts),
    Check("proxy_gold_gap", "Score and gold part", "gold",
          ("train/ppo/score", "train/ppo/gold"), proxy_gold_gap),
    Check("clip_high", "Much is clipped", "clip", ("train/ppo/clip_frac",),
          clip_high),
    Check("clip_never", "Nothing is clipped", "clip", ("train/ppo/clip_frac",),
          clip_never),
    Check("value_dead", "Dead value function", "value",
          ("train/critic/explained_variance",), value_dead),
    Check("entropy_collapses", "Entropy collapses", "entropy",
          ("train/ppo/entropy_estimate",), entropy_collapses),
    Check("unended", "Responses do not end", "ended", ("train/ppo/ended",),
          unended),
    Check("alignment_tax", "Pretraining loss rises", "ptx",
          ("train/ptx/loss",), ptx_loss_rises),
)
SKIPPED = Check("skipped_updates", "Skipped updates", "skipped",
                ("train/skipped",), skipped_updates)


# ------------------------------------------------------ checks of evaluation


def tax_paid(figures: Figures) -> str | None:
  """The last policy against the one with the least loss."""
  losses = figures.get("pretrain_loss", {})
  if len(losses) < 2:
    return None
  *others, policy = losses
  least = min(others, key=losses.get)
  if losses[policy] <= 1.01 * losses[least]:
    return None
  return (f"The loss on held-out pretraining text is {losses[policy]:.4f} for "
          f"{policy} and {losses[least]:.4f} for {least}: an alignment tax of "
          f"{_percent(losses[policy] / losses[least] - 1)}.")


def proxy_misleads(figures: Figures) -> str | None:
  """The last policy against the best other one by the reward model."""
  scores, gold = (figures.get(name) for name in (
      "score_intervals", "gold_score_intervals"))
  if not scores or not gold:
    return None
  *others, policy = scores
  rivals = [name for name in others
            if scores[policy]["low"] > scores[name]["high"]
            and gold[policy]["high"] < gold[name]["low"]]
  if not rivals:
    return None
  rival = max(rivals, key=lambda name: gold[name]["mean"])
  return (f"On held-out prompts the reward model scores {policy} "
          f"{scores[policy]['mean']:.2f} and {rival} "
          f"{scores[rival]['mean']:.2f}, but the gold score is "
          f"{gold[policy]['mean']:.3f} against {gold[rival]['mean']:.3f}: the "
          "policy exploits the reward model.")


EVALUATION_CHECKS = (
    Check("proxy_gold_gap", "Score and gold part", "", (), proxy_misleads),
    Check("alignment_tax", "Alignment tax", "", (), tax_paid),
)


def flagged(found: list[Finding]) -> Iterator[Finding]:
  return (finding for finding in found if finding.sentence)
