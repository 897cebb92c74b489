"""Saving costs little beside training."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.reliability import save_cost

_ROOT = pathlib.Path(__file__).parents[2]
_PAIRS = 8
_LIMIT = 5.0  # percent of the step time, at the default cadence
_SECONDS = 3600


def test_a_share_is_of_all_iterations_between_two_saves():
  found = {"alone": [(4.0, 8.0)] * 3, "call": [(0.1, 0.1)] * 3,
           "beside": [(4.5, 9.0)] * 3, "wait": [(0.0, 0.0)] * 3,
           "whole": [(0.5, 0.8)] * 3}
  figures = save_cost.figures(found, every=20, num_bytes=7)
  assert figures["percent_blocking"] == 0.125  # 0.1 of 80 s
  assert figures["percent_wall"] == 0.75  # 0.1 + 0.5 of 80 s
  assert figures["percent_cpu"] == 0.5  # 0.8 of 160 s
  assert figures["percent_cpu_every_iteration"] == 10.0


@pytest.mark.long
def test_saves_cost_less_than_a_twentieth_at_mini(tmp_path, account):
  ended = subprocess.run(
      [sys.executable, "-m", "tests.reliability.save_cost",
       str(tmp_path / "run"), str(_PAIRS)],
      cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
      capture_output=True, text=True, timeout=_SECONDS, check=False)
  assert ended.returncode == 0, ended.stderr[-3000:]
  figures = json.loads(ended.stdout.splitlines()[-1])
  account("save_cost", **figures)
  assert figures["percent_blocking"] < _LIMIT, figures
  assert figures["percent_wall"] < _LIMIT, figures
  assert figures["percent_cpu"] < _LIMIT, figures
