"""Where the time of a stage goes; and that without a profile nothing waits."""

import collections
import gzip
import json
import os
import pathlib
import subprocess
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import profiling
from tests import tiny_run

ROOT = pathlib.Path(__file__).parent.parent


class Clock:
  """A clock that goes on when it is told to."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture(name="no_trace", autouse=True)
def _no_trace():
  """Whatever other tests of this process have loaded."""
  with mock.patch.object(profiling, "can_trace", lambda: False):
    yield


@pytest.fixture(name="clock")
def _clock():
  clock = Clock()
  with mock.patch.object(profiling, "time", clock):
    yield clock


def test_without_a_profile_nothing_is_waited_for_or_timed():
  never = mock.Mock(side_effect=AssertionError)
  with (mock.patch.object(profiling, "time", types.SimpleNamespace(
            monotonic=never)),
        mock.patch.object(jax, "block_until_ready", never)):
    with profiling.of_stage("/nowhere", False):
      profiling.next_step()
      with profiling.phase("step") as done:
        arrays = object()
        assert done(arrays) is arrays
    assert profiling.phase("one") is profiling.phase("another")


def test_seconds_by_hand(tmp_path, clock, capsys):
  with profiling.of_stage(tmp_path / "toy", True):
    clock.now += 5  # before the first step
    for number in range(4):
      profiling.next_step()
      with profiling.phase("step"):
        clock.now += 1
        with profiling.phase("generate"):
          clock.now += 10 if number == 0 else 2 + number
      clock.now += 0.5
    with profiling.phase("closing"):
      clock.now += 7
  found = json.loads((tmp_path / "toy/profile/phases.json").read_text())
  # of the two first steps 10 and 3 seconds, of those after them 4 and 5
  assert found == {
      "steps": 4, "first_steps": 2, "seconds": 19.0, "first_seconds": 21.0,
      "phases": {
          "generate": {"times": 2, "seconds": 9.0, "median_seconds": 4.5,
                       "first_seconds": 13.0},
          "step": {"times": 2, "seconds": 2.0, "median_seconds": 1.0,
                   "first_seconds": 2.0},
          # its first time compiles, whenever that is
          "closing": {"times": 0, "seconds": 0.0, "median_seconds": 0.0,
                      "first_seconds": 7.0}}}
  _, *lines = capsys.readouterr().out.splitlines()  # no trace
  assert lines[1].split()[:2] == ["toy,", "phase"]
  assert lines[3].split() == [
      "generate", "2", "9.000", "47.4", "%", "4500.00", "13.000"]
  assert f"profile: {tmp_path / 'toy/profile'}" in lines


def test_a_phase_waits_for_its_arrays(tmp_path):
  with profiling.of_stage(tmp_path, True):
    with profiling.phase("step") as done:
      array = done(jax.jit(lambda x: x @ x)(jnp.ones((200, 200))))
      assert array.is_ready()


def test_a_profiled_run_has_the_same_results(tmp_path):
  base = tiny_run.base()
  tiny_run.run(tiny_run.only(("ppo", "evaluate"), profile=True), tmp_path)
  of_ppo = lambda folder: [
      {k: v for k, v in json.loads(line).items() if not k.endswith("seconds")}
      for line in (folder / "metrics.jsonl").read_text().splitlines()
      if json.loads(line)["stage"] == "ppo"]
  assert of_ppo(tmp_path) == of_ppo(base.workdir)
  for stage, phases in (
      ("ppo", {"batch", "generate", "score and update", "metrics",
               "checkpoint", "step", "load"}),
      ("evaluate", {"load", "generate", "text", "KL", "score",
                    "validation loss"})):
    found = json.loads((tmp_path / stage / "profile/phases.json").read_text())
    assert phases <= set(found["phases"])
    assert 0 < sum(times["seconds"] for times in found["phases"].values()) <= (
        found["seconds"])
  assert not (base.workdir / "ppo" / "profile").exists()


# In a process of its own, for nothing may be traced once libtpu is loaded.
PROGRAM = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
from absl import app
from rlhf_jax import main
sys.argv[0] = "main"
app.run(main.main, flags_parser=main.parse_flags)
"""


def test_the_command_leaves_a_trace_and_a_table(tmp_path):
  experiment = tmp_path / "tiny.py"
  experiment.write_text(
      "from tests import tiny_run\n\n\ndef get_config():\n"
      "  return tiny_run.tiny_config(stages=('pretrain',))\n")
  done = subprocess.run(
      [sys.executable, "-c", PROGRAM, f"--config={experiment}",
       f"--workdir={tmp_path / 'run'}", "--config.profile=True"],
      cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
      capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "run" / "pretrain" / "profile"
  assert "pretrain, phase" in done.stdout
  assert f"profile: {folder}" in done.stdout
  assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
  trace, = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
  events = collections.Counter(
      event.get("name") for event in json.loads(
          gzip.decompress(trace.read_bytes()))["traceEvents"])
  assert events["step"] == events["batch"] == 3


def test_without_a_trace_there_is_a_message(tmp_path, capsys):
  with profiling.of_stage(tmp_path / "toy", True):
    for _ in range(3):
      profiling.next_step()
  printed = capsys.readouterr().out
  assert "no trace, only the table" in printed
  assert "JAX_PLATFORMS=cpu" in printed and "toy, phase" in printed
  assert (tmp_path / "toy/profile/phases.json").exists()
