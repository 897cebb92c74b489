"""Real processes of Python that have all imports behind them.

Imports take longer than most else that a short run does. So one process, the
mother, imports the libraries once and goes no further: it has no thread and no
JAX backend, and reads no flag. Each start forks it; the child takes over the
program, arguments, environment and output given, and is a process like any
other: with an id, locks, signals and an exit status of its own.

Not like others: it cannot be told anything during its imports, and children
of one mother hash strings alike. Where that matters, start Python itself.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import warnings

from tests import shared

_MOTHER = "import sys; from tests import forked; forked.serve(int(sys.argv[1]))"
_LONGEST = 1 << 20  # bytes of a request


class Process:
  """What tests use of `subprocess.Popen`, of a child of the mother's.

  Attributes:
    pid: its id, which stays its own until its status was asked for.
    stdout: all that it prints on both streams, text.
    returncode: None, then its exit status, or minus the signal that killed it.
  """

  def __init__(self, code: str, *args: str, env: dict[str, str]):
    """Starts `python -c CODE ARGS...` in the repository's root.

    Args:
      code: the program.
      *args: those of its command line.
      env: its whole environment.
    """
    self.returncode = None
    reader, writer = os.pipe()
    self.pid = _ask({"code": code, "args": args, "env": env}, writer)
    self.stdout = os.fdopen(reader, encoding="utf-8", errors="replace")
    self._fd = os.pidfd_open(self.pid)

  def poll(self) -> int | None:
    return self._ended_after(0)

  def wait(self, timeout: float | None = None) -> int:
    """Raises subprocess.TimeoutExpired after so many seconds."""
    if self._ended_after(timeout) is None:
      raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
    return self.returncode

  def communicate(self) -> tuple[str, None]:
    with self.stdout:
      return self.stdout.read(), self.wait() and None

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      signal.pidfd_send_signal(self._fd, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  def _ended_after(self, seconds: float | None) -> int | None:
    if self.returncode is None:
      waiting = select.poll()
      waiting.register(self._fd, select.POLLIN)
      if waiting.poll(None if seconds is None else 1000 * seconds):
        self.returncode = os.waitstatus_to_exitcode(_ask({"ended": self.pid}))
        os.close(self._fd)
    return self.returncode


def _ask(request: dict, *fds: int) -> int:
  """The mother's answer; descriptors given go over to her."""
  channel = _mother()
  socket.send_fds(channel, [json.dumps(request).encode()], fds)
  for fd in fds:
    os.close(fd)
  answer = channel.recv(100)
  assert answer, "the mother of processes is gone"
  return int(answer)


@functools.cache
def _mother() -> socket.socket:
  """Starts her; she ends when the other end of the channel is closed."""
  from tests import processes  # pylint: disable=g-import-not-at-top
  shared.folder()
  ours, hers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  started = subprocess.Popen(
      [sys.executable, "-c", _MOTHER, str(hers.fileno())], cwd=processes.ROOT,
      # NumPy's library of matrices starts a thread for each further core
      env=processes.environment(1) | {"OPENBLAS_NUM_THREADS": "1"},
      pass_fds=[hers.fileno()],
      stdout=subprocess.DEVNULL)  # no terminal, as for her children
  hers.close()
  atexit.register(started.wait)
  atexit.register(ours.close)  # first
  return ours


# ------------------------------------------------------------- in the mother


def serve(channel_fd: int) -> None:
  """Forks for each request; returns in no process before it is to end."""
  _import_all()
  shared.collect_seldom()
  channel = socket.socket(fileno=channel_fd)
  while True:
    request, fds, *_ = socket.recv_fds(channel, _LONGEST, 1)
    if not request:
      os._exit(0)
    request = json.loads(request)
    if "ended" in request:
      answer = os.waitpid(request["ended"], 0)[1]
    elif not (answer := _fork()):
      channel.close()
      _become(request, *fds)
      return
    for fd in fds:
      os.close(fd)
    channel.send(b"%d" % answer)


def _import_all() -> None:
  # All that the program imports, but not itself: it becomes `__main__`.
  # pylint: disable=g-import-not-at-top,unused-import
  import jax.experimental.multihost_utils
  from rlhf_jax import command, distributed, pipeline
  from tests import tiny_run
  # pylint: enable=g-import-not-at-top,unused-import


def _fork() -> int:
  assert len(os.listdir("/proc/self/task")) == 1, "a thread: forks may hang"
  with warnings.catch_warnings():
    # JAX warns of its threads, of which there is none yet.
    warnings.simplefilter("ignore", RuntimeWarning)
    return os.fork()


def _become(request: dict, output: int) -> None:
  """Runs a program in this process, as `__main__` is run."""
  os.dup2(output, 1)
  os.dup2(output, 2)
  os.close(output)
  os.environ.clear()
  os.environ.update(request["env"])
  # or the program would begin again, without what it was forked for
  os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
  # ignored where tests were started in the background
  signal.signal(signal.SIGINT, signal.default_int_handler)
  import jax  # pylint: disable=g-import-not-at-top
  # What JAX read from its mother's environment.
  jax.config.update(
      "jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
  sys.argv = ["-c", *request["args"]]
  import __main__  # pylint: disable=g-import-not-at-top
  exec(request["code"], vars(__main__))  # pylint: disable=exec-used
