"""One run a workdir: whoever comes second is refused and told who has it.

A folder is held by the kernel's lock of WORKDIR/.lock, which ends with the
process, however that ends. A bucket has no such thing, so there an object of
the same name is a lease: its holder writes it anew every few seconds, and one
that nobody renews is free. Whoever finds one watches it and compares no
clocks; every write names the generation that it replaces, so that of two only
one succeeds.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid

from etils import epath

from rlhf_jax import storage

FILE = ".lock"
SECONDS = 10.0  # between two renewals of a lease
_MISSED = 3  # renewals after which it is free
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: set[int] = set()  # file descriptors


class LockError(RuntimeError):
  """Another run has the workdir."""


@dataclasses.dataclass(frozen=True)
class Holder:
  """Who has a workdir.

  Attributes:
    pid: the process.
    host: its machine.
    kernel: this boot of the machine and this set of process numbers, where
      the system tells; within it a process can be looked for.
    started: the time, for people.
    token: what no other run has.
  """

  pid: int
  host: str
  kernel: str
  started: str
  token: str

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host}"

  @property
  def is_gone(self) -> bool:
    """Whether it is known to have ended: only on the same machine."""
    if not self.kernel or (self.host, self.kernel) != (
        socket.gethostname(), _kernel()):
      return False
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return True
    except PermissionError:
      pass  # somebody else's, and alive
    return False


@contextlib.contextmanager
def held(
    workdir: epath.PathLike, *, on_lost: Callable[[str], None],
    period: float | None = None,
) -> Iterator[None]:
  """Holds a workdir for the time of a `with`.

  Args:
    workdir: a folder, made where there is none, or one of a bucket.
    on_lost: called with a message, by another thread, where a lease was taken
      by another run; it must end this one, for two would destroy each other's
      files.
    period: seconds between two renewals of a lease; None for `SECONDS`.

  Raises:
    LockError: another run has it.
  """
  me = Holder(os.getpid(), socket.gethostname(), _kernel(),
              time.strftime("%Y-%m-%d %H:%M:%S %Z"), uuid.uuid4().hex)
  if storage.is_bucket(workdir):
    with _Lease(workdir, me, period or SECONDS, on_lost):
      yield
  else:
    with _locked_folder(os.fspath(workdir), me):
      yield


def _refusal(workdir, holder: Holder | None) -> LockError:
  if holder is None:
    return LockError(f"another run has {workdir}; wait for it, or give another "
                     "--workdir")
  return LockError(
      f"another run has {workdir}: {holder} since {holder.started}; wait for "
      f"it, end it with 'kill {holder.pid}', or give another --workdir")


def _read(text: str | bytes) -> Holder | None:
  """Who a lock's file names; None where it is not (yet) readable."""
  try:
    content = json.loads(text)
    return Holder(**{f.name: content[f.name]
                     for f in dataclasses.fields(Holder)})
  except (ValueError, TypeError, KeyError):
    return None


def _kernel() -> str:
  try:
    boot = epath.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


# --------------------------------------------------------------------- folders


@contextlib.contextmanager
def _locked_folder(workdir: str, me: Holder) -> Iterator[None]:
  path, is_new = os.path.join(workdir, FILE), not os.path.isdir(workdir)
  file = None
  while file is None:
    os.makedirs(workdir, exist_ok=True)
    file = _lock(path, workdir)
  try:
    _sign(file, workdir, me)
    yield
  finally:
    # In this order: whoever waits on the removed file looks again.
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path)
    _held.discard(file)
    os.close(file)
    if is_new:
      with contextlib.suppress(OSError):  # not empty, as is usual
        os.rmdir(workdir)


def _lock(path: str, workdir: str) -> int | None:
  """The locked file's descriptor; None if it was removed in the meantime."""
  try:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  except FileNotFoundError:  # a run that was refused took its folder away
    return None
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    is_there = os.path.exists(path) and os.path.samestat(
        os.fstat(file), os.stat(path))
  except BlockingIOError as error:
    holder = _read(os.pread(file, 10_000, 0))
    os.close(file)
    raise _refusal(workdir, holder) from error
  except FileNotFoundError:
    is_there = False
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      os.close(file)
      raise
    is_there = True
    print(f"\nwarning: {workdir} is on a file system without locks "
          f"({error.strerror}): see to it that no other run uses it",
          file=sys.stderr, flush=True)
  if is_there:
    _held.add(file)
    return file
  os.close(file)
  return None


def _sign(file: int, workdir: str, me: Holder) -> None:
  """Says who has the lock; who is named already was killed."""
  before = _read(os.pread(file, 10_000, 0))
  if before is not None:
    print(f"{workdir}: the run of {before} since {before.started} ended "
          "without finishing; this one goes on", flush=True)
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps(dataclasses.asdict(me)).encode(), 0)


def _forget() -> None:
  """A forked child would hold the lock after its parent's end."""
  for file in _held:
    os.close(file)
  _held.clear()


os.register_at_fork(after_in_child=_forget)


# --------------------------------------------------------------------- buckets


class _Lease:
  """The object that says who has a folder of a bucket; a context."""

  def __init__(self, workdir, me: Holder, period: float, on_lost):
    # Slow to import, and only needed for buckets.
    from google.cloud import storage as google_storage
    name, _, prefix = os.fspath(workdir).removeprefix("gs://").partition("/")
    self._bucket = google_storage.Client().bucket(name)
    self._name = f"{prefix.strip('/')}/{FILE}"
    self._retry = google_storage.retry.DEFAULT_RETRY.with_timeout(period)
    self._workdir, self._me, self._period = workdir, me, period
    self._on_lost = on_lost
    self._generation, self._beat = 0, 0
    self._is_over = threading.Event()
    self._renewing = threading.Thread(target=self._renew, daemon=True)

  def __enter__(self) -> None:
    free = 0
    while not self._replace(free):
      free = self._wait()
    self._renewing.start()

  def __exit__(self, *unused) -> None:
    """What cannot be deleted is stale soon: no reason to fail."""
    self._is_over.set()
    self._renewing.join()
    try:
      self._bucket.blob(self._name).delete(
          if_generation_match=self._generation, **self._patience)
    except Exception as error:  # the clients' kinds have no common base
      print(f"\nwarning: {self._path} is not removed ({error}); the next run "
            "waits for a while", file=sys.stderr, flush=True)

  @property
  def _path(self) -> str:
    return f"gs://{self._bucket.name}/{self._name}"

  @property
  def _patience(self):
    return dict(timeout=self._period, retry=self._retry)

  def _replace(self, generation: int) -> bool:
    """Puts this run's name in the place of a generation, 0: of nothing."""
    from google.api_core import exceptions
    blob = self._bucket.blob(self._name)
    self._beat += 1
    try:
      blob.upload_from_string(
          json.dumps(dataclasses.asdict(self._me) | {"beat": self._beat}),
          if_generation_match=generation, **self._patience)
      self._generation = blob.generation
      return True
    except exceptions.PreconditionFailed:
      found, holder = self._look()
      if holder is None or holder.token != self._me.token:
        return False
      self._generation = found  # it was written, but the answer was lost
      return True

  def _look(self) -> tuple[int, Holder | None]:
    """(generation, holder); 0 where nobody has it."""
    from google.api_core import exceptions
    while (blob := self._bucket.get_blob(self._name, **self._patience)):
      try:
        return blob.generation, _read(
            blob.download_as_bytes(**self._patience))
      except exceptions.NotFound:
        pass  # replaced between the two
    return 0, None

  def _wait(self) -> int:
    """The generation that may be replaced, once it is known to be stale.

    Raises:
      LockError: its holder renews it.
    """
    first, holder = self._look()
    if not first:
      return 0
    if holder is not None and holder.is_gone:
      print(f"{self._workdir}: the run of {holder} since {holder.started} "
            "ended without finishing; this one goes on", flush=True)
      return first
    print(f"{self._workdir}: {holder or 'somebody'} has it; waiting "
          f"{_MISSED * self._period:g} s to see whether it lives", flush=True)
    for _ in range(_MISSED):
      time.sleep(self._period)
      now, holder = self._look()
      if not now:
        return 0
      if now != first:
        raise _refusal(self._workdir, holder)
    print(f"{self._workdir}: {holder or 'somebody'} gave no sign; this run "
          "goes on", flush=True)
    return first

  def _renew(self) -> None:
    """A thread: until the end, or until another run has it."""
    is_told = False
    while not self._is_over.wait(self._period):
      try:
        # One that somebody deleted is written anew.
        if self._replace(self._generation) or self._replace(0):
          is_told = False
          continue
        _, thief = self._look()
      except Exception as error:  # the clients' kinds have no common base
        if not is_told:
          print(f"\nwarning: {self._path} is not renewed ({error}); trying "
                "again", file=sys.stderr, flush=True)
        is_told = True
        continue
      self._on_lost(
          f"{self._workdir} was taken over by {thief or 'another run'} while "
          "this one could not renew its lease; this one stops, and what it "
          "saved is that run's to go on from")
      return
