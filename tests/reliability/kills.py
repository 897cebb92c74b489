"""Kills a run at random moments of wall time, starts it again, to its end."""

import contextlib
import dataclasses
import pathlib
import random
import time

from tests import processes

SAVE, COLLECT, ANY = "in a save", "in collection", "anywhere"
_POLL = 0.002
_EARLY = 0.1  # of the starts are killed anywhere, among imports as well
LIMIT = 300  # seconds of one start


@dataclasses.dataclass(frozen=True)
class Kill:
  """One SIGKILL.

  Attributes:
    moment: SAVE, COLLECT or ANY.
    stage: the one that was running, "" before the first.
    processes: the numbers of those killed; the others end by themselves.
    seconds: after the start.
  """

  moment: str
  stage: str
  processes: tuple[int, ...]
  seconds: float


class Killer:
  """Starts a run again and again.

  Args:
    command: the program's flags, its workdir left out.
    num_processes: of the run, which share two devices.
    seed: of the moments.
    at_least: how many kills have to fall in saves, and in collection.
    seconds: that a process goes on with the stages before it is killed, at
      most; what comes before (imports, data) is killed now and then.
    most: kills of a stage, so that all have some.
  """

  def __init__(self, command, num_processes: int, seed: int, at_least: int,
               seconds: float, most: int):
    self._command = command
    self._num_processes = num_processes
    self._random = random.Random(seed)
    self._seconds = seconds
    self._most = most
    self._left = {SAVE: at_least, COLLECT: at_least}
    self.kills: list[Kill] = []

  def finish(self, workdir: pathlib.Path, num_kills: int) -> None:
    """Runs to the end, killed until there were `num_kills` in all."""
    while not self._is_finished(workdir):
      left = half_saved(workdir)  # by earlier kills
      is_early = self._random.random() < _EARLY
      started = self._start(workdir, imports=is_early)
      if len(self.kills) < num_kills and (
          kill := self._kill(started, workdir, left, is_early)):
        self.kills.append(kill)
      for process in started:
        process.wait(timeout=LIMIT)
        if process.returncode not in (0, -9) and self._num_processes == 1:
          raise AssertionError(process.stdout.read())
        process.stdout.close()

  def _is_finished(self, workdir) -> bool:
    return (workdir / "summary.json").exists()

  def _start(self, workdir, imports: bool) -> list[processes.Process]:
    return processes.start_all(
        self._num_processes, *self._command, f"--workdir={workdir}",
        # who is killed before they meet is not waited for
        "--start_timeout=15", num_devices=2, imports=imports)

  def _kill(self, started, workdir, left, is_early: bool) -> Kill | None:
    """Waits for a moment and kills; None where the run ended before."""
    is_saving = lambda: half_saved(workdir) - left
    began = time.monotonic()
    draw, delay = self._random.random(), self._random.uniform(0, self._seconds)
    is_spared = lambda: [kill.stage for kill in self.kills].count(
        running_stage(workdir)) >= self._most
    wants_save = self._left[SAVE] > 0 and draw < 0.4 and not is_early
    before = _begun(workdir)
    at = began + delay if is_early else None
    moment = ANY
    while all(process.poll() is None for process in started):
      now = time.monotonic()
      if at is None and _begun(workdir) != before:
        at = now + delay  # from here on it is in the stages
      if at is not None and self._left[COLLECT] > 0 and (
          _is_collecting(workdir)):
        moment = COLLECT
        time.sleep(self._random.uniform(0, self._seconds / 20))
        break
      if wants_save and is_saving():
        moment = SAVE
        time.sleep(self._random.uniform(0, 0.01))
        break
      if at is not None and now >= at and not wants_save:
        if not is_spared():
          break
        at = now + delay
      time.sleep(_POLL)
    victims = self._victims()
    stage = running_stage(workdir)
    if all(process.poll() is None for process in started):
      for number in victims:
        started[number].kill()
      for number in victims:
        started[number].wait()
      is_there = {SAVE: is_saving, COLLECT: lambda: _is_collecting(workdir)}
      if moment in is_there and is_there[moment]():
        self._left[moment] -= 1  # what it left proves the moment
      elif moment in is_there:
        moment = ANY
      return Kill(moment, stage, victims, time.monotonic() - began)
    return None

  def _victims(self) -> tuple[int, ...]:
    numbers = tuple(range(self._num_processes))
    return self._random.choice([numbers, *((n,) for n in numbers)])


def half_saved(workdir: pathlib.Path) -> set[tuple[str, int]]:
  """Checkpoints that are there in part: (path, number of its folder)."""
  found = set()
  for path in workdir.glob("*/checkpoints/*tmp*"):
    with contextlib.suppress(FileNotFoundError):  # saved meanwhile
      found.add((str(path), path.stat().st_ino))
  return found


def _is_collecting(workdir: pathlib.Path) -> bool:
  folder = workdir / "collect"
  return (folder / "settings.json").exists() and not (
      folder / "done.json").exists()


def _begun(workdir: pathlib.Path) -> int:
  """Changes with every start, once data and settings are checked."""
  path = workdir / "config.json"
  return path.stat().st_mtime_ns if path.exists() else 0


def running_stage(workdir: pathlib.Path) -> str:
  begun = [path.parent for path in workdir.glob("*/settings.json")
           if not (path.parent / "done.json").exists()]
  return begun[0].name if begun else ""
