"""Where numbers go: metrics.jsonl, TensorBoard, a progress bar.

All three carry the same values; only process 0 writes.
"""

from collections.abc import Iterator, Mapping
import json
import math
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from tqdm import auto as tqdm  # in a notebook a bar of its own kind

from rlhf_jax import boards, distributed, interruption, storage

_UPLOAD_SECONDS = 30.0


class Writer:
  """Writes `{"stage", "step", "seconds", name: value, ...}` a line."""

  def __init__(self, workdir: epath.PathLike):
    self._path = epath.Path(workdir) / "metrics.jsonl"
    self._rows = storage.Growing(self._path)
    self._notes = storage.Growing(epath.Path(workdir) / "guards.jsonl")
    self._events = storage.Growing(epath.Path(workdir) / "tensorboard")
    self._resumed_at: dict[str, int] = {}
    self._start = time.monotonic()
    self._boards: dict[str, boards.Board] = {}
    self._is_writer = jax.process_index() == 0

  def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
    """Writes scalars; device arrays are fetched in one go."""
    values = {k: float(np.asarray(v))
              for k, v in jax.device_get(dict(values)).items()}
    if not self._is_writer:
      return
    row = {"stage": stage, "step": int(step),
           "seconds": round(time.monotonic() - self._start, 3)}
    row |= as_json(values)
    self._rows.append(json.dumps(row) + "\n")
    if stage not in self._boards:
      self._boards[stage] = boards.Board(
          str(self._events.here / stage),
          first_step=self._resumed_at.get(stage, 0) + 1)
    self._boards[stage].add(int(step), values)
    if self._rows.is_due(_UPLOAD_SECONDS):
      self._try_upload()

  def note(self, stage: str, step: int, guard: str, message: str) -> None:
    """What a guard has to say: printed, and a line of guards.jsonl."""
    if not self._is_writer:
      return
    print(f"\nwarning: {stage}, step {step} ({guard}): {message}",
          file=sys.stderr, flush=True)
    self._notes.append(json.dumps(
        {"stage": stage, "step": step, "guard": guard, "message": message})
        + "\n")

  def rewind(self, stage: str, step: int) -> None:
    """Drops a stage's rows after `step`: a resumed stage writes them anew."""
    self._resumed_at[stage] = max(step, 0)
    if not self._is_writer:
      return
    for file in (self._rows, self._notes):
      if file.here.exists():
        kept = [line for line in file.here.read_text().splitlines()
                if not _is_after(line, stage, step)]
        file.rewrite("".join(line + "\n" for line in kept))

  def read(self, stage: str) -> list[dict[str, Any]]:
    """The rows of one stage; all processes call it, and see the same."""
    self.upload()
    distributed.barrier(f"rows {stage}")
    return read(self._path.parent, stage)

  def _try_upload(self) -> None:
    """What fails is said and tried again: before a checkpoint it counts."""
    try:
      self.upload()
    except Exception as error:  # fsspec's kinds have no common base
      print(f"\nwarning: {self._path} is not up to date: {error}",
            file=sys.stderr, flush=True)

  def upload(self) -> None:
    """Brings a bucket up to date: before a checkpoint, so that a run resumed
    from it finds all rows, and where somebody reads them."""
    if not self._is_writer:
      return
    for board in self._boards.values():
      board.flush()
    self._rows.upload()
    self._notes.upload()
    self._events.upload()

  def close(self, *, is_failing: bool = False) -> None:
    """Ends; an error already on its way is not hidden by one of closing."""
    try:
      for board in self._boards.values():
        board.close()
    except OSError as error:
      if not is_failing:
        raise
      print(f"\nwarning: TensorBoard's files are not whole: {error}",
            file=sys.stderr, flush=True)
    self._boards.clear()
    if is_failing:
      self._try_upload()
    else:
      self.upload()


def as_json(values: Mapping[str, float]) -> dict[str, float | None]:
  """NaN is not JSON: written as null, so that a line stays readable."""
  return {k: float(v) if math.isfinite(v) else None for k, v in values.items()}


def _is_after(line: str, stage: str, step: int) -> bool:
  try:
    row = json.loads(line)
  except json.JSONDecodeError:
    return True  # the last line of a killed run, cut in the middle
  return row["stage"] == stage and row["step"] > step


def read(workdir: epath.PathLike, stage: str) -> list[dict[str, Any]]:
  """The rows of one stage."""
  rows = storage.read_lines(epath.Path(workdir) / "metrics.jsonl")
  return [row for row in rows if row["stage"] == stage]


def read_notes(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """What guards had to say in a run."""
  path = epath.Path(workdir) / "guards.jsonl"
  return storage.read_lines(path) if path.exists() else []


class Progress:
  """A bar with the time left, a postfix of a few figures."""

  def __init__(self, stage: str, first: int, total: int, unit: str = "step"):
    self._bar = tqdm.tqdm(
        total=total, initial=first, desc=f"{stage:>10}", unit=unit,
        file=sys.stderr, dynamic_ncols=True, mininterval=1.0,
        disable=jax.process_index() != 0)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._bar.close()

  def update(self, steps: int = 1, **figures: float) -> None:
    if figures:
      self._bar.set_postfix(
          {k: f"{float(v):.3g}" for k, v in figures.items()}, refresh=False)
    self._bar.update(steps)


def say(text: str) -> None:
  """Prints a text once, however many processes there are."""
  if jax.process_index() == 0:
    print(text, flush=True)


def should_run(step: int, every: int, last: int) -> bool:
  """True at multiples of `every` and at the last step; 0 means only last."""
  return step == last or (every > 0 and step % every == 0)


def track(stage: str, items: list, unit: str) -> Iterator[Any]:
  """Iterates with a progress bar; before each item is a safe point."""
  with Progress(stage, 0, len(items), unit) as progress:
    for item in items:
      interruption.check(stage)
      yield item
      progress.update()
