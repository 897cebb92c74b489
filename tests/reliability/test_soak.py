"""Nothing that a run holds grows with its iterations."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import pytest

from tests import tiny_run
from tests.reliability import soak

_ROOT = pathlib.Path(__file__).parents[2]
_ITERATIONS, _WARM_UP, _EVERY = 500, 100, 5
_LIMIT = 2.0  # percent
_SECONDS = 3 * 3600


def growth(samples, name):
  """(last, first): medians of a quarter of the samples each, so that what
  single samples catch in flight, a save for example, does not count."""
  values = [sample[name] for sample in samples]
  part = len(values) // 4
  return statistics.median(values[-part:]), statistics.median(values[:part])


def test_growth_is_seen():
  flat = [{"host": 100 + 50 * (n % 7 == 0)} for n in range(80)]
  rising = [{"host": 100 + n} for n in range(80)]
  assert growth(flat, "host") == (100, 100)
  assert growth(rising, "host") == (169.5, 109.5)


@pytest.mark.long
def test_500_iterations_hold_no_more_than_100(tmp_path, account):
  tiny_run.base()
  ended = subprocess.run(
      [sys.executable, "-m", "tests.reliability.soak", str(tmp_path / "run"),
       str(_ITERATIONS), str(_EVERY)],
      cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
      capture_output=True, text=True, timeout=_SECONDS, check=False)
  assert ended.returncode == 0, ended.stderr[-3000:]
  samples = [json.loads(line) for line in ended.stdout.splitlines()
             if line.startswith("{")]
  assert [s["step"] for s in samples] == [
      *range(_EVERY, _ITERATIONS + 1, _EVERY)]
  warm = [s for s in samples if s["step"] > _WARM_UP]
  percent = {}
  for name in ("host", "device"):
    last, first = growth(warm, name)
    percent[f"{name}_percent"] = round(100 * (last / first - 1), 3)
  more = {name: int(last - first) for name in (
      "files", "threads", "system_threads")
          for last, first in [growth(warm, name)]}
  account("soak", iterations=_ITERATIONS, warm_up=_WARM_UP,
          host_bytes=samples[-1]["host"], device_bytes=samples[-1]["device"],
          **percent, **more)
  assert max(percent.values()) < _LIMIT, (percent, samples)
  assert more["files"] <= 0 and more["threads"] <= 0, (more, samples)
  # Those of the libraries' pools come and go; one lost at each save is more.
  saves = (_ITERATIONS - _WARM_UP) / soak.EVERY_SAVE_STEPS
  assert more["system_threads"] < saves / 2, (more, samples)
