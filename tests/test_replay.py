"""A recorded step, run again, is the same; or it is said where it is not."""

import json
import os
import shutil
import sys
from unittest import mock

from absl.testing import flagsaver
from etils import epath
import jax
import pytest

from rlhf_jax import checkpoint, guards, losses, replay
from tests import test_guards, tiny_run


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return replay.open_run(epath.Path(base.workdir))


@pytest.fixture(name="hurry", autouse=True)
def _hurry():
  """To the last bit only where it is compiled as the run was."""
  in_a_hurry = lambda: jax.config.update(
      "jax_disable_most_optimizations", True)
  in_a_hurry()
  yield in_a_hurry
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("stage, step, start", [
    ("pretrain", 12, 8),  # between two checkpoints
    ("sft", 4, 0),  # before the first: from the stage's start
    ("rm", 4, 3),  # the last, which is saved with its bias
    ("ppo", 3, 2),
])
def test_it_reproduces_to_the_last_bit(base, run, stage, step, start):
  found = replay.replay(run, stage, step)
  assert found.reproduces
  assert step in found.recorded
  saved = found.changed is not None
  assert saved == (stage == "ppo")  # the only one here that saved that step
  if stage != "rm":  # which saved 2 and 4
    assert found.start == start
  text = replay.format_replay(stage, step, found)
  assert "it reproduces, metrics" in text
  assert f"step {found.start}" in text if found.start else "the start" in text


def test_other_threads_are_named(run, capsys):
  found, threads = mock.Mock(start=2), os.environ["NPROC"]  # of tests/conftest
  replay.warn_of_other_devices(run, "ppo", found)
  assert not capsys.readouterr().out
  with mock.patch.dict(os.environ, NPROC="3"):
    replay.warn_of_other_devices(run, "ppo", found)
  said = capsys.readouterr().out
  assert f"'threads': {threads}}}, replayed on" in said
  assert "'threads': 3}: sums are added up" in said


def test_nothing_is_written(base, run):
  before = tiny_run.contents(base.workdir)
  replay.replay(run, "ppo", 2)
  assert tiny_run.contents(base.workdir) == before


def test_another_result_is_shown(run):
  loss = losses.clipped_policy_loss

  def scaled(*args):
    value, values = loss(*args)
    return 1.001 * value, values

  with mock.patch.object(losses, "clipped_policy_loss", scaled):
    found = replay.replay(run, "ppo", 3)
  assert not found.reproduces
  assert any(name.startswith("params/") for name in found.changed)
  text = replay.format_replay("ppo", 3, found)
  assert "does NOT reproduce" in text
  line, = (line for line in text.splitlines()
           if line.startswith("train/ppo/policy_loss"))
  assert len(line.split()) == 4  # name, two values, their difference


def test_a_step_at_which_a_guard_stopped(base, tmp_path, hurry):
  with pytest.raises(guards.GuardError):
    test_guards.run_ppo(
        tmp_path, ppo__optimizer__learning_rate=1e30,
        **test_guards.only("not_finite"))
  hurry()
  stopped, = (tmp_path / "ppo" / "stopped").glob("*.json")
  step = json.loads(stopped.read_text())["step"]
  found = replay.replay(
      replay.open_run(epath.Path(tmp_path)), "ppo", step)
  assert found.reproduces
  assert found.recorded[step]["train/skipped_in_a_row"] >= 8


def test_what_is_not_finite_is_shown_as_such():
  found = replay.Replayed(
      1, {2: {"loss": None, "norm": 1.5}}, {2: {"loss": None, "norm": None}},
      None)
  assert not found.reproduces
  lines = replay.format_replay("ppo", 2, found).splitlines()
  assert [line.split() for line in lines[2:4]] == [
      ["loss", "not", "finite", "not", "finite"],
      ["norm", "1.5", "not", "finite", "!"]]


@pytest.mark.parametrize("stage, step, message", [
    (None, 99, "no row of step 99; it has those of pretrain 4 to 16 every 4;"),
    ("ppo", 4, "no row of step 4 of 'ppo'"),
    ("evaluate", 1, "no row of step 1 of 'evaluate'"),
])
def test_a_step_that_is_not_there(run, stage, step, message):
  with pytest.raises(checkpoint.CheckpointError, match=message):
    replay.choose_stage(run, stage, step)


def test_the_last_stage_with_the_step_is_taken(run):
  assert replay.choose_stage(run, None, 3) == "ppo"
  assert replay.choose_stage(run, None, 16) == "rl_init"


def test_data_that_have_changed_are_not_replayed(base, tmp_path):
  """Nor is a run resumed on them: the last row before the step is another."""
  workdir = tmp_path / "run"
  shutil.copytree(base.workdir, workdir)
  run = replay.open_run(epath.Path(workdir))
  source = run.source

  def others(self, kind, split):
    rows = source(kind, split)
    return list(rows)[::-1] if kind == "prompts" else rows

  with mock.patch.object(type(run), "source", others), pytest.raises(
      checkpoint.CheckpointError,
      match=r"ppo/checkpoints/2 was saved on the way to something else:\n"
            r"  streams.prompts.last_row: .* -> .*\nBring back the data"):
    replay.replay(run, "ppo", 3)


def command(*args):
  with (flagsaver.flagsaver(), mock.patch.object(sys, "argv", ["", *args]),
        pytest.raises(SystemExit) as stopped):
    replay.app.run(replay.main, argv=["replay", *args])
  return stopped.value.code


def test_the_command(base, capsys):
  assert command(f"--workdir={base.workdir}", "--step=2") in (None, 0)
  assert "ppo, step 2" in capsys.readouterr().out
  assert command(f"--workdir={base.workdir}", "--step=99") == 2
  assert "no row of step 99" in capsys.readouterr().err
  assert command(f"--workdir={base.workdir / 'ppo'}", "--step=2") == 2
  assert "must be the folder of a run" in capsys.readouterr().err
