"""Processes that watch each other: where one fails, all end and name it.

When one process of a run is gone, the others wait for it in a collective that
never comes. So every process keeps a connection to process 0, which a thread
reads: process 0 tells all others what went wrong anywhere. One that is killed
can say nothing, but its operating system closes the connection. Lines of JSON:

  to process 0    {"process", "of", "host"}    once, the greeting
                  {"failed": message, "status"}
                  {"finished": true}
  from process 0  {"coordinator": address}     all are there
                  {"failure": Failure}         end
                  {"finished": true}           all are

The connections precede `jax.distributed.initialize`, whose own time-outs and
lost connections abort the process from C++ without naming anybody.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from rlhf_jax import exits

GONE = ("ended without a word: it was killed (is its memory full?), or its "
        "machine is gone")
# Seconds: for all to come to the same error, and for the others to leave
# before process 0 does, whose service their C++ clients cannot be without.
_AGREE = 3
_LEAVE = 10
# A machine that vanishes closes nothing: it is gone after 5 + 3 * 5 seconds.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why the run ends.

  Attributes:
    process: the number of the process that failed.
    host: its machine.
    message: what was raised, or how it went.
    status: of all processes' ends; with REFUSED a person can mend it.
  """

  process: int
  host: str
  message: str
  status: int = exits.FAILED


class Line:
  """A connection that carries JSON lines; any thread may send."""

  def __init__(self, connection: socket.socket):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
      if hasattr(socket, name):  # not on every system
        connection.setsockopt(
            socket.IPPROTO_TCP, getattr(socket, name), value)
    self._connection = connection
    self._reader = connection.makefile("r", encoding="utf-8")
    self._lock = threading.Lock()

  def send(self, **content) -> None:
    """Sends one line; who is gone already need not be told."""
    try:
      with self._lock:
        self._connection.sendall((json.dumps(content) + "\n").encode())
    except OSError:
      pass  # the thread that reads sees the end of the line as well

  def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
    """The next line; None at the end, or where nothing comes in time."""
    try:
      self._connection.settimeout(seconds)
      text = self._reader.readline()
      self._connection.settimeout(None)
      return json.loads(text) if text.endswith("\n") else None
    except (OSError, ValueError):
      return None

  def close(self) -> None:
    self._reader.close()
    self._connection.close()


class Watch:
  """What process 0 (`Hub`) and the others (`Member`) have in common."""

  def __init__(self, process_id: int):
    self.process_id = process_id
    self.host = socket.gethostname()
    self._refusal: str | None = None
    self._has_refused = threading.Event()
    self._all_finished = threading.Event()

  def refuse(self, message: str) -> NoReturn:
    """Ends the run for a person's error: printed once where all see it."""
    self._refusal = message
    self._has_refused.set()
    self._report(message, exits.REFUSED)

  def fail(self, message: str, status: int = exits.FAILED) -> NoReturn:
    """Ends the run for what this process raised, or was told to do at once."""
    self._report(message, status)

  def _report(self, message: str, status: int) -> NoReturn:
    raise NotImplementedError

  def _agrees(self, message: str) -> bool:
    """Whether this process comes to the same error by itself."""
    self._has_refused.wait(_AGREE)
    return self._refusal == message

  def _leave(self, failure: Failure) -> NoReturn:
    """Ends this process, with a word on who failed unless it is known."""
    own = failure.process == self.process_id
    is_refused = failure.status == exits.REFUSED
    text = None
    if own and is_refused:
      text = f"error: {failure.message}"
    elif not own and not (is_refused and self._agrees(failure.message)):
      is_error = failure.status not in exits.TOGETHER
      text = "error: " * is_error + describe(failure)
    if text:
      say(text)
    exit_now(failure.status)


class Hub(Watch):
  """Process 0: hears all others and tells them."""

  def __init__(self, members: Mapping[int, tuple[str, Line]]):
    super().__init__(process_id=0)
    self._members = dict(members)
    self._lock = threading.Lock()
    self._failure: Failure | None = None
    self._finished: set[int] = set()
    self._threads: list[threading.Thread] = []
    for member in members:
      self._threads.append(_in_background(self._listen, member))

  def finish(self) -> None:
    """Returns when all have finished."""
    self._finish(0)
    self._all_finished.wait()

  def _report(self, message: str, status: int) -> NoReturn:
    self._end(Failure(0, self.host, message, status))
    while True:  # another thread ends the process
      time.sleep(_LEAVE)

  def _listen(self, member: int) -> None:
    host, line = self._members[member]
    while (said := line.receive()) is not None:
      if "finished" in said:
        self._finish(member)
      if "failed" in said and not (
          said["status"] == exits.REFUSED and self._agrees(said["failed"])):
        self._end(Failure(member, host, said["failed"], said["status"]))
    if not self._all_finished.is_set():
      self._end(Failure(member, host, GONE))

  def _finish(self, process: int) -> None:
    with self._lock:
      self._finished.add(process)
      if len(self._finished) < len(self._members) + 1:
        return
    self._all_finished.set()
    for _, line in self._members.values():
      line.send(finished=True)

  def _end(self, failure: Failure) -> None:
    """Tells all; the first failure counts, what follows comes of it."""
    with self._lock:
      if self._failure is not None:
        return
      self._failure = failure
    for _, line in self._members.values():
      line.send(failure=dataclasses.asdict(failure))
    _in_background(self._leave_last)

  def _leave_last(self) -> NoReturn:
    until = time.monotonic() + _LEAVE
    for thread in self._threads:
      thread.join(max(0.0, until - time.monotonic()))
    self._leave(self._failure)


class Member(Watch):
  """Any other process: tells process 0 and hears it."""

  def __init__(self, process_id: int, hub_host: str, line: Line):
    super().__init__(process_id)
    self._gone = Failure(0, hub_host, GONE)
    self._line = line
    _in_background(self._listen)

  def finish(self) -> None:
    """Returns when all have finished."""
    self._line.send(finished=True)
    self._all_finished.wait()

  def _report(self, message: str, status: int) -> NoReturn:
    self._line.send(failed=message, status=status)
    time.sleep(_LEAVE)  # process 0 answers and the other thread leaves
    self._leave(Failure(self.process_id, self.host, message, status))

  def _listen(self) -> None:
    while (said := self._line.receive()) is not None:
      if "failure" in said:
        self._leave(Failure(**said["failure"]))
      if "finished" in said:
        self._all_finished.set()
    if not self._all_finished.is_set():
      self._leave(self._gone)


def describe(failure: Failure) -> str:
  """The failure in words, its process named."""
  verb = ("" if failure.message == GONE else
          "gave up: " if failure.status == exits.REFUSED else
          "ended: " if failure.status in exits.TOGETHER else "failed: ")
  return (f"process {failure.process} ({failure.host}) "
          f"{verb}{failure.message}")


def say(text: str) -> None:
  """Prints last words; where nobody reads any more (a pipe whose other end was
  told to end as well), the end comes without them."""
  with contextlib.suppress(OSError):
    print(f"\n{text}", file=sys.stderr, flush=True)


def exit_now(status: int) -> NoReturn:
  """Ends at once: an orderly exit would wait for the other processes."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):  # as in `say`
      stream.flush()
  os._exit(status)


def _in_background(run: Callable[..., None], *args) -> threading.Thread:
  thread = threading.Thread(target=run, args=args, daemon=True)
  thread.start()
  return thread
