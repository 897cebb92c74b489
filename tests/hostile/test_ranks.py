"""Ranks as people return them: their order counts and nothing else does."""

import gzip
import json
import random
import re
import tempfile

from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from rlhf_jax import handoff, losses, screening
from rlhf_jax.data.records import DataError
from tests import test_handoff
from tests.hostile.conftest import ACCEPTED, ANSWERED
from tests.test_handoff import ROSTER

_TASKS = test_handoff.tasks()
_ranking_loss = jax.jit(losses.ranking_loss, static_argnames="denominator")


def _lines(rows) -> list[bytes]:
  return [json.dumps(row).encode() + b"\n" for row in rows]


def _on_file(reader, data, suffix=".jsonl"):
  """(what the reader gives or None, its message or None, the path)."""
  with tempfile.NamedTemporaryFile(suffix=suffix) as f:
    f.write(data)
    f.flush()
    try:
      return reader(f.name), None, f.name
    except DataError as error:
      assert str(error).isprintable(), str(error)
      return None, str(error), f.name


def _ranked(data, suffix=".jsonl"):
  return _on_file(
      lambda path: handoff.read_ranked(path, _TASKS, ROSTER), data, suffix)


def _views(found):
  """Task -> (labeler, ranking), which can be compared."""
  tasks = {task["task_id"]: task for task in _TASKS}
  return {name: (given.labeler_id, given.rank(
      tasks[name]["prompt"], tasks[name]["responses"]))
          for name, given in found.items()}


ranks = st.lists(st.integers(1, 9), min_size=2, max_size=2)
all_ranks = st.lists(ranks, min_size=len(_TASKS), max_size=len(_TASKS))


def _answered(many):
  return [row | {"ranks": own}
          for row, own in zip(test_handoff.ranked(), many, strict=True)]


def test_the_order_of_the_lines_and_the_size_of_the_steps_are_free(attempt):
  def law(drawn):
    many, shuffled, step, shift = drawn
    base, _, _ = _ranked(b"".join(_lines(_answered(many))))
    other = _lines(_answered([
        [step * rank ** 2 + shift for rank in own] for own in many]))
    moved, _, _ = _ranked(b"".join(other[i] for i in shuffled))
    assert _views(base) == _views(moved)
    for own, (_, ranking) in zip(
        many, (_views(base)[task["task_id"]] for task in _TASKS)):
      for i, j in ((0, 1), (1, 0)):
        assert (own[i] < own[j]) == (ranking.ranks[i] < ranking.ranks[j])
    return ACCEPTED

  attempt(st.tuples(all_ranks, st.permutations(range(len(_TASKS))),
                    st.integers(1, 10**6), st.integers(0, 10**6)), law, 60)


def _row(change):
  """Spoils one row, at `place`, as a dict."""
  def spoil(rows, place):
    rows = [dict(row) for row in rows]
    change(rows[place])
    return b"".join(_lines(rows)), place + 1
  return spoil


def _text(change):
  """Spoils one line, at `place`, as bytes."""
  def spoil(rows, place):
    lines = _lines(rows)
    lines[place] = change(lines[place])
    return b"".join(lines), place + 1
  return spoil


def _doubled(rows, place):
  lines = _lines(rows)
  return b"".join([*lines, lines[place]]), len(lines) + 1


def _dropped(rows, place):
  lines = _lines(rows)
  del lines[place]
  return b"".join(lines), None  # there is no line to name


def _other_group(row):
  row["labeler_id"] = "eve" if row["group"] == "train" else "ann"


# What somebody or some disk may do to a file -> (its bytes, the line to name).
_CORRUPTIONS = {
    "dropped": _dropped,
    "doubled": _doubled,
    "prompt": _row(lambda row: row.update(prompt=row["prompt"] + " ")),
    "response": _row(lambda row: row.update(responses=["x", "y"])),
    "swapped": _row(lambda row: row.update(responses=row["responses"][::-1])),
    "group": _row(lambda row: row.update(group="nobody's")),
    "id": _row(lambda row: row.update(task_id="collect/99.0")),
    "id outside": _row(lambda row: row.update(task_id="../../etc/passwd")),
    "id long": _row(lambda row: row.update(task_id="x" * 5000)),
    "id number": _row(lambda row: row.update(task_id=1)),
    "id absent": _row(lambda row: row.pop("task_id")),
    "labeler unknown": _row(lambda row: row.update(labeler_id="../x\ud800")),
    "labeler of others": _row(_other_group),
    "labeler a list": _row(lambda row: row.update(labeler_id=["ann"])),
    "ranks absent": _row(lambda row: row.pop("ranks")),
    "ranks empty": _row(lambda row: row.update(ranks=[])),
    "ranks too many": _row(lambda row: row.update(ranks=[1, 2, 3])),
    "rank zero": _row(lambda row: row.update(ranks=[0, 1])),
    "rank real": _row(lambda row: row.update(ranks=[1.0, 2])),
    "rank claim": _row(lambda row: row.update(ranks=[True, 2])),
    "rank text": _row(lambda row: row.update(ranks=["1", "2"])),
    "rank huge": _row(lambda row: row.update(ranks=[1, 10**4000])),
    "likert": _row(lambda row: row.update(likert=[1, 8])),
    "likert claim": _row(lambda row: row.update(likert=[True, 1])),
    "metadata": _row(lambda row: row.update(metadata=[{"x": True}, {}])),
    "seconds": _row(lambda row: row.update(seconds=float("nan"))),
    "a list": _text(lambda line: b"[" + line.strip() + b"]\n"),
    "no JSON": _text(lambda line: b"x" + line),
    "cut": _text(lambda line: line[:len(line) // 2] + b"\n"),
    "not UTF-8": _text(lambda line: line.replace(b"collect", b"\xff\xfe")),
    "null": _text(lambda line: line.replace(b"collect", b"c\0llect")),
    "byte order mark": _text(lambda line: b"\xef\xbb\xbf" + line),
    "brackets": _text(lambda line: b"[" * 5000 + b"\n"),
    "two a line": _text(lambda line: line.strip() + line),
}


@pytest.mark.parametrize("name", _CORRUPTIONS)
def test_a_corrupted_line_is_named(attempt, name):
  def law(drawn):
    many, place, is_packed = drawn
    data, line = _CORRUPTIONS[name](_answered(many), place)
    if is_packed:
      data = gzip.compress(data)
    found, message, path = _ranked(data, ".jsonl.gz" if is_packed else ".jsonl")
    assert found is None
    where = re.escape(path) + (f":{line}: " if line else ": ")
    assert re.match(where, message), message
    return ANSWERED

  attempt(st.tuples(all_ranks, st.integers(0, len(_TASKS) - 1), st.booleans()),
          law, 5)


def test_a_truncated_gzip_file_gives_nothing(attempt):
  def law(drawn):
    many, share = drawn
    data = gzip.compress(b"".join(_lines(_answered(many))))
    found, message, path = _ranked(
        data[:int(share * len(data))], ".jsonl.gz")
    assert found is None and re.match(re.escape(path) + r"(:\d+)?: ", message)
    return ANSWERED

  attempt(st.tuples(all_ranks, st.floats(0, 1, exclude_max=True)), law, 40)


_PEOPLE = [{"labeler_id": name, "group": group}
           for name, group in ROSTER.items()]
_ROSTER_CORRUPTIONS = {
    "doubled": _doubled,
    "group": _row(lambda row: row.update(group="test")),
    "group a list": _row(lambda row: row.update(group=["train"])),
    "group absent": _row(lambda row: row.pop("group")),
    "name empty": _row(lambda row: row.update(labeler_id="")),
    "name blank": _row(lambda row: row.update(labeler_id=" \t")),
    "name number": _row(lambda row: row.update(labeler_id=1)),
    "name no text": _row(lambda row: row.update(labeler_id="\ud800")),
    "a list": _text(lambda line: b"[]\n"),
    "no JSON": _text(lambda line: b"ann,train\n"),
    "null": _text(lambda line: b"\0" + line),
}


@pytest.mark.parametrize("name", _ROSTER_CORRUPTIONS)
def test_a_corrupted_roster_is_named(name):
  for place in range(len(_PEOPLE)):
    data, line = _ROSTER_CORRUPTIONS[name](_PEOPLE, place)
    found, message, path = _on_file(handoff.read_roster, data)
    assert found is None and message.startswith(f"{path}:{line}: "), message


def test_the_order_of_a_roster_is_free():
  lines = _lines(_PEOPLE)
  random.Random(0).shuffle(lines)
  assert _on_file(handoff.read_roster, b"".join(lines))[0] == ROSTER


_ANSWERS_CORRUPTIONS = {
    name: change for name, change in _CORRUPTIONS.items()
    # The group is not asked for, every name may answer, tasks may be left out.
    if name not in ("dropped", "group", "labeler of others")
} | {"rating": _row(lambda row: row.update(demonstration_rating=True))}


@pytest.mark.parametrize("name", _ANSWERS_CORRUPTIONS)
def test_corrupted_answers_of_candidates_are_named(name):
  rows = _answered([[1, 2]] * len(_TASKS))
  reference, _, _ = _on_file(
      screening.read_reference, b"".join(_lines(rows)))
  for place in range(len(rows)):
    data, line = _ANSWERS_CORRUPTIONS[name](rows, place)
    found, message, path = _on_file(
        lambda path: screening.read_answers([path], reference), data)
    assert found is None and message.startswith(f"{path}:{line}: "), message


def test_a_rating_needs_a_name_that_can_be_printed():
  """A line with a rating alone has no ranking to check."""
  rows = _answered([[1, 2]] * len(_TASKS))
  reference, _, _ = _on_file(screening.read_reference, b"".join(_lines(rows)))
  found, message, path = _on_file(
      lambda path: screening.read_answers([path], reference),
      b"".join(_lines([{"labeler_id": "\ud800", "demonstration_rating": 6}])))
  assert found is None and message.startswith(f"{path}:1: "), message


# ------------------------------------------------------------ as the loss sees


_SHAPE = (3, 5)  # prompts, responses; one shape, so that it compiles once


@st.composite
def _prompts(draw):
  """(scores, ranks, mask) of several prompts, and an order of the responses."""
  grid = lambda each: np.array(draw(st.lists(
      each, min_size=15, max_size=15))).reshape(_SHAPE)
  scores = grid(st.integers(-40, 40)).astype(np.float32) / 8
  return (scores, grid(st.integers(1, 6)), grid(st.booleans()),
          draw(st.permutations(range(_SHAPE[1]))),
          draw(st.integers(1, 1000)), draw(st.integers(0, 10**6)))


@pytest.mark.parametrize("denominator", ["kept", "all_pairs"])
def test_only_the_order_of_ranks_reaches_the_loss(attempt, denominator):
  def loss(scores, ranks, mask):
    return jax.device_get(_ranking_loss(scores, ranks, mask, denominator))

  def law(drawn):
    scores, ranks, mask, order, step, shift = drawn
    value, metrics = loss(scores, ranks, mask)
    stretched = loss(scores, step * ranks ** 2 + shift, mask)
    np.testing.assert_array_equal(stretched[0], value)
    moved, moved_metrics = loss(
        scores[:, order], ranks[:, order], mask[:, order])
    np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6)
    assert np.isfinite(value)
    for name, figure in metrics.items():
      np.testing.assert_array_equal(stretched[1][name], figure)
      np.testing.assert_allclose(moved_metrics[name], figure, rtol=1e-5,
                                 atol=1e-6)
    return ACCEPTED

  attempt(_prompts(), law, 60)
