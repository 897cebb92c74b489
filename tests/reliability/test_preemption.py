"""SIGTERM and Ctrl-C: a run saves, says so once, and ends with its status; the
same command goes on, and ends as one that nothing disturbed."""

import re
import signal
import time
from unittest import mock

from jax.experimental import multihost_utils
import jax.numpy as jnp
import pytest

from rlhf_jax import checkpoint, exits
from tests import forked, processes, results, test_processes
from tests.reliability import undisturbed

TERM, INT = signal.SIGTERM, signal.SIGINT
GRACE = 25  # seconds; where a test waits for its end it is shorter
NOTHING = {"bits": 0, "rows": 0, "values": 0, "files": 0}


class Chain:
  """One run, begun, told to end, and begun again."""

  def __init__(self, workdir, account):
    self.workdir = workdir
    self._account = account

  def start(self, num_processes, *args, **options):
    return processes.start_all(
        num_processes, *undisturbed.command(), f"--workdir={self.workdir}",
        f"--grace_seconds={GRACE}", *args, **options,
        num_devices=undisturbed.NUM_DEVICES)

  def tell(self, signals, moment, num_processes=1, to=None, imports=False):
    """Starts it, and at a moment sends signals to all processes or to some.

    Args:
      signals: one after the other, to each of them.
      moment: `() -> bool` of when, or "STAGE/STEP": as soon as one process has
        written that row, however busy the machine is.
      num_processes: of this start.
      to: the numbers of those told.
      imports: whether the start has imports to be told in.

    Returns:
      (statuses, all that was printed).
    """
    fault = ""
    if isinstance(moment, str):
      fault = f"{moment}/0/" + "+".join(s.name for s in signals)
      moment, signals = self.has_row(moment), ()
    started = self.start(num_processes, fault=fault, imports=imports)
    while not moment() and (not fault or started[0].poll() is None):
      assert all(p.poll() is None for p in started), processes.wait(started)
      time.sleep(0.005)
    told = time.monotonic()
    for sent in signals:
      for i in range(num_processes) if to is None else to:
        started[i].send_signal(sent)
      time.sleep(processes.BETWEEN_SIGNALS)
    ended = processes.wait(started)
    seconds = time.monotonic() - told
    statuses = [e.status for e in ended]
    printed = "\n".join(e.printed for e in ended)
    self._account(
        "preemption", case=fault or "+".join(s.name for s in signals),
        processes=num_processes, status=statuses, seconds=round(seconds, 2),
        said=re.findall("ended as asked.*", printed))
    assert seconds < GRACE + 3
    assert not re.search("Traceback|^error|^process", printed, re.M), printed
    return statuses, printed

  def saves(self, status, signals, moment, **kwargs):
    """The same, where all end with a status, and the one message names a step
    that is there, or a stage that saves nothing.

    Returns:
      The stage.
    """
    statuses, printed = self.tell(signals, moment, **kwargs)
    assert set(statuses) == {status}, printed
    (stage, step), = re.findall(
        r"ended as asked\. (\w+): (?:step (\d+) of \d+ is saved|what is done "
        r"is kept); the same command goes on", printed)
    if step:
      assert results.steps(self.workdir, stage)[-1] == int(step)
    return stage

  def finish(self, num_processes):
    for ended in processes.wait(self.start(num_processes)):
      assert ended.status == 0, ended.printed

  def has_row(self, row):
    """The moment at which the row STAGE/STEP is written."""
    path, (stage, step) = self.workdir / "metrics.jsonl", row.split("/")
    return lambda: path.exists() and (
        f'"stage": "{stage}", "step": {step},' in path.read_text())

  def has(self, path):
    """The moment at which a file is there and not empty."""
    path = self.workdir / path
    return lambda: path.exists() and path.stat().st_size > 0


@pytest.fixture(name="chain")
def _chain(tmp_path, account):
  return Chain(tmp_path / "run", account)


def after(seconds):
  until = time.monotonic() + seconds
  return lambda: time.monotonic() > until


def test_one_process(chain):
  statuses, printed = chain.tell([TERM], after(0.7), imports=True)
  assert statuses == [exits.PREEMPTED] and "nothing was changed" in printed
  assert not chain.workdir.exists()
  assert "pretrain" == chain.saves(  # among the preparation of data
      exits.PREEMPTED, [TERM], chain.has(".lock"))
  assert not results.steps(chain.workdir, "pretrain")
  assert "pretrain" == chain.saves(exits.PREEMPTED, [TERM], "pretrain/1")
  assert "sft" == chain.saves(exits.INTERRUPTED, [INT], "sft/1")
  assert "collect" == chain.saves(
      exits.PREEMPTED, [TERM], chain.has("collect/responses.jsonl"))
  statuses, printed = chain.tell([INT, INT], "rm/1")
  assert statuses == [exits.INTERRUPTED] and (
      "Ctrl-C again: ended at once" in printed), printed
  # Further ones do not spoil the save that the first asks for.
  assert "ppo" == chain.saves(exits.PREEMPTED, [TERM] * 5, "ppo/1")
  assert results.steps(chain.workdir, "ppo") == [1]
  assert "evaluate" == chain.saves(
      exits.PREEMPTED, [TERM], chain.has("evaluate/settings.json"))
  chain.finish(1)
  assert results.differences(chain.workdir, undisturbed.run(1)) == NOTHING


def test_two_processes(chain):
  """The notice of either reaches both, at the same safe point: within seconds,
  so that it may be one of a later stage."""
  chain.saves(exits.PREEMPTED, [TERM], chain.has_row("pretrain/1"),
              num_processes=2, to=[1])
  chain.saves(exits.PREEMPTED, [TERM, TERM], chain.has_row("sft/1"),
              num_processes=2)
  chain.saves(exits.INTERRUPTED, [INT], chain.has("collect/responses.jsonl"),
              num_processes=2)
  chain.finish(2)
  assert results.differences(chain.workdir, undisturbed.run(2)) == NOTHING


def test_a_guard_that_stops_stops_both_and_says_so_once(chain):
  ended = processes.wait(chain.start(
      2, "--config.stages=('pretrain',)",
      "--config.pretrain.optimizer.learning_rate=1e30",
      "--config.guards.limits.skipped_updates=1"))
  assert [e.status for e in ended] == [exits.STOPPED] * 2, ended
  assert [e.printed.count("error: ") for e in ended] == [1, 0], ended
  assert list(chain.workdir.glob("pretrain/stopped/step_*.json"))


def test_saving_passes_no_safe_point(tmp_path):
  """Orbax would, by the number of the step."""
  with mock.patch.object(
      multihost_utils, "reached_preemption_sync_point") as asked:
    with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
      saved.save(1, {"params": {"a": jnp.ones(2)}}, {})
      saved.wait()
      assert saved.latest_step == 1
  assert not asked.called


# ------------------------------------------------------ what does not end

ALONE = """
import os, signal, threading, time
import jax
from rlhf_jax import interruption
interruption.heed_signals({grace})
for number, delay in {signals}:
  threading.Timer(delay, os.kill, (os.getpid(), number)).start()
exec({body!r})
"""
SLEEPS = "time.sleep(600)"
COMPUTES = """
jax.block_until_ready(jax.jit(lambda x: jax.lax.while_loop(
    lambda x: x >= 0, lambda x: (x + 1) % 7, x))(0))
"""


LATE = "nothing more was saved within 1 s of SIGTERM"


@pytest.mark.parametrize("body, signals, status, why", [
    (COMPUTES, [TERM], exits.PREEMPTED, LATE),
    (SLEEPS, [TERM, TERM], exits.PREEMPTED, LATE),
    (COMPUTES, [INT, INT], exits.INTERRUPTED, "Ctrl-C again"),
    (SLEEPS, [INT, TERM], exits.PREEMPTED, LATE),
])
def test_a_step_that_does_not_end(body, signals, status, why, account):
  began = time.monotonic()
  ended, = processes.wait([forked.Process(
      ALONE.format(grace=1, body=body, signals=[
          (int(s), 0.5 * i) for i, s in enumerate(signals)]),
      env=processes.environment(1))])
  account("preemption", case=why, status=ended.status,
          seconds=round(time.monotonic() - began, 2))
  assert ended.status == status, ended.printed
  said = f"{why}: ended at once; the last checkpoint is kept"
  assert ended.printed.count(said) == 1, ended.printed


LATER = "threading.Timer({1}, os.kill, (os.getpid(), {0})).start(); "
MEETS = "multihost_utils.sync_global_devices('sooner')"


@pytest.mark.parametrize("bodies, status, why", [
    (("time.sleep(600)", LATER.format(15, 1) + MEETS), exits.PREEMPTED,
     r"process 1 \(\S+\) ended: nothing more was saved within 3 s of SIGTERM"),
    ((LATER.format(15, 1) + "time.sleep(600)",) * 2, exits.PREEMPTED,
     "nothing more was saved within 3 s of SIGTERM"),
    # apart: two of a kind that wait at once are one
    (("time.sleep(600)", LATER.format(2, 1) + LATER.format(2, 2) + MEETS),
     exits.INTERRUPTED, r"process 1 \(\S+\) ended: Ctrl-C again"),
])
def test_one_is_told_while_its_partner_never_comes(bodies, status, why):
  ended = test_processes.mini(*bodies)
  printed = "\n".join(e.printed for e in ended)
  assert [e.status for e in ended] == [status] * 2, printed
  assert max(e.seconds for e in ended) < 5
  assert re.search(why, printed) and not re.search(
      "^error|without a word", printed, re.M), printed


def test_all_end_at_the_same_safe_point():
  """Only one is told, and they pass their safe points apart in time."""
  body = """
from rlhf_jax import exits, interruption
if this == 1:
  threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
passed = 1
while not interruption.asked():
  time.sleep(0.02 * (this + 1))
  if passed % 5 == 0:
    multihost_utils.sync_global_devices(f"{passed}")
  passed += 1
print(f"passed {passed}.", flush=True)
distributed.leave("ended as asked", exits.PREEMPTED)
"""
  ended = test_processes.mini(body, body)
  printed = "\n".join(e.printed for e in ended)
  assert [e.status for e in ended] == [exits.PREEMPTED] * 2, printed
  passed = re.findall(r"passed (\d+)\.", printed)
  assert len(passed) == 2 and passed[0] == passed[1], printed
  assert printed.count("ended as asked") == 1


@pytest.mark.parametrize("body", [
    LATER.format(15, 1) + "time.sleep(600)", "1 / 0",
    "distributed.leave('ended as asked', exits.PREEMPTED)"])
def test_they_end_where_nobody_reads_what_they_say(body):
  """Who started them and read their output is told to end as well."""
  started = test_processes.start_mini(
      *["from rlhf_jax import exits; print('ready', flush=True); "
        "time.sleep(1); " + body] * 2)
  for process in started:
    while "ready" not in process.stdout.readline():
      pass
    process.stdout.close()
  for process in started:
    assert process.wait(timeout=20) == (
        exits.FAILED if "/" in body else exits.PREEMPTED)
