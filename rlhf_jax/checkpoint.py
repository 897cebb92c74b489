"""Checkpoints: one folder a stage, each part of the state its own item.

Separate items make "load only the policy's parameters" an ordinary restore.
Arrays are restored straight into the shards that their abstract twins name.
"""

from collections.abc import Collection, Iterable, Mapping
import json
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from rlhf_jax import faults, storage

preservation_policy = ocp.checkpoint_managers.preservation_policy
META = "meta"


class CheckpointError(RuntimeError):
  """A checkpoint is missing or does not fit."""


class Checkpoints:
  """The checkpoints of one stage; use as a context so that saves finish."""

  def __init__(
      self, directory: epath.PathLike, *, keep: int, keep_every: int = 0):
    """Keeps the newest `keep`, and the multiples of `keep_every` if any."""
    self.directory = storage.absolute(directory)
    policies = [preservation_policy.LatestN(keep)]
    if keep_every:
      policies.append(preservation_policy.EveryNSteps(keep_every))
    self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=(
                preservation_policy.AnyPreservationPolicy(policies))),
    )

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._manager.close()

  @property
  def latest_step(self) -> int:
    """The newest step saved, 0 where there is none."""
    return self._manager.latest_step() or 0

  def save(self, step: int, items: Mapping[str, Any], meta: Mapping) -> None:
    """Saves asynchronously; a half-written step is never the latest."""
    self._manager.save(step, args=ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        **{META: ocp.args.JsonSave(dict(meta))}))

  @property
  def steps(self) -> list[int]:
    """All steps that are kept, in order."""
    return sorted(self._manager.all_steps())

  def finished_steps(self) -> list[int]:
    """All steps that are kept, once what is being saved is there."""
    self._manager.wait_until_finished()
    return self.steps

  def keep_only(self, steps: Collection[int]) -> None:
    """Deletes all others, once what is being saved is there."""
    self._manager.wait_until_finished()
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
    """
    step = self._manager.latest_step() if step is None else step
    if step is None:
      raise CheckpointError(f"no checkpoint in {self.directory}")
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**{
          name: ocp.args.StandardRestore(tree)
          for name, tree in items.items()}))
    except (ValueError, KeyError, FileNotFoundError) as error:
      if faults.explain(error):
        raise
      raise CheckpointError(
          f"{self.directory}, step {step}: items {sorted(items)} do not fit "
          f"this run's model ({error})") from error
    return {name: restored[name] for name in items}


def restore_item(
    directory: epath.PathLike, name: str, abstract: Any,
    step: int | None = None,
) -> Any:
  """One item of a checkpoint in `directory`, the newest by default, for
  another stage.

  Raises:
    CheckpointError: nothing is there.
  """
  directory = storage.absolute(directory)
  if not directory.exists():
    raise CheckpointError(
        f"{directory} does not exist: run the stage "
        f"{directory.parent.name!r} first, or name another run's in "
        f"config.inputs.{directory.parent.name}.")
  with Checkpoints(directory, keep=1_000_000) as checkpoints:
    return checkpoints.restore({name: abstract}, step)[name]


def exists(directory: epath.PathLike) -> bool:
  """Whether a stage left any checkpoint in `directory`."""
  directory = epath.Path(directory)
  return directory.exists() and any(
      path.name.isdigit() for path in directory.iterdir())


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
