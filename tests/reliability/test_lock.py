"""One run a workdir: the second is refused, and what is left is recognised."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

from etils import epath
import pytest

from rlhf_jax import lock, pipeline, storage
from tests import bucket, processes, tiny_run

PERIOD = 0.2
HOST = socket.gethostname()


@pytest.fixture(name="gs")
def _gs(monkeypatch, tmp_path, request):
  """A folder of the stand-in bucket that no other test uses."""
  bucket.use_machine(monkeypatch, tmp_path / "machine")
  name = re.sub(r"\W+", "_", request.node.name)
  return epath.Path(f"gs://{bucket.NAME}/lock/{name}")


def must_not_be_lost(message):
  raise AssertionError(message)


def held(workdir, on_lost=must_not_be_lost):
  return lock.held(workdir, on_lost=on_lost, period=PERIOD)


@contextlib.contextmanager
def other(workdir, says="held", **env):
  """A process that tries to hold it; yields it, its first words matched."""
  process = subprocess.Popen(
      [sys.executable, "-m", "tests.reliability.holder", str(workdir)],
      cwd=processes.ROOT, env=os.environ | env, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  late = threading.Timer(30, process.kill)  # or its words would be waited for
  late.start()
  try:
    words = process.stdout.readline()
    assert re.match(says, words), words
    yield process
  finally:
    late.cancel()
    process.kill()
    process.communicate()


def content(workdir):
  return json.loads((epath.Path(workdir) / lock.FILE).read_text())


def refusal(workdir, pid):
  return (rf"another run has {re.escape(str(workdir))}: process {pid} on "
          rf"{re.escape(HOST)} since \d.*; wait for it, end it with 'kill "
          rf"{pid}', or give another --workdir")


# --------------------------------------------------------------------- folders


def test_the_second_is_refused_and_the_first_keeps_it(tmp_path, account):
  with other(tmp_path / "run") as first:
    with pytest.raises(lock.LockError, match=refusal(
        tmp_path / "run", first.pid)), held(tmp_path / "run"):
      pass
    assert content(tmp_path / "run")["pid"] == first.pid
    with other(tmp_path / "run", "refused: "):
      pass
    first.communicate("")
    assert first.returncode == 0
  with held(tmp_path / "run"):
    assert content(tmp_path / "run")["pid"] == os.getpid()
  account("faults", fault="two runs in one folder", survived=True)


def test_nothing_is_left(tmp_path):
  with held(tmp_path / "new"):
    pass
  assert not (tmp_path / "new").exists()
  with held(tmp_path / "new"):
    (tmp_path / "new" / "config.json").write_text("{}")
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.json"]


def test_a_killed_holder_is_recognised(tmp_path, capsys, account):
  with other(tmp_path, CHILD="1") as killed:  # with a child that lives on
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with held(tmp_path):
      assert content(tmp_path)["pid"] == os.getpid()
  assert re.search(
      rf"the run of process {killed.pid} on {HOST} since .* ended without "
      "finishing; this one goes on\n", capsys.readouterr().out)
  account("faults", fault="SIGKILL while the folder is held", survived=True)


def test_whoever_waits_on_a_removed_file_looks_again(tmp_path):
  """Between opening the file and locking it, its holder ended."""
  flock = fcntl.flock
  first = contextlib.ExitStack()
  first.enter_context(held(tmp_path))

  def slow(file, how):
    first.close()  # removes the file that is open here
    flock(file, how)

  with mock.patch.object(fcntl, "flock", slow), held(tmp_path):
    with pytest.raises(lock.LockError), held(tmp_path):
      pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_there_is_one_warning(tmp_path, capsys, number, account):
  def flock(*unused):
    raise OSError(number, os.strerror(number))
  with mock.patch.object(fcntl, "flock", flock), held(tmp_path):
    pass
  assert capsys.readouterr().err.count("warning: ") == 1
  account("faults", fault=f"no flock ({errno.errorcode[number]})",
          survived=True)


def test_a_run_is_refused_while_another_goes_on(tmp_path, account):
  """The program itself: a real run, and a second one meanwhile."""
  args = [f"--config={processes.write_experiment(tmp_path)}",
          f"--workdir={tmp_path / 'run'}", "--config.stages=('pretrain',)",
          "--config.pretrain.num_steps=2"]
  first = processes.start(*args, num_devices=1)
  while not (tmp_path / "run" / "metrics.jsonl").exists():
    assert first.poll() is None, first.communicate()
    time.sleep(0.05)
  before = (tmp_path / "run" / "config.json").read_bytes()
  with pytest.raises(lock.LockError, match=refusal(
      tmp_path / "run", first.pid)):
    pipeline.run_all(
        tiny_run.tiny_config(stages=("pretrain",), seed=7), tmp_path / "run")
  assert (tmp_path / "run" / "config.json").read_bytes() == before
  (ended,) = processes.wait([first])
  assert ended.status == 0, ended.printed
  assert (tmp_path / "run" / "pretrain" / "done.json").exists()
  assert not (tmp_path / "run" / lock.FILE).exists()
  account("faults", fault="two runs at once", survived=True)


# --------------------------------------------------------------------- buckets


def test_a_live_lease_refuses(gs, capsys, account):
  with other(gs) as first:
    first_beat = content(gs)["beat"]
    # It lives, but is not asked: what decides is that it renews.
    with mock.patch.object(lock.Holder, "is_gone", False), pytest.raises(
        lock.LockError, match=refusal(gs, first.pid)), held(gs):
      pass
    assert content(gs)["beat"] > first_beat
    first.communicate("")
  assert not gs.exists()
  assert re.search(rf"process {first.pid} on {HOST} has it; waiting 0.6 s",
                   capsys.readouterr().out)
  account("faults", fault="two runs in one folder of a bucket", survived=True)


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_stale_lease_is_taken_over(gs, capsys, machine, account):
  with other(gs) as killed:
    killed.send_signal(signal.SIGKILL)
    killed.wait()
  left = content(gs)
  if machine == "another":
    storage.write_text(gs / lock.FILE, json.dumps(left | {"host": "far"}))
  began = time.monotonic()
  with held(gs):
    assert content(gs)["pid"] == os.getpid()
    seconds = time.monotonic() - began
  printed = capsys.readouterr().out
  if machine == "this":
    assert f"process {killed.pid} on {HOST} since" in printed
    assert "waiting" not in printed
  else:
    assert f"process {killed.pid} on far has it; waiting 0.6 s" in printed
    assert f"process {killed.pid} on far gave no sign" in printed
    assert seconds >= 3 * PERIOD
  assert not gs.exists()
  account("faults", fault=f"SIGKILL while a lease is held, {machine} machine",
          survived=True)


def test_of_two_that_find_a_stale_one_one_gets_it(gs):
  storage.write_text(gs / lock.FILE, "{}")
  found, barrier = [], threading.Barrier(2)

  def attempt():
    try:
      with held(gs):
        found.append("held")
        barrier.wait()
    except lock.LockError:
      found.append("refused")
      barrier.wait()

  threads = [threading.Thread(target=attempt) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(found) == ["held", "refused"]


def test_whose_lease_was_taken_stops(gs, account):
  with other(gs) as first:
    first.send_signal(signal.SIGSTOP)  # a machine that stands still
    thief = content(gs) | {"pid": 77, "host": "far", "token": "other"}
    storage.write_text(gs / lock.FILE, json.dumps(thief))
    first.send_signal(signal.SIGCONT)
    assert re.match(
        rf"lost: {gs} was taken over by process 77 on far",
        first.stdout.readline())
    assert first.wait() == 2
    assert content(gs)["pid"] == 77
  account("faults", fault="lease stolen", survived=True)


@pytest.mark.parametrize("kind", sorted(bucket.OUTAGES))
def test_an_outage_costs_no_lease(gs, kind, account):
  lost = []
  with held(gs, lost.append):
    with bucket.outage(kind) as failed:
      time.sleep(3 * PERIOD)
    assert failed()
    beat = content(gs)["beat"]
    until = time.monotonic() + 10
    while content(gs)["beat"] == beat and time.monotonic() < until:
      time.sleep(PERIOD)
    assert content(gs)["beat"] > beat and not lost
  assert not gs.exists()
  account("faults", fault=f"bucket fails while a lease is held ({kind})",
          survived=True)


def test_an_answer_that_was_lost_is_no_thief(gs):
  """Written, but the connection broke before the answer: the next write meets
  a generation that is its own."""
  lost, calls = [], []
  replace = lock._Lease._replace

  def forget(self, generation):
    is_ours = replace(self, generation)
    calls.append(generation)
    if len(calls) % 2:
      self._generation = generation  # as before the write
    return is_ours

  with mock.patch.object(lock._Lease, "_replace", forget), held(
      gs, lost.append):
    until = time.monotonic() + 10
    while content(gs)["beat"] < 4 and time.monotonic() < until:
      time.sleep(PERIOD)
    assert content(gs)["beat"] >= 4 and not lost


def test_a_lease_that_somebody_deleted_is_written_anew(gs):
  with held(gs):
    storage.remove(gs / lock.FILE)
    until = time.monotonic() + 10
    while not (gs / lock.FILE).exists() and time.monotonic() < until:
      time.sleep(PERIOD)
    assert content(gs)["pid"] == os.getpid()
