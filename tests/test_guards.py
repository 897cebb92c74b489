"""Guards: each speaks of a run with its defect, none of a healthy one."""

import contextlib
import dataclasses
import html
import json
import math
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from rlhf_jax import guards, losses, metrics, ppo_step, sampler
from rlhf_jax.data import batches
from rlhf_jax.trainers import ppo
from tests import tiny_run

SETTINGS = common.guards(common.MINI)


class Notes:
  """A writer that keeps what guards say."""

  def __init__(self):
    self.said = []

  def note(self, stage, step, guard, message):
    self.said.append((step, guard, message))


def make(actions=None, **limits):
  notes = Notes()
  return notes, guards.Guards(
      "ppo", notes, actions=SETTINGS["actions"] | (actions or {}),
      limits=SETTINGS["limits"] | limits)


def healthy(step, rng):
  """The numbers of an iteration at mini, as they were measured."""
  progress = min(step / 40, 1)
  return {
      "train/ppo/kl": 3 * progress + rng.normal(0, 0.05),
      "train/ppo/kl_se": 0.01 + 0.1 * progress,
      "train/ppo/first_ratio_deviation": 2e-7,
      "train/ppo/clip_frac": max(0.0, rng.normal(0.002, 0.002)),
      "train/ppo/ended": 0.97, "train/ppo/sampler_drift_mean": 3e-7,
      "train/ppo/score": 1.6 * progress + rng.normal(0, 0.05),
      "train/ppo/distinct": 0.4 - 0.1 * progress + rng.normal(0, 0.005),
      "train/ppo/gold": 0.48 + 0.25 * progress + rng.normal(0, 0.02),
      "train/skipped": 0.0, "train/skipped_in_a_row": 0.0}


def rows(num=100, seed=0, **changes):
  """Iterations 1 to `num`; `changes` are functions of the step."""
  rng = np.random.default_rng(seed)
  for step in range(1, num + 1):
    values = healthy(step, rng)
    for name, change in changes.items():
      prefix = "train/" if name.startswith("skipped") else "train/ppo/"
      values[prefix + name] = change(step)
    yield step, values


def first_stop(guard, steps):
  """(step, message) at which a guard stops, None where none does."""
  for step, values in steps:
    try:
      guard.look(step, values)
    except guards.GuardError as error:
      return step, str(error)
  return None


# --------------------------------------------------------- sequences of numbers


@pytest.mark.parametrize("seed", range(20))
def test_healthy_numbers_are_let_pass(seed):
  notes, guard = make()
  assert first_stop(guard, rows(seed=seed)) is None
  assert not notes.said


STOPPING = {
    "not_finite": dict(skipped_in_a_row=lambda step: max(0, step - 20)),
    "negative_kl": dict(kl=lambda step: -0.2),
    "large_kl": dict(kl=lambda step: 10.0 * step),
    "first_ratio": dict(
        first_ratio_deviation=lambda step: 0.02 * (step > 30)),
    "sampler_drift": dict(sampler_drift_mean=lambda step: 0.01),
}
WARNING = {
    "skipped": dict(skipped=lambda step: float(step > 7)),
    "clip_frac": dict(clip_frac=lambda step: 0.0),
    "ended": dict(ended=lambda step: max(0.0, 1 - step / 50)),
    "over_optimised": dict(gold=lambda step: 0.5 + 0.1 * math.sin(step / 20)),
}


@pytest.mark.parametrize("name", STOPPING)
def test_what_stops(name):
  notes, guard = make()
  step, message = first_stop(guard, rows(**STOPPING[name]))
  assert f"step {step}: the guard {name!r} stops the run" in message
  assert f"--config.guards.actions.{name}=warn" in message
  assert "Usually" in message  # what people change
  assert not notes.said


@pytest.mark.parametrize("name", WARNING)
def test_what_warns(name):
  notes, guard = make()
  assert first_stop(guard, rows(**WARNING[name])) is None
  assert {said[1] for said in notes.said} == {name}
  assert len(notes.said) <= 5  # not at every step


@pytest.mark.parametrize("name", [*STOPPING, *WARNING])
@pytest.mark.parametrize("action", ["warn", "off"])
def test_actions(name, action):
  notes, guard = make(actions={name: action})
  assert first_stop(guard, rows(**(STOPPING | WARNING)[name])) is None
  expected = {name} if action == "warn" else set()
  assert {said[1] for said in notes.said} == expected


def test_a_high_clip_fraction_warns():
  notes, guard = make()
  first_stop(guard, rows(clip_frac=lambda step: 0.4))
  assert "40 % of the probability ratios are clipped" in notes.said[0][2]


def test_diversity_that_falls_while_the_score_rises_warns():
  notes, guard = make()
  first_stop(guard, rows(distinct=lambda step: 0.4 * 0.98**step))
  assert "diversity" in notes.said[0][2]


def test_a_fall_without_a_rise_of_the_score_is_let_pass():
  notes, guard = make()
  first_stop(guard, rows(gold=lambda step: 0.7 * 0.98**step,
                         score=lambda step: 1 - 0.01 * step))
  assert not notes.said


def test_a_resumed_run_says_the_same():
  change = WARNING["over_optimised"]
  notes, guard = make()
  first_stop(guard, rows(**change))
  before, again = make()[1], Notes()
  steps = list(rows(**change))
  first_stop(before, steps[:70])
  resumed = guards.Guards("ppo", again, **SETTINGS)
  resumed.catch_up([{"step": step, **values} for step, values in steps[:70]])
  first_stop(resumed, steps[70:])
  assert again.said == [said for said in notes.said if said[0] > 70]


def test_every_guard_has_an_action_and_a_case():
  assert set(SETTINGS["actions"]) == set(guards.NAMES)
  assert set(guards.NAMES) == {*STOPPING, *WARNING, "recompiled",
                               "repeated_batch"}
  fields = {field.name for field in dataclasses.fields(guards.Limits)}
  assert set(SETTINGS["limits"]) == fields


def evaluation(win_rate, score=2.0):
  interval = lambda mean: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
  return {"score_intervals": {"sft": interval(0.0), "ppo": interval(score)},
          "win_rate": {"ppo": interval(win_rate)}}


def test_a_win_rate_that_falls_while_the_score_rises_is_named():
  assert "judges prefer it in only 30 %" in guards.of_evaluation(
      evaluation(0.3), "ppo", "sft")
  for fine in (evaluation(0.7), evaluation(0.45), evaluation(0.3, score=0.1)):
    assert guards.of_evaluation(fine, "ppo", "sft") is None
  assert guards.of_evaluation(evaluation(0.3), "sft", "sft") is None


# ------------------------------------------------------------------- real runs


def run_stage(tmp_path, stage, **overrides):
  """Runs a stage of the tiny run; what its guards said."""
  tiny_run.run(tiny_run.only((stage,), **overrides), tmp_path)
  return metrics.read_notes(tmp_path)


def run_ppo(tmp_path, **overrides):
  settings = dict(ppo__num_iters=12, ppo__every_save_steps=4)
  return run_stage(tmp_path, "ppo", **settings | overrides)


def only(name, action="stop"):
  """All other guards off: a defect may be seen by several."""
  return {f"guards__actions__{other}": action if other == name else "off"
          for other in guards.NAMES}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_said_of_a_clean_run(tmp_path, seed):
  stopping = {f"guards__actions__{name}": "stop" for name in guards.NAMES}
  assert not run_ppo(tmp_path, seed=seed, **stopping)


@contextlib.contextmanager
def sampling_by(change):
  """`change(Generate) -> Generate`."""
  make_generate = sampler.make_generate
  with mock.patch.object(
      sampler, "make_generate", lambda *args, **kwargs: change(
          make_generate, *args, **kwargs)):
    yield


def another_temperature(make_generate, *args, temperature, **kwargs):
  return make_generate(*args, temperature=0.5 * temperature, **kwargs)


def stale_policy(make_generate, *args, **kwargs):
  """The sampler never gets the new parameters."""
  generate, first = make_generate(*args, **kwargs), []

  def sample(params, key, rows):
    first or first.append(jax.tree.map(jnp.copy, params))
    return generate(first[0], key, rows)

  return sample


def scoring_at_another_temperature():
  make_score = ppo_step.make_score
  return mock.patch.object(
      ppo_step, "make_score", lambda policy, critic, settings, *rest: (
          make_score(policy, critic, dataclasses.replace(
              settings, temperature=1.1), *rest)))


def waiting_for_another_end():
  """The wrong id stands for the end: nothing ever ends."""
  make_settings = ppo.make_settings
  return mock.patch.object(
      ppo, "make_settings", lambda *args: dataclasses.replace(
          make_settings(*args), eos_id=300))


HIGH_RATE = dict(ppo__optimizer__learning_rate=0.03,
                 ppo__optimizer__start_fraction=1.0, ppo__method__kl_coef=0.0)
DEFECTS = {
    "not_finite": (contextlib.nullcontext, dict(
        ppo__optimizer__learning_rate=1e30)),
    "negative_kl": (lambda: sampling_by(stale_policy), HIGH_RATE),
    "large_kl": (contextlib.nullcontext, dict(
        HIGH_RATE, guards__limits__max_kl=5.0)),
    "first_ratio": (scoring_at_another_temperature, {}),
    "clip_frac": (contextlib.nullcontext, dict(
        HIGH_RATE, ppo__method__num_epochs=4, ppo__ptx_batch_size=64,
        guards__limits__max_clip_frac=0.2)),
    "ended": (waiting_for_another_end, {}),
    "sampler_drift": (lambda: sampling_by(another_temperature), {}),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_run_with_a_defect_is_stopped(tmp_path, name):
  defect, overrides = DEFECTS[name]
  with defect(), pytest.raises(guards.GuardError) as stopped:
    run_ppo(tmp_path, **only(name), **overrides)
  assert f"the guard {name!r} stops the run" in str(stopped.value)
  left = list((tmp_path / "ppo" / "stopped").iterdir())
  assert {path.suffix for path in left} == {".npz", ".json"}
  for path in left:
    if path.suffix == ".npz":
      with np.load(path, allow_pickle=False) as arrays:
        assert arrays["prompts/prompt_tokens"].shape == (16, 28)
        assert arrays["pretrain/tokens"].shape[0] in (16, 64)
    else:
      assert json.loads(path.read_text())["message"] == str(stopped.value)
  assert not (tmp_path / "ppo" / "done.json").exists()


def one_bad_batch():
  """The loss of the batch with the third step's first row is not finite."""
  token_logprobs = losses.token_logprobs
  seen = []

  def spoilt(logits, tokens, temperature=1.0):
    is_bad = (tokens == seen[0]).all(-1, keepdims=True)
    return jnp.where(
        is_bad, jnp.nan, token_logprobs(logits, tokens, temperature))

  return seen, mock.patch.object(losses, "token_logprobs", spoilt)


def test_one_bad_batch_is_skipped_and_said(tmp_path):
  seen, spoilt = one_bad_batch()
  base = tiny_run.base()
  from rlhf_jax import pipeline, streams  # pylint: disable=g-import-not-at-top
  from etils import epath  # pylint: disable=g-import-not-at-top
  run = pipeline.make_run(base.config, epath.Path(base.workdir))
  at = streams.pretrain(run, "train", 16, run.data_seed("pretrain", "pretrain"))
  seen.append(at(2)["tokens"][5][1:])
  with spoilt:
    notes = run_stage(tmp_path, "pretrain", pretrain__every_log_steps=1)
  assert [(n["step"], n["guard"]) for n in notes] == [(3, "skipped")]
  values = metrics.read(tmp_path, "pretrain")
  skipped = {row["step"]: row["train/skipped"] for row in values
             if "train/skipped" in row}
  assert skipped == {step: float(step >= 3) for step in range(1, 17)}
  assert json.loads((tmp_path / "summary.json").read_text())["guards"] == notes


@contextlib.contextmanager
def batches_by(change):
  """`change(batch at, number) -> batch` of training streams."""
  call = batches.Batches.__call__

  def changed(self, number):
    if self.num_batches is not None:  # of an evaluation
      return call(self, number)
    return change(types.MethodType(call, self), number)

  with mock.patch.object(batches.Batches, "__call__", changed):
    yield


def restarted(at, number):
  return at(number % 3)


def another_shape(at, number):
  return {name: x[:, :-1] if number > 5 else x
          for name, x in at(number).items()}


@pytest.mark.parametrize("name, stage, change", [
    ("repeated_batch", "pretrain", restarted),
    ("repeated_batch", "ppo", restarted),
    ("recompiled", "pretrain", another_shape)])
def test_a_stream_with_a_defect_is_stopped(tmp_path, name, stage, change):
  with batches_by(change), pytest.raises(guards.GuardError, match=name):
    run_stage(tmp_path, stage, ppo__num_iters=5, **only(name))


def test_what_is_not_a_guards_is_still_written_before_it_stops(tmp_path):
  """The row of the step is there to be read, the checkpoint before it too, and
  a report that says why."""
  defect, overrides = DEFECTS["ended"]
  with defect(), pytest.raises(guards.GuardError):
    run_ppo(tmp_path, **only("ended"), **overrides)
  written = [row["step"] for row in metrics.read(tmp_path, "ppo")]
  assert written == [1, 2, 3, 4, 5]
  saved = [path.name for path in (tmp_path / "ppo/checkpoints").iterdir()]
  assert saved == ["4"]
  report = html.unescape((tmp_path / "report.html").read_text())
  assert "the guard 'ended' stops the run" in report
