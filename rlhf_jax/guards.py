"""Guards: what must not pass in silence while a model is trained.

Each looks at the numbers of a step and says what is wrong with them, what that
means and what people change. `config.guards.actions` decides what follows:
"stop" ends the run (exits.STOPPED) with the batch written for a person to look
at, "warn" prints and keeps it in guards.jsonl and summary.json, "off" is off.
A guard of numbers that a stage does not have is silent there.

Nothing here decides over a result: a run that is not stopped is the same
without its guards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import collections
import contextlib
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from rlhf_jax import metrics
from rlhf_jax.data import batches

STOP, WARN, OFF = "stop", "warn", "off"
_WARNED_AGAIN = 20  # steps later, if it goes on
_STEPS_TO_WARM_UP = 2
Values = Mapping[str, float]


class GuardError(Exception):
  """A guard stops the run.

  Attributes:
    step: at which.
    is_alone: of what this process sees, and others perhaps do not.
  """

  def __init__(self, message: str, step: int, is_alone: bool):
    super().__init__(message)
    self.step = step
    self.is_alone = is_alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """When guards speak; `config.guards.limits`.

  Attributes:
    skipped_updates: so many optimizer steps in a row that are not applied.
    max_kl: nats a response, to the reference.
    kl_standard_errors: so many below zero, over ten iterations.
    first_ratio_deviation: of an iteration's first minibatch from 1.
    max_clip_frac: over ten iterations.
    unclipped_iters: so many in a row in which not one ratio was clipped.
    min_ended: share of responses that end, over five iterations.
    sampler_drift: mean difference of a token's log-prob, sampler to scorer.
    gold_fall, distinct_fall: shares of their best level that gold score or
      diversity may lose while the reward-model score rises.
  """

  skipped_updates: int
  max_kl: float
  kl_standard_errors: float
  first_ratio_deviation: float
  max_clip_frac: float
  unclipped_iters: int
  min_ended: float
  sampler_drift: float
  gold_fall: float
  distinct_fall: float


class Guards:
  """The guards of one stage in training."""

  def __init__(
      self, stage: str, writer: metrics.Writer, *,
      actions: Mapping[str, str], limits: Mapping[str, Any]):
    """`actions` and `limits` as of `config.guards`."""
    self._stage = stage
    self._writer = writer
    self._actions = dict(actions)
    checked = Limits(**limits)
    self._looks = {
        name: make(checked) for name, make in _LOOKS.items()
        if self._actions[name] != OFF}
    self._last_warning: dict[str, int] = {}
    self._batches = _Repeats()

  def catch_up(self, rows: Sequence[Values]) -> None:
    """Shows what earlier calls of the run wrote: a resumed run's guards speak
    when those of an undisturbed one would."""
    for row in rows:
      numbers = {k: math.nan if v is None else v for k, v in row.items()}
      for name, look in self._looks.items():
        if look(numbers):
          self._is_due(name, int(row["step"]))

  def look(self, step: int, values: Values) -> None:
    """Looks at the numbers of a step.

    Raises:
      GuardError: one of the guards that stop has something to say.
    """
    for name, look in self._looks.items():
      self._speak(name, step, look(values))

  def look_at_batch(self, step: int, name: str, epoch: int, batch) -> None:
    """Looks at this process's part of a stream's batch.

    Raises:
      GuardError: it was there before in the same epoch.
    """
    if self._actions["repeated_batch"] != OFF:
      self._speak(
          "repeated_batch", step, self._batches(name, epoch, step, batch),
          is_alone=True)

  @contextlib.contextmanager
  def compilations(self, step: int, first: int) -> Iterator[None]:
    """Around a step: nothing should be compiled after the first ones."""
    before = _compilations.count
    yield
    found = _compilations.count - before
    if found and step > first + _STEPS_TO_WARM_UP and (
        self._actions["recompiled"] != OFF):
      self._speak("recompiled", step, _RECOMPILED.format(found=found),
                  is_alone=True)

  def _speak(self, name: str, step: int, message: str | None,
             is_alone: bool = False) -> None:
    if message is None:
      return
    if self._actions[name] == STOP:
      raise GuardError(
          f"{self._stage}, step {step}: the guard {name!r} stops the run. "
          f"{message}\nTo go on all the same, give the same command with "
          f"--config.guards.actions.{name}=warn.", step, is_alone)
    if self._is_due(name, step):
      self._writer.note(self._stage, step, name, message)

  def _is_due(self, name: str, step: int) -> bool:
    """Whether a warning is said, or was said just now; notes those said."""
    if step - self._last_warning.get(name, -_WARNED_AGAIN) < _WARNED_AGAIN:
      return False
    self._last_warning[name] = step
    return True


# ------------------------------------------------------------- what each sees


class _Window:
  """The newest values of some metrics, whole or not at all."""

  def __init__(self, size: int):
    self._rows: collections.deque[tuple[float, ...]] = (
        collections.deque(maxlen=size))

  def add(self, *row: float) -> np.ndarray | None:
    """[size, len(row)] once there are so many, else None."""
    self._rows.append(row)
    is_full = len(self._rows) == self._rows.maxlen
    return np.array(self._rows) if is_full else None


def _not_finite(limits: Limits):
  """One bad batch is skipped and counted; many in a row do not heal."""

  def look(values: Values) -> str | None:
    in_a_row = values.get("train/skipped_in_a_row", 0)
    if in_a_row < limits.skipped_updates:
      return None
    bad = sorted(n for n, v in values.items() if not np.isfinite(v))
    seen = f" ({', '.join(bad[:4])} not finite)" if bad else ""
    return (
        f"{in_a_row:.0f} optimizer steps in a row were not applied{seen}: the "
        "loss, a gradient or a parameter was NaN or infinite. Usually the "
        "learning rate or ptx_coef is lowered; and look at the batch.")

  return look


def _skipped(limits: Limits):
  del limits
  seen = [0.0]

  def look(values: Values) -> str | None:
    skipped = values.get("train/skipped", 0.0)
    found, seen[0] = skipped - seen[0], skipped
    if found <= 0:
      return None
    return (f"{found:.0f} optimizer step(s) not applied since the last row, "
            "for the loss, a gradient or a parameter was not finite. One is "
            "an odd batch; if there are more, lower the learning rate.")

  return look


def _negative_kl(limits: Limits):
  window = _Window(10)

  def look(values: Values) -> str | None:
    if "train/ppo/kl_se" not in values:
      return None
    rows = window.add(values["train/ppo/kl"], values["train/ppo/kl_se"])
    if rows is None:
      return None
    kl, error = rows[:, 0].mean(), np.sqrt((rows[:, 1]**2).sum()) / len(rows)
    if kl >= -limits.kl_standard_errors * error - 1e-4:
      return None
    return (
        f"the KL to the reference is {kl:.3g} nats a response (standard error "
        f"{error:.2g}) over ten iterations. No KL is negative: the responses "
        "are not samples of the policy that scores them. Usually temperature, "
        "padding or the end token differ between sampling and scoring.")

  return look


def _above(metric: str, limit: str, message: str):
  """A guard of one metric: it speaks where that is above its limit."""

  def make(limits: Limits):
    largest = getattr(limits, limit)

    def look(values: Values) -> str | None:
      value = values.get(metric, 0.0)
      if not value > largest:
        return None
      return message.format(value=value, limit=largest)

    return look

  return make


_large_kl = _above(
    "train/ppo/kl", "max_kl",
    "the KL to the reference is {value:.3g} nats a response, over the limit of "
    "{limit:g}: the policy has left what the reward model can judge. Usually "
    "kl_coef is raised, or the learning rate lowered.")

_first_ratio = _above(
    "train/ppo/first_ratio_deviation", "first_ratio_deviation",
    "the first minibatch has a probability ratio {value:.3g} away from 1, "
    "before any update: old log-probs and new ones are not of the same "
    "computation. Usually dropout is on, or they are made at another precision "
    "or batch shape.")

_sampler_drift = _above(
    "train/ppo/sampler_drift_mean", "sampler_drift",
    "sampler and scorer give the same tokens log-probs that are {value:.3g} "
    "apart on average: the policy that is trained is not the one that sampled. "
    "Usually the KV cache's positions or masks, the temperature, or "
    "config.decode.dtype is at fault.")


def _clip_frac(limits: Limits):
  high, low = _Window(10), _Window(limits.unclipped_iters)

  def look(values: Values) -> str | None:
    if "train/ppo/clip_frac" not in values:
      return None
    rows, long_rows = (
        window.add(values["train/ppo/clip_frac"]) for window in (high, low))
    if rows is not None and rows.mean() > limits.max_clip_frac:
      return (
          f"{100 * rows.mean():.0f} % of the probability ratios are clipped "
          "over ten iterations: most of the gradient is thrown away. Usually "
          "the learning rate or the inner epochs are lowered.")
    if long_rows is not None and not long_rows.any():
      return (
          f"not one probability ratio was clipped in {len(long_rows)} "
          "iterations: the clip does nothing, and the policy may hardly move. "
          "Usually the learning rate is raised, or clip_eps is wrong.")
    return None

  return look


def _ended(limits: Limits):
  window = _Window(5)

  def look(values: Values) -> str | None:
    if "train/ppo/ended" not in values:
      return None
    rows = window.add(values["train/ppo/ended"])
    if rows is None or rows.mean() >= limits.min_ended:
      return None
    return (
        f"only {100 * rows.mean():.0f} % of the responses end: the policy has "
        "stopped ending its answers, and the reward model reads them cut off. "
        "Usually missing_eos_penalty is raised, or max_response_tokens.")

  return look


def _over_optimised(limits: Limits):
  """Against the best ten iterations so far, for a fall comes after a rise."""
  window = _Window(10)
  peaks: dict[str, tuple[float, float]] = {}  # metric -> (its mean, score)
  falls = {"distinct": ("diversity (different bigrams)", limits.distinct_fall),
           "gold": ("gold score", limits.gold_fall)}

  def look(values: Values) -> str | None:
    if "train/ppo/distinct" not in values:
      return None
    rows = window.add(*(values.get(f"train/ppo/{name}", math.nan)
                        for name in ("score", *falls)))
    if rows is None:
      return None
    score, *means = rows.mean(0)
    for (name, (what, fall)), mean in zip(falls.items(), means):
      best, score_then = peaks.get(name, (-math.inf, score))
      if mean > best:
        peaks[name] = mean, score
      elif score > score_then and mean < (1 - fall) * best:
        return (
            f"the reward model's score rose from {score_then:.3g} to "
            f"{score:.3g} while the {what} fell from {best:.3g} to "
            f"{mean:.3g}: the policy exploits the reward model. Usually "
            "kl_coef is raised, PPO stopped earlier, or comparisons of this "
            "policy are collected for a new reward model.")
    return None

  return look


def of_evaluation(
    figures: Mapping[str, Any], policy: str, baseline: str) -> str | None:
  """The guard "over_optimised" where a run is evaluated: the reward model
  prefers a policy that its judges do not.

  Args:
    figures: the "eval" of summary.json.
    policy: the one that was optimised.
    baseline: the one it is compared with.
  """
  scores = figures["score_intervals"]
  rate = figures["win_rate"].get(policy)
  if not rate or scores[policy]["low"] <= scores[baseline]["high"]:
    return None
  if rate["high"] >= 0.5:
    return None
  return (
      f"the reward model scores {policy!r} {scores[policy]['mean']:.3g} and "
      f"{baseline!r} {scores[baseline]['mean']:.3g}, but the judges prefer it "
      f"in only {100 * rate['mean']:.0f} % of the prompts: the policy exploits "
      "the reward model. Usually kl_coef is raised, PPO stopped earlier, or "
      "comparisons of this policy are collected for a new reward model.")


_LOOKS: dict[str, Callable[[Limits], Callable[[Values], str | None]]] = {
    "not_finite": _not_finite,
    "skipped": _skipped,
    "negative_kl": _negative_kl,
    "large_kl": _large_kl,
    "first_ratio": _first_ratio,
    "clip_frac": _clip_frac,
    "ended": _ended,
    "over_optimised": _over_optimised,
    "sampler_drift": _sampler_drift,
}
NAMES = (*_LOOKS, "recompiled", "repeated_batch")

_RECOMPILED = (
    "{found} program(s) were compiled again after the first steps: each costs "
    "as much as many steps. Usually a shape, dtype or sharding of the "
    "arguments changes from step to step.")


class _Repeats:
  """Digests of the batches of each stream's present epoch."""

  def __init__(self):
    self._epoch: dict[str, int] = {}
    self._seen: dict[str, dict[str, int]] = {}

  def __call__(self, name: str, epoch: int, step: int, batch) -> str | None:
    if self._epoch.get(name) != epoch:
      self._epoch[name], self._seen[name] = epoch, {}
    digest = batches.digest(batch)
    earlier = self._seen[name].setdefault(digest, step)
    if earlier == step:
      return None
    return (
        f"the stream {name!r} gives the batch of step {earlier} again, in the "
        "same epoch: the model sees some rows twice and others never. Usually "
        "an iterator was restarted without its position, or the data have "
        "doubled rows.")


class _Compilations:
  """Counts what JAX compiles, or fetches from its cache, from now on."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, unused_seconds: float, **unused) -> None:
    self.count += event == "/jax/core/compile/backend_compile_duration"


_compilations = _Compilations()
