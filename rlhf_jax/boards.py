"""TensorBoard's file of one stage.

tensorboardX's own writer hands all to a thread. Where the disk is full that
thread ends, and the run waits for it for ever; so here the caller writes.
"""

from collections.abc import Mapping
import os
import time
import uuid

from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

_FLUSH_SECONDS = 30.0


class Board:
  """Scalars by step; every error of the disk is raised to the caller."""

  def __init__(self, folder: str, first_step: int = 1):
    """Hides, in TensorBoard, what earlier files have from `first_step` on: a
    killed run may have written beyond the step that it is resumed from."""
    os.makedirs(folder, exist_ok=True)
    # The library's name for it is the second: not enough where a run is
    # started again at once, or the clock was set back.
    self._events = event_file_writer.EventsWriter(
        os.path.join(folder, "events"), f".{uuid.uuid4().hex[:8]}")
    self._events.write_event(event_pb2.Event(
        wall_time=time.time(), step=first_step,
        session_log=event_pb2.SessionLog(
            status=event_pb2.SessionLog.START)))
    self.flush()

  def add(self, step: int, values: Mapping[str, float]) -> None:
    self._events.write_event(event_pb2.Event(
        wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=[
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()])))
    if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    self._events.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    self._events.close()
