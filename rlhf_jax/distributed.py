"""Start and end of a run of several processes.

A run of one process needs none of this, and nothing here happens in it.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import time
import traceback
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
# Private, for the one thing that JAX does not offer: what it detects, before
# it connects. Its own connecting aborts from C++ when somebody is missing.
from jax._src import clusters

from rlhf_jax import exits, interruption, rendezvous, watch
from rlhf_jax.rendezvous import StartError

# Seconds for whom the watch cannot see: a process that stands still.
_HEARTBEAT_TIMEOUT = 60
# A collective breaks when its partner does: time to hear that one first.
_CONSEQUENCE = 2

_watch: watch.Hub | watch.Member | None = None


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run, and which of them this is.

  Attributes:
    host: where process 0 runs.
    port: the port at which the others find it.
    num_processes: how many there are.
    process_id: the number of this one.
    local_device_ids: the machine's devices that it uses; None for all.
  """

  host: str
  port: int
  num_processes: int
  process_id: int
  local_device_ids: Sequence[int] | None = None


def explicit(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
  """The cluster that three flags name, None without any.

  Raises:
    StartError: one is missing, or a value cannot be.
  """
  given = {"--coordinator": coordinator, "--num_processes": num_processes,
           "--process_id": process_id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return None
  if missing:
    raise StartError(
        f"{', '.join(given)} belong together: {' and '.join(missing)} "
        "missing; a run of one process needs none of them")
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise StartError(
        f"--coordinator={coordinator} is not HOST:PORT of process 0, such as "
        "10.0.0.2:8476")
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise StartError(
        f"--process_id={process_id} is not one of 0 to --num_processes - 1, "
        f"which is {num_processes - 1}")
  return Cluster(host.strip("[]"), int(port), num_processes, process_id)


def detected(timeout: float) -> Cluster:
  """The cluster that JAX detects: a TPU pod, SLURM, Kubernetes, Open MPI.

  Raises:
    StartError: there is none, or it cannot be asked.
  """
  detect = getattr(
      clusters.ClusterEnv, "auto_detect_unset_distributed_params", None)
  way_out = "give --coordinator, --num_processes and --process_id instead"
  if detect is None:
    raise StartError(
        f"--distributed: this JAX ({jax.__version__}) detects clusters in "
        f"another way; {way_out}")
  try:
    address, number, this, devices = detect(
        None, None, None, None, None, int(timeout))
  except (OSError, RuntimeError, ValueError) as error:
    raise StartError(
        f"--distributed: the cluster cannot be asked ({error}); {way_out}"
    ) from error
  if address is None or number is None or this is None:
    raise StartError(
        "--distributed: JAX sees no cluster here (TPU pod, SLURM, Kubernetes, "
        f"Open MPI); leave it out for one process, or {way_out}")
  cluster = explicit(address, number, this)
  return dataclasses.replace(cluster, local_device_ids=devices)


def start(cluster: Cluster, timeout: float, grace_seconds: float) -> None:
  """Brings the processes together, before any use of devices.

  Args:
    cluster: of `explicit` or `detected`.
    timeout: seconds to wait for the others.
    grace_seconds: between SIGTERM and the end (see `interruption`).

  Raises:
    StartError: they do not come together in that time.
  """
  global _watch
  began = time.monotonic()
  made: watch.Hub | watch.Member
  _one_thread_a_device()
  if cluster.process_id == 0:
    made, address = rendezvous.gather(
        cluster.host, cluster.port, cluster.num_processes, timeout)
  else:
    made, address = rendezvous.join(
        cluster.host, cluster.port, cluster.num_processes,
        cluster.process_id, timeout)
  _watch = made
  # JAX sets its own handler, which ours calls: signals wait until both are set.
  waiting = signal.pthread_sigmask(signal.SIG_BLOCK, exits.AT_SIGNAL)
  jax.config.update("jax_enable_preemption_service", True)
  jax.distributed.initialize(
      address, cluster.num_processes, cluster.process_id,
      local_device_ids=cluster.local_device_ids,
      initialization_timeout=int(timeout), coordinator_bind_address=(
          f"[::]:{address.rpartition(':')[2]}"),
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT)
  interruption.heed_signals(
      grace_seconds, tell_others=_jax_handler(), end_all=_watch.fail)
  signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
  if cluster.process_id == 0:
    print(f"{cluster.num_processes} processes after "
          f"{time.monotonic() - began:.1f} s", flush=True)


def _one_thread_a_device() -> None:
  """Where devices are CPUs: with more threads runs have aborted in collectives
  (gloo's "op.preamble.length <= op.nbytes"), as if those of a program that do
  not need each other were begun in any order, and one taken for another."""
  if jax.config.jax_platforms == "cpu":  # type: ignore[attr-defined]
    os.environ["NPROC"] = "1"  # read when the devices are made


def _jax_handler() -> Callable[[], None]:
  """What JAX's preemption service does at SIGTERM: it has set a handler in C,
  which Python's would displace unheard."""
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  address = libc.signal(signal.SIGTERM, None)
  libc.signal(signal.SIGTERM, address)
  if not address:
    raise RuntimeError(
        f"JAX {jax.__version__} has set no handler for SIGTERM: its preemption "
        "service works in another way than 0.10's")
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
  return lambda: handler(signal.SIGTERM)


def refuse(message: str) -> NoReturn:
  """Ends for an error that a person can mend: no traceback."""
  if _watch is not None:
    _watch.refuse(message)
  watch.say(f"error: {message}")
  sys.exit(exits.REFUSED)


def refuse_at_once(message: str) -> NoReturn:
  """The same from any thread, and nothing more is done or saved."""
  if _watch is not None:
    _watch.refuse(message)
  watch.say(f"error: {message}")
  watch.exit_now(exits.REFUSED)


def end_all(message: str, status: int) -> None:
  """Ends all processes at once, for what one of them may be alone with;
  returns where there is only one."""
  if _watch is not None:
    watch.say(f"error: {message}")
    _watch.fail(message, status)


def leave(message: str, status: int) -> NoReturn:
  """Ends where all processes end, none for the fault of another."""
  if jax.process_index() == 0:
    watch.say(message)
  sys.exit(status)


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """What ends this process ends the others as well, and they name it.

  Around the whole program, `sys.exit` included.
  """
  try:
    yield
  except SystemExit as stop:
    if _watch is None:
      raise
    if stop.code not in (None, 0, *exits.TOGETHER):
      _watch.fail(f"it ended with status {stop.code}")
    _watch.finish()
    jax.distributed.shutdown()
    raise
  except BaseException as error:
    if _watch is None:
      raise
    if isinstance(error, jax.errors.JaxRuntimeError):
      time.sleep(_CONSEQUENCE)
    watch.say(traceback.format_exc())
    _watch.fail(f"{type(error).__name__}: {error}")


def barrier(name: str) -> None:
  """All processes meet here; nothing happens with one."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
