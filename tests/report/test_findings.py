"""Each check speaks of a run with its fault, and none of a healthy one."""

import pathlib

import numpy as np
import pytest

from rlhf_jax.report import charts, findings
from tests.report import made

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "report.md"
# What is wrong -> how the curves of a healthy run are changed.
FAULTS = {
    "kl_explodes": dict(kl=lambda v, t: 40 * t**4),
    "kl_none": dict(kl=lambda v, t: 0.01 * t),
    "length_exploited": dict(
        response_length=lambda v, t: 16 + 6 * (1 - np.exp(-5 * t))),
    "length_drifts": dict(response_length=lambda v, t: 30 - 15 * t),
    "proxy_gold_gap": dict(gold=lambda v, t: v - 0.3 * t**2),
    "clip_high": dict(clip_frac=lambda v, t: v + 0.35 * t),
    "clip_never": dict(clip_frac=lambda v, t: 0 * v),
    "value_dead": dict(explained_variance=lambda v, t: v - 0.9 * t),
    "entropy_collapses": dict(entropy_estimate=lambda v, t: v * (1 - t)**2),
    "unended": dict(ended=lambda v, t: v - 0.2 * t),
    "alignment_tax": dict(loss=lambda v, t: v + 0.1 * t),
    "skipped_updates": dict(skipped=lambda v, t: np.floor(5 * t)),
}


def flagged(curves, evaluation=None):
  return list(findings.flagged(findings.look(curves, evaluation)))


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_not_flagged(seed):
  curves = made.curves(made.ppo_metrics(seed=seed))
  looked = findings.look(curves, made.evaluation())
  assert {found.check.name for found in looked} == set(FAULTS)
  assert not list(findings.flagged(looked))


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_nothing_else(name):
  curves = made.curves(made.ppo_metrics(**FAULTS[name]))
  found, = flagged(curves)
  assert (found.check.name, found.stage) == (name, "ppo")
  assert found.sentence.endswith(".") and any(
      character.isdigit() for character in found.sentence)


def test_a_gold_score_that_stalls_is_found():
  risen = lambda t: np.minimum(t, 1 / 3)
  curves = made.curves(made.ppo_metrics(
      score=lambda v, t: 2 * t, gold=lambda v, t: 0.5 + 0.3 * risen(t)))
  found, = flagged(curves)
  assert found.check.name == "proxy_gold_gap"
  assert "In the last third" in found.sentence


@pytest.mark.parametrize(("name", "ppo"), [
    ("proxy_gold_gap", (1.7, 0.30, 0.96)),
    ("alignment_tax", (1.7, 0.71, 1.05))])
def test_an_evaluation_is_judged_too(name, ppo):
  found, = flagged({}, made.evaluation(ppo=ppo))
  assert (found.check.name, found.stage) == (name, "evaluate")


def test_a_short_or_gappy_stage_is_judged_by_its_finite_rows():
  assert not findings.look(made.curves({
      "train/ppo/kl": np.zeros(findings.MIN_ROWS - 1)}), None)
  kl = np.zeros(2 * findings.MIN_ROWS)
  kl[::2] = np.nan
  found, = flagged(made.curves({"train/ppo/kl": kl}))
  assert found.check.name == "kl_none"


def test_the_docs_and_the_charts_have_what_findings_point_to():
  sections = {line.removeprefix("### ")
              for line in DOCS.read_text().splitlines()
              if line.startswith("### ")}
  assert sections == set(FAULTS)
  for check in (*findings.PPO_CHECKS, findings.SKIPPED):
    assert [charts.kind_of(metric).name for metric in check.metrics][-1] == (
        check.chart)
