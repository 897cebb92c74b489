"""The host prepares the next batch, and reads the last values, while the
devices run a step: shown by the order of events, not by clocks."""

import json
import threading
import types

import ml_collections
import numpy as np
import pytest

from benchmarks import overlap
from experiments import common
from rlhf_jax import ahead, guards, loop, metrics

_WAIT = 60.0  # seconds after which a test that hangs has failed


class Stream:
  """As `batches.Batches` as far as the loop asks."""

  def epoch(self, number):
    del number
    return 0


def make_training(tmp_path, batch, step, read, *, num_steps=4, **config):
  run = types.SimpleNamespace(
      workdir=tmp_path, writer=metrics.Writer(tmp_path),
      config=ml_collections.ConfigDict(
          {"guards": common.guards(common.MINI), "toy": config}))
  return loop.Training(
      run=run, stage="toy", num_steps=num_steps, abstract=None,
      create=lambda: types.SimpleNamespace(step=0),
      streams={"rows": Stream()}, batch=batch, step=step, read=read,
      constants={}, shown={})


def rows_of(number):
  return {"rows": {"number": np.array([number])}}


def train(training, saved_steps=()):
  saved = types.SimpleNamespace(latest_step=0)
  return loop.train(training, saved, every_log_steps=1,
                    is_saved=lambda step: step in saved_steps)


class Story:
  """What happened, in its order; waits for what is to happen."""

  def __init__(self):
    self.events = []
    self._change = threading.Condition()

  def add(self, *event):
    with self._change:
      self.events.append(event)
      self._change.notify_all()

  def wait_for(self, *event):
    with self._change:
      assert self._change.wait_for(
          lambda: event in self.events, _WAIT), f"{event} never came"

  def place(self, *event):
    return self.events.index(event)


def test_the_next_batch_is_made_while_a_step_runs(tmp_path):
  """Step and next batch wait for each other to begin: one after the other,
  neither would end."""
  story = Story()

  def batch(number):
    story.add("batch begins", number)
    if number:
      story.wait_for("step begins", number - 1)
    story.add("batch ends", number)
    return rows_of(number)

  def step(state, rows, number):
    assert rows["rows"]["number"] == [number]
    story.add("step begins", number)
    if number < 3:
      story.wait_for("batch begins", number + 1)
    story.add("step ends", number)
    return state, {}

  train(make_training(tmp_path, batch, step, dict))
  for number in range(3):
    begins = max(story.place("step begins", number),
                 story.place("batch begins", number + 1))
    ends = min(story.place("step ends", number),
               story.place("batch ends", number + 1))
    assert begins < ends  # the two intervals overlap
  assert ("batch begins", 4) not in story.events


def test_values_are_read_when_the_next_step_has_been_given(tmp_path):
  story = Story()

  def step(state, unused_rows, number):
    story.add("step", number + 1)
    return state, number + 1

  def read(now):
    story.add("read", now)
    return {"train/toy/loss": 1.0 / now}

  train(make_training(tmp_path, rows_of, step, read))
  assert story.events == [
      ("step", 1), ("step", 2), ("read", 1), ("step", 3), ("read", 2),
      ("step", 4), ("read", 3), ("read", 4)]
  assert [(row["step"], row["train/toy/loss"])
          for row in metrics.read(tmp_path, "toy")] == [
              (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


def test_a_step_is_guarded_before_its_state_is_saved(tmp_path, monkeypatch):
  story = Story()
  monkeypatch.setattr(loop, "save", lambda training, saved, now, state, values:
                      story.add("save", now, values["train/toy/loss"]))

  def step(state, unused_rows, number):
    story.add("step", number + 1)
    return state, number + 1

  def read(now):
    story.add("read", now)
    return {"train/toy/loss": float(now)}

  train(make_training(tmp_path, rows_of, step, read, num_steps=3), {2})
  assert story.events == [
      ("step", 1), ("step", 2), ("read", 1), ("read", 2), ("save", 2, 2.0),
      ("step", 3), ("read", 3)]


def test_a_guard_stops_at_its_own_step_with_its_own_batch(tmp_path):
  """Although the step after it was given to the devices already."""
  given = []

  def step(state, unused_rows, number):
    given.append(number + 1)
    return state, {"train/skipped_in_a_row": 100.0 * (number + 1 == 2)}

  training = make_training(tmp_path, rows_of, step, dict, num_steps=9)
  with pytest.raises(guards.GuardError, match="toy, step 2: ") as stopped:
    train(training)
  assert stopped.value.step == 2 and given == [1, 2, 3]
  left = tmp_path / "toy" / "stopped"
  assert {path.name for path in left.iterdir()} == {
      "step_2.npz", "step_2.json"}
  with np.load(left / "step_2.npz") as arrays:
    assert arrays["rows/number"] == [1]
  assert json.loads((left / "step_2.json").read_text())["values"] == {
      "train/skipped_in_a_row": 100.0}
  assert [row["step"] for row in metrics.read(tmp_path, "toy")] == [1, 2]


def test_of_two_steps_that_stop_the_first_is_named(tmp_path):
  """A batch is seen again at the step after one whose values stop."""
  batch = lambda number: rows_of(min(number, 1))  # step 3 repeats step 2
  step = lambda state, unused_rows, number: (
      state, {"train/skipped_in_a_row": 100.0 * (number + 1 == 2)})
  with pytest.raises(guards.GuardError, match="toy, step 2: .*not_finite"):
    train(make_training(tmp_path, batch, step, dict))


def test_an_error_of_a_batch_comes_where_the_batch_is_needed(tmp_path):
  given = []

  def batch(number):
    if number == 2:
      raise ValueError("no such row")
    return rows_of(number)

  def step(state, unused_rows, number):
    given.append(number)
    return state, {}

  threads = threading.active_count()
  with pytest.raises(ValueError, match="no such row"):
    train(make_training(tmp_path, batch, step, dict))
  assert given == [0, 1]
  assert threading.active_count() == threads


def test_the_thread_ends_with_an_interrupted_loop():
  threads = threading.active_count()
  with pytest.raises(KeyboardInterrupt):  # noqa: PT012
    with ahead.Ahead(rows_of, 5, 100) as batches:
      assert batches.take() == {"rows": {"number": np.array([5])}}
      raise KeyboardInterrupt
  assert threading.active_count() == threads


def test_one_behind_asks_for_the_next_before_it_gives_one():
  story = []

  def items():
    for number in range(3):
      story.append(("made", number))
      yield number

  for number in ahead.one_behind(items()):
    story.append(("used", number))
  assert story == [("made", 0), ("made", 1), ("used", 0), ("made", 2),
                   ("used", 1), ("used", 2)]


# ------------------------------------------------------- what the command draws


def test_the_drawing_and_the_trace_by_hand():
  intervals = [
      overlap.Interval(lane, number, begin, begin + length)
      for number in range(2, 5) for lane, begin, length in (
          ("batch", 4.0 * number, 1.0), ("step", 4.0 * number + 1, 3.0),
          ("read", 4.0 * number + 4, 1.0))]
  lines = overlap.draw(intervals).splitlines()
  assert [line.split()[0] for line in lines[:3]] == ["batch", "step", "read"]
  bars = [line.split()[1] for line in lines[:3]]
  assert bars[0].startswith("22222") and bars[2].endswith("44444")
  assert bars[1].index("3") == bars[0].rindex("3")  # when its batch has ended
  assert lines[3].split() == ["13000", "ms"]
  assert overlap.seconds_a_step(intervals) == 4.0
  event, = (e for e in overlap.as_trace(intervals)["traceEvents"]
            if e["name"] == "read 3")
  assert (event["ts"], event["dur"], event["tid"]) == (8e6, 1e6, 2)


def test_the_command_runs_the_loop(tmp_path):
  stage = overlap.Stage(0.0, 0.0)
  overlap.by_the_loop(stage, 3, tmp_path)
  assert {(i.lane, i.number) for i in stage.intervals} == {
      (lane, number) for lane in overlap.LANES for number in range(3)}
