"""Ctrl-C in a run that was begun from Python, as in a notebook."""

import signal
import time
from unittest import mock

import pytest

from rlhf_jax import checkpoint, exits, interruption, metrics
from tests import tiny_run

USUAL = signal.default_int_handler


@pytest.fixture(name="free", autouse=True)
def _free():
  """Ctrl-C as Python has it at first, whatever the test runner made of it, or
  a test before that began a program (`heed_signals`)."""
  before, listener = signal.signal(signal.SIGINT, USUAL), signal.set_wakeup_fd(
      -1)
  yield
  signal.set_wakeup_fd(listener)
  assert signal.signal(signal.SIGINT, before) is USUAL


def ctrl_c():
  signal.raise_signal(signal.SIGINT)


def test_the_first_one_asks_and_the_second_ends_at_once(capfd):
  with pytest.raises(KeyboardInterrupt), interruption.heeded():
    assert not interruption.asked()
    ctrl_c()
    assert interruption.asked()
    ctrl_c()
  assert not interruption.asked()
  said, until = "", time.monotonic() + 30
  while "saving, and ending at the next step" not in said:
    assert time.monotonic() < until
    said += capfd.readouterr().err  # by a thread, beside the run


def test_it_is_as_before_afterwards():
  with interruption.heeded():
    pass
  with pytest.raises(KeyboardInterrupt):
    ctrl_c()


def test_who_heeds_it_already_goes_on_to_do_so():
  heard = []
  signal.signal(signal.SIGINT, lambda *unused: heard.append(1))
  with interruption.heeded():
    ctrl_c()
    assert heard and not interruption.asked()
  signal.signal(signal.SIGINT, USUAL)


def test_a_run_saves_ends_and_goes_on_by_the_same_call(tmp_path):
  tiny_run.keep_compiled()
  config = tiny_run.tiny_config(stages=("pretrain",))
  before, write = config.to_dict(), metrics.Writer.write

  def write_and_ask(self, stage, step, values):
    write(self, stage, step, values)
    if step == 4:
      ctrl_c()

  with (mock.patch.object(metrics.Writer, "write", write_and_ask),
        pytest.raises(interruption.Interrupted, match="of 16 is saved") as end):
    tiny_run.run(config, tmp_path)
  assert end.value.status == exits.INTERRUPTED
  assert not checkpoint.read_done(tmp_path / "pretrain")

  tiny_run.run(config, tmp_path)  # nobody has the workdir any more
  assert checkpoint.read_done(tmp_path / "pretrain")
  steps = [row["step"] for row in metrics.read(tmp_path, "pretrain")
           if "train/grad_norm" in row]
  assert steps == [4, 8, 12, 16]
  assert config.to_dict() == before
