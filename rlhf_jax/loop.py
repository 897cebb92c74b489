"""The loop that all training stages share, and what each gives to it.

Nothing of a stage's method is here. A step is a function of the state and its
number alone, batches and noise included; so a run that was stopped anywhere
goes on as if it had not been, and any step can be run again (`replay`).

The devices do not wait for the host: while they run a step its thread makes
the next batch (`ahead`), and a step's values are read when the next one was
given to them, or before that where the state is saved or measured. Guards look
at them then, so that a step may be thrown away that follows one at which a
guard stops; nothing is saved or written of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import types
from typing import Any

import jax
import numpy as np

from rlhf_jax import (
    ahead, checkpoint, config as config_lib, distributed, exits, guards,
    interruption, metrics, profiling, storage, train_state,
)
from rlhf_jax.checkpoint import CheckpointError, Checkpoints
from rlhf_jax.data import batches
from rlhf_jax.run import Run, versions

_SHOWN = 4  # differences in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """A stage as the loop sees it.

  Attributes:
    run, stage: whose training.
    num_steps: the last step's number; the first is 1.
    abstract: the state as ShapeDtypeStructs with shardings.
    create: makes the state before the first step.
    streams: name -> training batches by number.
    batch: number -> stream -> this process's rows of its batch.
    step: (state, batch, number) -> (state, found), donating the state; does
      not wait for the devices.
    read: found -> the values of its step; waits until they are there.
    constants: what else the steps depend on, as JSON can hold it.
    shown: name in the progress bar -> metric.
    closes: the stage does more after the last step, and saves that itself.
  """

  run: Run
  stage: str
  num_steps: int
  abstract: Any
  create: Callable[[], Any]
  streams: Mapping[str, batches.Batches]
  batch: Callable[[int], dict[str, dict[str, np.ndarray]]]
  step: Callable[[Any, Any, int], tuple[Any, Any]]
  constants: Mapping[str, Any]
  shown: Mapping[str, str]
  read: Callable[[Any], dict[str, Any]] = jax.device_get
  closes: bool = False

  @property
  def settings(self):
    return self.run.config[self.stage]


def open_checkpoints(training: Training, keep_every: int = 0) -> Checkpoints:
  """Those of the stage, for saving; a context."""
  settings = training.settings
  return Checkpoints(
      training.run.workdir / training.stage / "checkpoints",
      keep=settings.keep_checkpoints, keep_every=keep_every,
      keep_best=settings.keep_best)


def train(
    training: Training,
    saved: Checkpoints,
    *,
    every_log_steps: int,
    measure: Callable[[int, Any], Mapping[str, float]] = lambda *unused: {},
    is_saved: Callable[[int], bool],
) -> Any:
  """Goes on from the newest checkpoint to the last step.

  Args:
    training: the stage.
    saved: its checkpoints.
    every_log_steps: between the rows of metrics.jsonl.
    measure: (step, state) -> further values of that step, {} for most.
    is_saved: whether the state after a step is saved.

  Returns:
    The state after the last step.

  Raises:
    GuardError: a guard stops the run.
    Interrupted: it was asked to end; the state is saved.
    CheckpointError: the newest checkpoint is not one of this run, or damaged.
  """
  run, stage, last = training.run, training.stage, training.num_steps
  state = restore(training, saved) if saved.latest_step else training.create()
  first = int(state.step)
  run.writer.rewind(stage, first)
  guard = guards.Guards(stage, run.writer, **run.config.guards)
  guard.catch_up(run.writer.read(stage) if first else ())
  with (metrics.Progress(stage, first, last) as progress,
        ahead.Ahead(training.batch, first, last) as next_batches):
    behind = Behind(training, guard, progress)
    for number in range(first, last):
      now = number + 1
      profiling.next_step()
      with profiling.phase("batch"):
        batch = next_batches.take()
      with stopping(training, now, batch):
        with guard.compilations(now, first):
          with profiling.phase("step") as done:
            state, found = done(training.step(state, batch, number))
          behind.read()  # the step before
        look_at_batches(training, guard, number, batch)
      behind.add(now, batch, found, is_read=metrics.should_run(
          now, every_log_steps, last))
      with profiling.phase("measure"):
        measured = dict(measure(now, state))
      if measured:
        behind.read()
        run.writer.write(stage, now, measured)
      is_closing = training.closes and now == last
      is_due = is_saved(now) and not is_closing
      if is_due:
        behind.read()  # takes as long as the step: one may be asked meanwhile
      is_asked = not is_closing and interruption.asked()
      if is_asked or is_due:
        values = behind.read()
        with profiling.phase("checkpoint"):
          run.writer.upload()
          save(training, saved, now, state, {**values, **measured})
      if is_asked:
        saved.wait()
        interruption.stop(f"{stage}: step {now} of {last} is saved")
      progress.update()
    behind.read()
  return state


class Behind:
  """The newest step's values, until they are read."""

  def __init__(self, training: Training, guard: guards.Guards,
               progress: metrics.Progress):
    self._training = training
    self._guard = guard
    self._progress = progress
    self._waiting: tuple[int, Any, Any] | None = None
    self._values: dict[str, Any] = {}

  def add(self, now: int, batch, found, *, is_read: bool) -> None:
    """What a step found; the step before has been read."""
    self._waiting = (now, batch, found) if is_read else None
    self._values = {}

  def read(self) -> dict[str, Any]:
    """The values of the newest step, {} where they are not to be read; waits
    for it, and writes them and has guards look at them the first time.

    Raises:
      GuardError: one of the guards stops.
    """
    if self._waiting is None:
      return self._values
    (now, batch, found), self._waiting = self._waiting, None
    training = self._training
    with (stopping(training, now, batch, self._values),
          profiling.phase("metrics")):
      self._values |= training.read(found)
      training.run.writer.write(training.stage, now, self._values)
      self._progress.update(0, **{
          name: self._values[key] for name, key in training.shown.items()})
      self._guard.look(now, self._values)
    return self._values


@contextlib.contextmanager
def stopping(training: Training, now: int, batch,
             values: Mapping[str, Any] = types.MappingProxyType({})
             ) -> Iterator[None]:
  """Where guards look at a step: leaves its batch and values if one stops."""
  try:
    yield
  except guards.GuardError as error:
    if error.step == now:  # else it has been written
      write_stopped(training, now, batch, values, error)
      if error.is_alone:  # others may be waiting for this process
        distributed.end_all(str(error), exits.STOPPED)
    raise


def look_at_batches(training: Training, guard, number: int, batch) -> None:
  for name, stream in training.streams.items():
    guard.look_at_batch(
        number + 1, name, stream.epoch(number), batch[name])


def write_stopped(training: Training, now: int, batch, values, error) -> None:
  """The batch of the step at which a guard stops, and what was measured.

  `replay` runs the step again from the checkpoint before it.
  """
  folder = training.run.workdir / training.stage / "stopped"
  name = f"step_{now}" + (
      f".{jax.process_index()}" if jax.process_count() > 1 else "")
  arrays = {f"{stream}/{key}": array for stream, rows in batch.items()
            for key, array in rows.items()}
  storage.write_arrays(folder / f"{name}.npz", arrays)
  checkpoint.write_json(folder / f"step_{now}.json", {
      "step": now, "message": str(error),
      "values": metrics.as_json(values)})


# ---------------------------------------------------------------- checkpoints


def save(training: Training, saved: Checkpoints, step: int, state: Any,
         values: Mapping[str, float] | None = None) -> None:
  """Saves the state after a step, asynchronously."""
  saved.save(step, train_state.to_items(state), make_meta(training, step),
             values)


def restore(
    training: Training, saved: Checkpoints, step: int | None = None) -> Any:
  """A saved state, by default the newest, straight into its shards: none is
  created first, for two would need twice the memory.

  Raises:
    CheckpointError: it does not fit, or other data or another key went on.
    DamagedError: it is not what was saved.
  """
  step = saved.latest_step if step is None else step
  items = saved.restore(train_state.to_items(training.abstract), step)
  check_meta(training, step, saved.meta(step))
  return train_state.from_items(training.abstract, items)


def make_meta(training: Training, step: int) -> dict[str, Any]:
  """All that goes on from a step beside the arrays."""
  run, stage = training.run, training.stage
  return {
      "stage": stage,
      "step": step,
      "streams": positions(training, step),
      "key": jax.random.key_data(run.key(stage)).tolist(),
      "constants": dict(training.constants),
      "tokenizer": run.tokenizer.digest,
      "config": config_lib.stage_keys(run.config, stage),
      "devices": devices_of(run),
      "versions": versions(),
  }


def devices_of(run: Run) -> dict[str, Any]:
  """What decides the order in which sums are added up, and so their last bits;
  on CPUs also how many threads share a product."""
  found = {"count": jax.device_count(), "processes": jax.process_count(),
           "mesh": dict(run.mesh.shape)}
  if jax.default_backend() == "cpu":
    asked = os.environ.get("NPROC", "")
    found["threads"] = int(asked) if asked.isdigit() else _num_cores()
  return found


def _num_cores() -> int | None:
  """Those that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def positions(training: Training, step: int) -> dict[str, Any]:
  """Stream -> its seed, and where it stands before batch `step`."""
  run, stage = training.run, training.stage
  return {
      name: {"seed": run.data_seed(stage, name), **stream.position(step)}
      for name, stream in training.streams.items()}


# What has to be equal for a step to follow: all of these but what is free.
_FREE = ("arrays", "config", "devices", "versions")


def check_meta(training: Training, step: int, meta: Mapping[str, Any]) -> None:
  """Whether the run goes on with what the saved one would have gone on with.

  Settings were compared before (settings.json); mesh and processes are free.

  Raises:
    CheckpointError: data, key, tokenizer or reward model are others.
  """
  strict = lambda tree: {k: v for k, v in tree.items() if k not in _FREE}
  differing = config_lib.differing(
      strict(meta), strict(make_meta(training, step)))
  if differing:
    directory = training.run.workdir / training.stage
    raise CheckpointError(
        f"{directory / 'checkpoints' / str(step)} was saved on the way to "
        "something else:\n  " + "\n  ".join(differing[:_SHOWN])
        + "\nBring back the data and stages that it had, or remove "
        f"{directory} so that the stage starts again.")
  changed = config_lib.differing(
      {"versions": meta.get("versions")}, {"versions": versions()})
  if changed:
    metrics.say(
        f"{training.stage}: goes on at step {step} with other versions "
        f"({', '.join(changed)}); the numbers may differ in the last bits")


def newest_before(steps: Sequence[int], step: int) -> int | None:
  """The newest of some steps below one; None without."""
  return max((s for s in steps if s < step), default=None)
