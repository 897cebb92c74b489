"""Checkpoints: one folder a stage, each part of the state its own item.

Separate items make "load only the policy's parameters" an ordinary restore.
Arrays are restored straight into the shards that their abstract twins name.
Beside them is `meta`: what the arrays held when they were saved (see
`fingerprints`), by which every restore is checked, and all else that goes on
from a step: streams, key, settings, versions.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import json
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from rlhf_jax import faults, fingerprints, item_files, storage

preservation_policy = ocp.checkpoint_managers.preservation_policy
META = "meta"


class CheckpointError(RuntimeError):
  """A checkpoint is missing or does not fit."""


class DamagedError(CheckpointError):
  """A checkpoint does not hold what was saved."""


class _Manager(ocp.CheckpointManager):
  """Orbax's, but for the safe points, which `interruption` alone counts.

  Orbax asks JAX's preemption service by the number of the step, from a thread
  of process 0 as well: the service would agree on a safe point among numbers
  that are not ours, and the run would never come to it.
  """

  def reached_preemption(self, step: int) -> bool:  # noqa: ARG002
    return False


class Checkpoints:
  """The checkpoints of one stage; use as a context so that saves finish."""

  def __init__(
      self, directory: epath.PathLike, *, keep: int, keep_every: int = 0,
      keep_best: Sequence[str] = ()):
    """For saving.

    Args:
      directory: of this stage alone.
      keep: how many of the newest are kept.
      keep_every: and all multiples of so many steps, if any.
      keep_best: and the best one by ("min" or "max", metric), if given: of
        those saved at a step that measured it.
    """
    self.directory = storage.absolute(directory)
    self._keep_best = tuple(keep_best)
    policies = [preservation_policy.LatestN(keep)]
    if keep_every:
      policies.append(preservation_policy.EveryNSteps(keep_every))
    best = {}
    if keep_best:
      best = dict(best_fn=lambda values: values["value"],
                  best_mode=keep_best[0])
      policies.append(preservation_policy.BestN(
          get_metric_fn=best["best_fn"], n=1, reverse=keep_best[0] == "min",
          keep_checkpoints_without_metrics=False))
    self._manager = _open(
        self.directory, preservation_policy=(
            preservation_policy.AnyPreservationPolicy(policies)),
        cleanup_tmp_directories=True, **best)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._manager.close()

  @property
  def latest_step(self) -> int:
    """The newest step saved, 0 where there is none."""
    return self._manager.latest_step() or 0

  def save(
      self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any],
      values: Mapping[str, float] | None = None,
  ) -> None:
    """Saves asynchronously; a half-written step is never the latest.

    Args:
      step: its number.
      items: name -> tree of arrays.
      meta: what JSON can hold.
      values: metrics of this step, for `keep_best`.
    """
    arrays = {name: fingerprints.of(tree) for name, tree in items.items()}
    metrics = None
    if self._keep_best and self._keep_best[1] in (values or {}):
      metrics = {"value": float(values[self._keep_best[1]])}
    sealed = item_files.sealed({"arrays": arrays, **meta})
    self._manager.save(step, metrics=metrics, args=ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        **{META: ocp.args.JsonSave(sealed)}))

  def wait(self) -> None:
    """Returns when what is being saved is there."""
    self._manager.wait_until_finished()

  @property
  def steps(self) -> list[int]:
    """All steps that are kept, in order."""
    return sorted(self._manager.all_steps())

  def finished_steps(self) -> list[int]:
    """All steps that are kept, once what is being saved is there."""
    self.wait()
    return self.steps

  def keep_only(self, steps: Collection[int]) -> None:
    """Deletes all others, once what is being saved is there."""
    self.wait()
    for step in set(self.steps) - set(steps):
      self._manager.delete(step)

  def restore(
      self, items: Mapping[str, Any], step: int | None = None
  ) -> dict[str, Any]:
    """Restores the named items of a step, by default the newest.

    Args:
      items: name -> abstract tree (ShapeDtypeStructs with shardings).
      step: one of `steps`, or None.

    Raises:
      CheckpointError: there is no checkpoint, or an item does not fit.
      DamagedError: it does not hold what was saved; the message names what is
        damaged, and the newest older step that is whole.
    """
    self.wait()
    wanted = self._manager.latest_step() if step is None else step
    if wanted is None:
      raise CheckpointError(f"no checkpoint in {self.directory}")
    try:
      return self._whole(items, wanted)
    except DamagedError as error:
      raise DamagedError(f"{error}\n{self._way_out(items, wanted)}") from error

  def meta(self, step: int) -> dict[str, Any]:
    """What was saved beside the arrays of a step.

    Raises:
      DamagedError: it is missing, or not what was saved.
    """
    content = item_files.opened(self._read(step, META, ocp.args.JsonRestore()))
    if content is None:
      raise DamagedError(f"{self._place(step, META)} is not what was saved")
    return content

  def _whole(self, items, step: int) -> dict[str, Any]:
    """Items of a step that are what was saved.

    Raises:
      CheckpointError: they are not of this run's model, or damaged.
    """
    saved = self.meta(step)["arrays"]
    found = {}
    for name, abstract in items.items():
      place = self._place(step, name)
      if name not in saved:
        raise CheckpointError(
            f"{place}: there is no such item, only "
            + _printable(", ".join(sorted(saved))))
      _check_fit(saved[name], fingerprints.kinds(abstract), place)
      found[name] = self._read(step, name, ocp.args.StandardRestore(abstract))
      _check_kinds(found[name], abstract, place)
      _check_content(saved[name], fingerprints.of(found[name]), place)
    return found

  def _read(self, step: int, name: str, args: Any) -> Any:
    """One item, unchecked.

    Raises:
      DamagedError: it is missing, or cannot be read.
    """
    place = self._place(step, name)
    if not (self.directory / str(step) / name).exists():
      raise DamagedError(f"{place}: the item is missing")
    if strange := item_files.strange(self.directory / str(step), name):
      raise DamagedError(f"{place}: {strange}")
    try:
      return self._manager.restore(
          step, args=ocp.args.Composite(**{name: args}))[name]
    except jax.errors.JaxRuntimeError:
      raise  # of the device, as when its memory is full
    except Exception as error:  # of orbax and tensorstore: no common base
      if faults.explain(error):
        raise
      raise DamagedError(
          f"{place}: cannot be read ({_first_lines(error)})") from error

  def _place(self, step: int, name: str) -> str:
    return f"{self.directory / str(step)}, item {name!r}"

  def _way_out(self, items, damaged: int) -> str:
    """What can be done where a step is damaged."""
    older = [step for step in reversed(self.steps) if step < damaged]
    again = (f"remove {self.directory.parent} so that the stage starts again")
    if jax.process_count() > 1:  # not all may have come to this error
      return (f"Remove that step's folder to go on from the one before (there "
              f"are {older or 'none'}), or {again}.")
    spoilt = [damaged]
    for step in older:
      try:
        self._whole(items, step)
        folders = ", ".join(
            str(self.directory / str(number)) for number in spoilt)
        return (f"The newest older checkpoint that is whole is step {step}. To "
                f"go on from there remove {folders}, and give the same command "
                f"again; or {again}.")
      except CheckpointError:
        spoilt.append(step)
    return f"There is no older checkpoint that is whole: {again}."


def _open(directory: epath.Path, **options) -> ocp.CheckpointManager:
  """Raises a DamagedError where what lies there cannot be looked at: notes
  and metrics of all steps are, at once."""
  for step in step_folders(directory):
    if strange := item_files.strange(step, "metrics"):
      raise DamagedError(
          f"{step}: {strange}. Remove {step} to go on from the newest of the "
          f"others, or {directory.parent} so that the stage starts again.")
  try:
    return _Manager(
        directory, options=ocp.CheckpointManagerOptions(**options))
  except jax.errors.JaxRuntimeError:
    raise  # of another process, which it waits for
  except Exception as error:  # of orbax: no common base
    if faults.explain(error):
      raise
    raise DamagedError(
        f"{directory} cannot be read ({_first_lines(error)}): bring it back, "
        f"or remove {directory.parent} so that the stage starts again."
    ) from error


def _check_fit(saved: Mapping[str, str], wanted: Mapping[str, str], place: str):
  """Raises a CheckpointError where arrays are of other names or shapes."""
  kinds = {name: text.rpartition(" ")[0] for name, text in saved.items()}
  if kinds == wanted:
    return
  differing = [
      f"{name}: {kinds.get(name, 'not there')}, this run's model has "
      f"{wanted.get(name, 'none')}"
      for name in sorted(kinds.keys() | wanted.keys())
      if kinds.get(name) != wanted.get(name)]
  more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
  raise CheckpointError(
      f"{place} does not fit this run's model: "
      f"{_printable('; '.join(differing[:3]))}"
      f"{more}. Give the settings it was made with, or another --workdir.")


def _check_kinds(found: Any, abstract: Any, place: str) -> None:
  """Notes on the disk say what each array is: they may have changed too."""
  is_array = all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))
  if not is_array or fingerprints.kinds(found) != fingerprints.kinds(abstract):
    raise DamagedError(f"{place}: its arrays are not those that were saved")


def _check_content(saved: Mapping[str, str], found: Mapping[str, str],
                   place: str):
  differing = [name for name in saved if saved[name] != found[name]]
  if differing:
    raise DamagedError(
        f"{place}: {', '.join(differing[:3])} "
        f"{'is' if len(differing) == 1 else 'are'} not what was saved: the "
        "bytes on the disk have changed")


def _first_lines(error: Exception) -> str:
  return _printable(" ".join(str(error).split()) or type(error).__name__)


def _printable(text: str) -> str:
  """A terminal may be shown what somebody wrote on the disk."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:600])


def restore_item(
    directory: epath.PathLike, name: str, abstract: Any,
    step: int | None = None,
) -> Any:
  """One item of a checkpoint in `directory`, the newest by default, for
  another stage.

  Raises:
    CheckpointError: nothing is there, or it does not fit.
    DamagedError: it is not what was saved.
  """
  directory = storage.absolute(directory)
  if not directory.exists():
    raise CheckpointError(
        f"{directory} does not exist: run the stage "
        f"{directory.parent.name!r} first, or name another run's in "
        f"config.inputs.{directory.parent.name}.")
  with Reader(directory) as checkpoints:
    return checkpoints.restore({name: abstract}, step)[name]


class Reader(Checkpoints):
  """Checkpoints that are read only: another run may be writing them."""

  def __init__(self, directory: epath.PathLike):
    self.directory = storage.absolute(directory)
    self._manager = _open(self.directory, create=False)


def exists(directory: epath.PathLike) -> bool:
  """Whether a stage left any checkpoint in `directory`."""
  return bool(step_folders(epath.Path(directory)))


def step_folders(directory: epath.Path) -> list[epath.Path]:
  """The folders of the steps that a stage left."""
  if not directory.exists():
    return []
  return [path for path in directory.iterdir() if path.name.isdigit()]


def write_done(directory: epath.PathLike, content: Mapping[str, Any]) -> None:
  """Marks a stage as finished: written last, in one move."""
  write_json(epath.Path(directory) / "done.json", content)


def read_done(directory: epath.PathLike) -> dict[str, Any] | None:
  """What a finished stage wrote; None where it is not finished."""
  path = epath.Path(directory) / "done.json"
  return json.loads(path.read_text()) if path.exists() else None


def write_json(path: epath.PathLike, content: Any) -> None:
  """Writes a file whole or not at all; only process 0 writes."""
  write_text(path, json.dumps(content, indent=2) + "\n")


def write_lines(path: epath.PathLike, rows: Iterable[Any]) -> None:
  """The same as JSON lines."""
  write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file whole or not at all; only process 0 writes."""
  if jax.process_index() == 0:
    storage.write_text(path, text)
