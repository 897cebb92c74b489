"""SIGTERM and Ctrl-C: the run saves, and ends with a status of its own.

A signal comes at any moment, and may come to one process of many; the run ends
at the next safe point, the same one on all. Loops ask at each of them::

  interruption.check("collect")         where nothing is lost
  if interruption.asked(): save, raise  where something has to be saved

A safe point has no name: processes agree by how many they have passed, so all
have to ask equally often. With several processes it is JAX's preemption
service that brings the notice of one to the others. Before signals are heeded
here, `exits.heed_early_signals` is for them.

The program heeds signals from its start to its end (`heed_signals`). Where a
run is begun from Python, in a notebook above all, Ctrl-C and "interrupt" mean
the same for as long as the run takes (`heeded`).
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import socket
import threading
import time
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from rlhf_jax import exits, watch

# A cloud that takes its machine back gives 30 seconds at least.
GRACE_SECONDS = 25.0


class Interrupted(Exception):
  """A safe point was reached; `status` is that of the process's end."""

  def __init__(self, kept: str, status: int):
    super().__init__(kept)
    self.status = status


class _Notice:
  """What signals came; one a process."""

  def __init__(self):
    self.first: int | None = None
    self.passed = 0  # safe points


_notice = _Notice()


def asked() -> bool:
  """Whether to end here: a safe point, alike on all processes."""
  _notice.passed += 1
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(_notice.passed)
  return _notice.first is not None


def stop(kept: str) -> NoReturn:
  """Ends the run, once all is saved.

  Raises:
    Interrupted: says what is kept.
  """
  # Of another process's signal nothing more is known than that it came.
  is_person = _notice.first == signal.SIGINT
  raise Interrupted(kept, exits.INTERRUPTED if is_person else exits.PREEMPTED)


def check(stage: str) -> None:
  """A safe point where nothing is lost.

  Raises:
    Interrupted: a signal came.
  """
  if asked():
    stop(f"{stage}: what is done is kept")


def heed_signals(
    grace_seconds: float,
    tell_others: Callable[[], None] = lambda: None,
    end_all: Callable[[str, int], NoReturn] = (
        lambda unused, status: watch.exit_now(status)),
) -> None:
  """SIGTERM and Ctrl-C ask for an end from now on.

  A thread hears them, for Python's handlers would wait for a compilation or a
  collective to return. After SIGTERM the process ends after `grace_seconds` in
  any case, after a second Ctrl-C at once.

  Args:
    grace_seconds: between SIGTERM and the end.
    tell_others: brings the notice to the other processes.
    end_all: (why, status) -> ends them and this one at once.
  """
  _notice.first, _notice.passed = None, 0
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *unused: None)
  signal.set_wakeup_fd(writer.fileno())
  threading.Thread(
      target=_hear,
      args=(reader, writer, grace_seconds, tell_others, end_all),
      daemon=True).start()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
  """Ctrl-C asks for an end for the time of a `with`, in one process.

  A second one is a KeyboardInterrupt at once, as if this were not there.
  Nothing changes where signals are heeded already, or where Python gets none,
  as in other threads than the main one.
  """
  is_main = threading.current_thread() is threading.main_thread()
  usual = signal.default_int_handler
  if not is_main or signal.getsignal(signal.SIGINT) is not usual:
    yield
    return

  def ask(number, frame):
    if _notice.first is not None:
      usual(number, frame)
    _notice.first = number
    # Not here: the signal may have come in the middle of a print.
    _in_background(_say_asked, number)

  _notice.first, _notice.passed = None, 0
  signal.signal(signal.SIGINT, ask)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, usual)
    _notice.first = None


def _hear(reader, unused_writer, grace_seconds, tell_others, end_all) -> None:
  """Holds both ends of the pair, so that they stay open."""
  while True:
    number = signal.Signals(reader.recv(1)[0])
    if number not in (signal.SIGTERM, signal.SIGINT):
      continue  # one that somebody else handles
    if _notice.first is None:
      _notice.first = number
      _say_asked(number)
      tell_others()
    elif number == signal.SIGINT:
      # In a thread, for who ends all may wait for the others.
      _in_background(_end, end_all, "Ctrl-C again", exits.INTERRUPTED)
    if number == signal.SIGTERM:
      _in_background(_end_later, end_all, grace_seconds)


def _end_later(end_all, seconds: float) -> None:
  time.sleep(seconds)
  _end(end_all, f"nothing more was saved within {seconds:g} s of SIGTERM",
       exits.PREEMPTED)


def _end(
    end_all: Callable[[str, int], NoReturn], why: str, status: int
) -> NoReturn:
  _say(f"{why}: ended at once; the last checkpoint is kept")
  end_all(why, status)


def _in_background(run: Callable[..., None], *args) -> None:
  threading.Thread(target=run, args=args, daemon=True).start()


def _say_asked(number: int) -> None:
  _say(f"{signal.Signals(number).name}: saving, and ending at the next step"
       + "; Ctrl-C again ends at once" * (number == signal.SIGINT))


def _say(text: str) -> None:
  watch.say(f"{text} (process {os.getpid()})")
