"""How the processes of a run come together: all others find process 0.

The connections that they keep are those of `watch`.
"""

from collections.abc import Iterable
import dataclasses
import socket
import time
from typing import NoReturn

from rlhf_jax import exits
from rlhf_jax.watch import Failure, Hub, Line, Member


class StartError(RuntimeError):
  """The processes of a run did not come together."""


def gather(
    host: str, port: int, num_processes: int, timeout: float
) -> tuple[Hub, str]:
  """Process 0: waits for all others.

  Returns:
    The hub, and the address for JAX's own service, which all were told.

  Raises:
    StartError: the port is taken, somebody does not come or cannot be one.
  """
  members, until = {}, time.monotonic() + timeout
  with _serve(port) as server:
    while len(members) < num_processes - 1:
      try:
        server.settimeout(max(0.0, until - time.monotonic()) or 1e-3)
        connection, _ = server.accept()
      except TimeoutError:
        _dismiss([line for _, line in members.values()], _missing(
            members, num_processes, at(host, port), timeout))
      _greet(Line(connection), members, num_processes)
  address = at(host, _free_port())
  for _, line in members.values():
    line.send(coordinator=address)
  return Hub(members), address


def at(host: str, port: int) -> str:
  """HOST:PORT; the colons of an IPv6 address are bracketed off."""
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _greet(line: Line, members: dict, num_processes: int) -> None:
  """Takes in one that connected; what is no process of ours is sent away."""
  said = line.receive(seconds=5)
  if not isinstance(said, dict) or not {"process", "of", "host"} <= set(said):
    line.close()
    return
  process, host = said["process"], said["host"]
  wrong = None
  if said["of"] != num_processes:
    wrong = (f"process {process} ({host}) was started with --num_processes="
             f"{said['of']}, process 0 with {num_processes}; give all the "
             "same number")
  elif process == 0 or process in members:
    other = members[process][0] if process else socket.gethostname()
    wrong = (f"{host} and {other} were both started with --process_id="
             f"{process}; give each its own")
  if wrong:
    _dismiss([line, *(other for _, other in members.values())], wrong)
  members[process] = (host, line)


def _dismiss(lines: Iterable[Line], message: str) -> NoReturn:
  """Sends all away that came."""
  for line in lines:
    line.send(failure=dataclasses.asdict(
        Failure(0, socket.gethostname(), message, exits.REFUSED)))
  raise StartError(message)


def _missing(members, num_processes: int, address: str, timeout: float) -> str:
  missing = [i for i in range(1, num_processes) if i not in members]
  return (
      f"process 0 waited {timeout:g} s at {address} for {num_processes - 1} "
      f"other process(es), and {missing} did not come: start them with the "
      "same --coordinator, see that they reach it, or raise --start_timeout")


def join(
    host: str, port: int, num_processes: int, process_id: int, timeout: float
) -> tuple[Member, str]:
  """Any other process: finds process 0. Returns and raises as `gather`."""
  line = Line(_connect(host, port, process_id, timeout))
  line.send(process=process_id, of=num_processes, host=socket.gethostname())
  # process 0 gives the others as long, and may have begun later
  said = line.receive(seconds=timeout + 30)
  if said is None:
    raise StartError(
        f"process {process_id} reached {at(host, port)}, but process 0 did not "
        f"answer within {timeout:g} s, or ended; see its messages")
  if "failure" in said:
    raise StartError(said["failure"]["message"])
  return Member(process_id, host, line), said["coordinator"]


def _connect(
    host: str, port: int, process_id: int, timeout: float) -> socket.socket:
  """A connection to process 0, which may not be up yet."""
  until = time.monotonic() + timeout
  while True:
    try:
      left = max(0.1, until - time.monotonic())
      connection = socket.create_connection((host, port), min(5.0, left))
      connection.settimeout(None)
      return connection
    except OSError as error:
      if time.monotonic() >= until:
        raise StartError(
            f"process {process_id} found no process 0 at {at(host, port)} in "
            f"{timeout:g} s ({error}): start it there, correct --coordinator, "
            "or raise --start_timeout") from error
      time.sleep(0.2)


def _serve(port: int) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
        ("", port), family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both)
  except OSError as error:
    raise StartError(
        f"process 0 cannot listen at port {port} ({error}); give all another "
        "one with --coordinator=HOST:PORT") from error


def _free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]
