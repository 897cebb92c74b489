"""Storage that fails: one message, what was saved is kept, and the same command
ends as if nothing had been."""

import contextlib
import errno
import math
import os
import re
import resource
import sys
import time
from unittest import mock

from absl.testing import flagsaver
from etils import epath
import jax
import pytest
from tensorboardX import record_writer

from rlhf_jax import (
    checkpoint, exits, faults, lock, main, patience, pipeline, storage,
)
from rlhf_jax.data import builders
from tests import bucket, test_pipeline, tiny_run

FULL = (errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="program")
def _program(tmp_path_factory, capfd):
  """Runs stages of the tiny run by the program; after those of the base run.

  Returns (exit status, what it printed as an error)."""
  path = tmp_path_factory.mktemp("experiments") / "tiny.py"
  path.write_text("from tests import tiny_run\n\n\ndef get_config():\n"
                  "  return tiny_run.only(('STAGE',))\n")

  def program(stage, workdir):
    path.write_text(re.sub(r"\('.*',\)", f"('{stage}',)", path.read_text()))
    argv, status = ["main", f"--config={path}", f"--workdir={workdir}"], 0
    capfd.readouterr()
    jax.config.update("jax_disable_most_optimizations", True)
    try:
      with flagsaver.flagsaver(), mock.patch.object(sys, "argv", argv):
        main.main(main.parse_flags(argv))
    except SystemExit as stopped:
      status = stopped.code
    finally:
      jax.config.update("jax_disable_most_optimizations", False)
    printed = capfd.readouterr().err
    assert "Traceback" not in printed, printed
    return status, printed[printed.find("error: "):] if status else ""

  return program


# ------------------------------------------------------------------ injections


@contextlib.contextmanager
def full_metrics():
  """Half of a line of metrics.jsonl is written, then the disk is full."""
  append = storage.Growing.append

  def half(self, text):
    if '"step": 12' in text:
      append(self, text[:9])
      raise OSError(*FULL)
    append(self, text)

  with mock.patch.object(storage.Growing, "append", half):
    yield


@contextlib.contextmanager
def full_board():
  """TensorBoard's file is on a full disk, as the system itself plays it."""
  with mock.patch.object(record_writer, "open_file",
                         lambda path: open("/dev/full", "wb")):
    yield


@contextlib.contextmanager
def small_files(owner, name, size, when=lambda *args: True):
  """From a call of `owner.name` on no file may become larger."""
  call = getattr(owner, name)
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit(*args, **kwargs):
    if when(*args):
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    return call(*args, **kwargs)

  try:
    with mock.patch.object(owner, name, limit):
      yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def is_last(checkpoints, step, *unused):
  return step == 16


@contextlib.contextmanager
def full_text(part):
  """The disk is full where a text of a path with `part` is written."""
  cls = type(epath.Path("/"))
  write = cls.write_text

  def fail(self, *args, **kwargs):
    if re.search(part, str(self)):
      raise OSError(*FULL, str(self))
    return write(self, *args, **kwargs)

  with mock.patch.object(cls, "write_text", fail):
    yield


@contextlib.contextmanager
def full_responses():
  """The second group of responses is cut in the middle."""
  append, calls = storage.Growing.append, []

  def half(self, text):
    if '"task"' in text:
      calls.append(text)
    if len(calls) == 2:
      append(self, text[:-100])
      raise OSError(*FULL)
    append(self, text)

  with mock.patch.object(storage.Growing, "append", half):
    yield


TO_8 = "'pretrain' up to its checkpoint of step 8"
NOTHING = "no checkpoint of another"


@pytest.mark.parametrize("stage, disturbances", [
    ("pretrain", [
        ("prepared data", lambda: small_files(builders, "write", 3000),
         r"array_record\S*: a file may not become that large", NOTHING),
        ("TensorBoard", full_board, r"run: the disk is full", NOTHING),
        ("checkpoint, texts", lambda: full_text("commit_success|METADA"),
         r"8\.orbax\S*: the disk is full", NOTHING),
        ("metrics.jsonl", full_metrics, r"run: the disk is full", TO_8),
        ("checkpoint, arrays",
         lambda: small_files(checkpoint.Checkpoints, "save", 30_000, is_last),
         r"checkpoints/16\S+: a file may not become that large", TO_8),
        ("done.json", lambda: full_text("done.json"),
         r"done.json.partial: the disk is full", "checkpoint of step 16"),
    ]),
    ("collect", [
        ("responses.jsonl", full_responses, r"run: the disk is full", NOTHING),
    ]),
])
def test_a_run_goes_on_once_there_is_room(
    base, program, tmp_path, account, stage, disturbances):
  """It meets one full disk after the other, the next each time that it is
  started again, and ends as if it had met none."""
  workdir = tmp_path / "run"
  for name, fault, cause, kept in disturbances:
    with fault():
      status, printed = program(stage, workdir)
    assert status == exits.REFUSED, name
    assert re.match(rf"error: \S*{cause}", printed), (name, printed)
    assert re.search(kept, printed), (name, printed)
    assert "then give the same command again" in printed
    assert printed.count("error: ") == 1
    assert not (workdir / stage / "done.json").exists()
  assert program(stage, workdir) == (0, "")
  test_pipeline.assert_same_result(stage, workdir, base)
  for name, *_ in disturbances:
    account("faults", fault=f"disk full: {name}", survived=True)


# --------------------------------------------------------------------- workdir


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_the_workdir(
    base, program, tmp_path, account, below):
  (tmp_path / "run").write_text("mine")
  status, printed = program("pretrain", tmp_path / "run" / below)
  assert status == exits.REFUSED
  assert re.match(r"error: --workdir=\S+: \S+/run is there and no folder; give "
                  "another folder, or move it away", printed), printed
  assert (tmp_path / "run").read_text() == "mine"
  account("faults", fault="a file in the workdir's place", survived=True)


@pytest.mark.parametrize("number, message", [
    (errno.EROFS, "the file system is read-only .*mounted for writing"),
    (errno.EACCES, "no permission .*have it granted"),
    (errno.ENOSPC, "the disk is full .*free some space"),
    (errno.EDQUOT, "the disk quota is used up"),
    (errno.EIO, "the disk reports an input/output error .*dmesg"),
])
def test_a_workdir_that_cannot_be_written(tmp_path, number, message, account):
  """Refused before anything is made; root may do all, so it is played."""
  call = os.open

  def refuse(path, flags, *args, **kwargs):
    if str(path).startswith(str(tmp_path)) and flags & os.O_CREAT:
      raise OSError(number, os.strerror(number), path)
    return call(path, flags, *args, **kwargs)

  with mock.patch.object(os, "open", refuse), pytest.raises(
      storage.StorageError, match=(
          rf"--workdir={tmp_path}/a/run: cannot write in {tmp_path}: "
          rf"{message}.*, or give another folder")):
    pipeline.run_all(tiny_run.tiny_config(), tmp_path / "a" / "run")
  assert not list(tmp_path.iterdir())
  account("faults", fault=f"workdir: {errno.errorcode[number]}", survived=True)


# --------------------------------------------------------------------- buckets


@contextlib.contextmanager
def outages_at(outages):
  """The bucket fails from a save on: step -> (kind, seconds)."""
  save = checkpoint.Checkpoints.save
  with contextlib.ExitStack() as stack:

    def begin(self, step, *args):
      if step in outages:
        self.finished_steps()
        stack.close()
        stack.enter_context(bucket.outage(*outages[step]))
      save(self, step, *args)

    with mock.patch.object(checkpoint.Checkpoints, "save", begin):
      yield


@pytest.fixture(name="gs")
def _gs(monkeypatch, tmp_path, request):
  """A folder of the stand-in bucket that no other test uses."""
  bucket.use_machine(monkeypatch, tmp_path / "machine")
  monkeypatch.setattr(lock, "SECONDS", 0.3)
  monkeypatch.setattr(patience, "_has_given_up", False)
  return epath.Path(f"gs://{bucket.NAME}/faults/{request.node.name}")


def test_a_bucket_that_fails(base, program, gs, monkeypatch, account):
  """For a while at the first save, which is waited for; for long at the next,
  which ends the run, and what was saved is kept."""
  monkeypatch.setattr(patience, "SECONDS", 5.0)
  with outages_at({8: ("dropped", 1.0), 16: ("503", math.inf)}):
    status, printed = program("pretrain", gs)
  assert status == exits.REFUSED
  assert re.match(
      rf"error: {gs}: the bucket does not answer \(backendError, 503\).\n"
      r"What was saved is kept, but cannot be looked at now", printed), printed
  assert test_pipeline.saved_steps(storage.local_copy(gs / "pretrain")) == [8]
  assert not (gs / "pretrain" / "done.json").exists()
  assert program("pretrain", gs) == (0, "")
  test_pipeline.assert_same_result("pretrain", storage.local_copy(gs), base)
  account("faults", fault="bucket: connections dropped for a while",
          survived=True)
  account("faults", fault="bucket: 503 for long", survived=True)


@pytest.mark.parametrize("kind", sorted(bucket.OUTAGES))
def test_a_request_is_tried_for_so_long(gs, monkeypatch, capsys, kind, account):
  monkeypatch.setattr(patience, "SECONDS", 2.5)
  with bucket.outage(kind, 1.5):
    storage.write_text(gs / "a", "1")  # waits
  assert (gs / "a").read_text() == "1"

  def seconds():
    began = time.monotonic()
    with pytest.raises(Exception) as raised:  # noqa: PT011, the library's
      (gs / "a").read_text()
    assert "does not answer" in faults.explain(raised.value).cause
    return time.monotonic() - began

  with bucket.outage(kind) as failed:
    assert 2.5 <= seconds() < 10
    assert 2 <= failed() <= 20  # with pauses
    assert seconds() < 1.5  # a run that ends for it asks once
  assert (gs / "a").read_text() == "1"
  with bucket.outage(kind):
    assert seconds() >= 2.5  # and is patient again once it answered
  account("faults", fault=f"bucket: {kind}, one request", survived=True)


# ----------------------------------------------------------------------- clock


def test_a_clock_that_is_set_back(base, program, tmp_path, account):
  """By a day between two calls, and by another one when a step is saved."""
  clock, days = time.time, [0]
  save = checkpoint.Checkpoints.save

  def set_back(*args):
    days[0] += 1
    save(*args)

  with tiny_run.interrupt_at("pretrain", 12), pytest.raises(KeyboardInterrupt):
    program("pretrain", tmp_path)
  with (mock.patch.object(time, "time", lambda: clock() - 86400 * days[0]),
        mock.patch.object(checkpoint.Checkpoints, "save", set_back)):
    days[0] = 1
    assert program("pretrain", tmp_path) == (0, "")
  assert days == [2]
  test_pipeline.assert_same_result("pretrain", tmp_path, base)
  checkpoints = tmp_path / "pretrain" / "checkpoints"
  os.utime(checkpoints / "8", (clock() + 86400,) * 2)
  with checkpoint.Checkpoints(checkpoints, keep=2) as saved:
    assert (saved.steps, saved.latest_step) == ([8, 16], 16)
  events = list((tmp_path / "tensorboard" / "pretrain").iterdir())
  assert len(events) == 2  # the second call did not write over the first's
  account("faults", fault="clock set back by a day", survived=True)
