"""How commands that run an experiment end."""

from collections.abc import Iterator
import contextlib

from rlhf_jax import (
    checkpoint, config as config_lib, distributed, exits, guards, handoff,
    interruption, lock, metrics, pipeline, storage,
)
from rlhf_jax.data.records import DataError
from rlhf_jax.evals.registry import LeftOut
from rlhf_jax.hf.fields import FolderError

# What a person can mend: one message, no traceback.
_USER_ERRORS = (
    config_lib.ConfigError, DataError, FolderError, LeftOut,
    pipeline.WorkdirError, checkpoint.CheckpointError, storage.StorageError,
    lock.LockError)


@contextlib.contextmanager
def one_message() -> Iterator[None]:
  """How a run ends, with its message and exit status: refused, as asked, by a
  guard, or to wait for people."""
  try:
    yield
  except handoff.WaitingForPeople as waiting:
    metrics.say(f"\n{waiting}")
  except _USER_ERRORS as error:
    distributed.refuse(str(error))
  except interruption.Interrupted as stop:
    distributed.leave(
        f"ended as asked. {stop}; the same command goes on", stop.status)
  except guards.GuardError as error:
    distributed.leave(f"error: {error}", exits.STOPPED)
