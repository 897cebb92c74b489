"""Ranking by people: the tasks they are given, and what comes back.

A run with `config.collect.labeler=export` writes `tasks.jsonl` and stops. A
line is one task, for one labeler::

  {"task_id": "collect/12.0", "group": "train", "prompt": "...",
   "responses": ["...", ...], "ranks": [], "likert": [], "metadata": [],
   "labeler_id": "", "seconds": null}

Somebody of the task's group fills in `ranks` (1 = best, equal = tie; ties are
welcome, and only the order counts: 1, 1, 3 is kept as 1, 1, 2), `labeler_id`,
and perhaps `likert` (1 to 7 each), `metadata` (an object each with fields of
`labelers.METADATA`, true or false; one left out is false) and `seconds`. The
policies are not shown, the rest must stay as it is, the order of the lines is
free. `config.collect.labeler=jsonl:PATH` takes the file in, whole or not at
all.

The roster (`config.collect.roster`) says who may label, a line each::

  {"labeler_id": "ann", "group": "train"}     or "heldout"

Somebody held out labels validation prompts only, so that what a reward model
has learnt can be judged by people it has not seen (InstructGPT 3.4).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data import fields
from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data.records import DataError
from rlhf_jax.labelers import GROUPS, METADATA, GivenRanks, Ranking

_UNCHANGED = ("group", "prompt", "responses")
_MAX_SECONDS = 1e9  # of one task: half a working life


class WaitingForPeople(Exception):
  """The tasks are written; the run goes on when the ranks are there."""


def task_id(stage: str, number: int, slot: int) -> str:
  """Names what one labeler does for one prompt."""
  return f"{stage}/{number}.{slot}"


def make_tasks(stage: str, tasks: Sequence[Any], answers: Sequence[Any]
               ) -> list[dict[str, Any]]:
  """The lines of tasks.jsonl.

  Args:
    stage: the collecting stage.
    tasks: each a `collect.Task`.
    answers: the responses to each.
  """
  return [
      {
          "task_id": task_id(stage, task.number, slot),
          "group": group,
          "prompt": answer["prompt"],
          "responses": answer["responses"],
          "ranks": [], "likert": [], "metadata": [],
          "labeler_id": "", "seconds": None,
      }
      for task, answer in zip(tasks, answers, strict=True)
      for slot, group in enumerate(task.groups)
  ]


def read_roster(path: str) -> dict[str, str]:
  """labeler id -> group.

  Raises:
    DataError: a line is not as described above, or somebody stands twice.
  """
  groups, places = {}, {}
  for row, origin in sources.json_lines(path):
    labeler = row.get("labeler_id") if isinstance(row, dict) else None
    if not isinstance(labeler, str) or not labeler:
      raise DataError(
          f"{origin}: a labeler is {{'labeler_id': text, 'group': one of "
          f"{GROUPS}}}, got {records.short(row)}")
    fields.text(labeler, "labeler_id", origin)
    if row.get("group") not in GROUPS:
      raise DataError(
          f"{origin}: the group of {quoted(labeler)} is "
          f"{quoted(row.get('group'))}; write one of {GROUPS}")
    if labeler in groups:
      raise DataError(
          f"{origin}: {quoted(labeler)} is in {places[labeler]} too; remove "
          "one")
    groups[labeler], places[labeler] = row["group"], origin
  return groups


def read_ranked(path: str, asked: Sequence[Mapping[str, Any]],
                group_of: Mapping[str, str]) -> dict[str, GivenRanks]:
  """What people have returned, checked against what they were asked.

  Args:
    path: JSON lines, `.gz` or not.
    asked: the tasks, as of `make_tasks`.
    group_of: labeler id -> group, as of `read_roster`.

  Returns:
    task id -> the labeler who ranked it.

  Raises:
    DataError: a task is missing, twice there, altered or nobody's; ranks,
      ratings or a labeler are not as they must be. Names the file and line.
  """
  by_id = {task["task_id"]: task for task in asked}
  returned, places, rated = {}, {}, {}
  for row, origin in sources.json_lines(path):
    task = task_of(row, by_id, origin, _UNCHANGED)
    name = task["task_id"]
    if name in returned:
      raise DataError(
          f"{origin}: task {name!r} is in {places[name]} too; remove one")
    labeler = _labeler_of(row, task, group_of, origin)
    seen = (labeler, task["prompt"], tuple(task["responses"]))
    if seen in rated:
      raise DataError(
          f"{origin}: {labeler!r} has ranked these responses before, in "
          f"{rated[seen]}; two different people are asked")
    rated[seen] = places[name] = origin
    returned[name] = GivenRanks(
        labeler, {seen[1:]: ranking_of(row, origin)})
  _refuse_missing(path, by_id, returned)
  return returned


def task_of(row: Any, by_id: Mapping[str, Mapping[str, Any]], origin: str,
            unchanged: Sequence[str]) -> Mapping[str, Any]:
  """The task that a row answers.

  Args:
    row: a line of what was returned.
    by_id: task id -> the task as it was given out.
    origin: where the row stands, for messages.
    unchanged: the fields that must be as they were.

  Raises:
    DataError: there is no such task, or it was altered.
  """
  task = by_id.get(given_id(row, origin))
  if task is None:
    raise DataError(
        f"{origin}: no task {quoted(row['task_id'])} was given out; remove the "
        "line")
  for name in unchanged:
    if row.get(name) != task[name]:
      raise DataError(
          f"{origin}: {name!r} of task {quoted(row['task_id'])} was altered: "
          f"{records.short(row.get(name))} instead of "
          f"{records.short(task[name])}; bring the original back")
  return task


def given_id(row: Any, origin: str) -> str:
  """The task id that a line names.

  Raises:
    DataError: it names none.
  """
  if not isinstance(row, dict) or not isinstance(row.get("task_id"), str):
    raise DataError(
        f"{origin}: no task_id in {records.short(row)}; return the lines of "
        "tasks.jsonl")
  return row["task_id"]


def _labeler_of(row, task, group_of, origin: str) -> str:
  labeler = row.get("labeler_id")
  if not isinstance(labeler, str) or labeler not in group_of:
    raise DataError(
        f"{origin}: labeler_id {quoted(labeler)} is not on the roster (config."
        f"collect.roster has {records.short(sorted(group_of))}); correct it, "
        "or add them there")
  if group_of[labeler] != task["group"]:
    raise DataError(
        f"{origin}: {labeler!r} is of the group {group_of[labeler]!r}, but "
        f"task {task['task_id']!r} is for {task['group']!r}")
  return labeler


def ranking_of(row: Any, origin: str) -> Ranking:
  """What somebody said of a task, of all that the line has.

  Raises:
    DataError: it is not as described above.
  """
  checked = records.check(row, "comparisons", origin)
  number = len(checked["responses"])
  likert = _listed(row, "likert", number, origin)
  for value in likert:
    if type(value) is not int or value not in range(1, 8):
      raise DataError(
          f"{origin}: likert {records.short(value)}; ratings are whole numbers "
          "from 1 to 7")
  metadata = _listed(row, "metadata", number, origin)
  for value in metadata:
    _check_metadata(value, origin)
  seconds = row.get("seconds")
  if seconds is not None and not is_number(seconds, 0, _MAX_SECONDS):
    raise DataError(
        f"{origin}: seconds {records.short(seconds)}; write the time taken as "
        "a number, or null")
  ladder = sorted(set(checked["ranks"]))
  return Ranking(
      tuple(ladder.index(rank) + 1 for rank in checked["ranks"]),
      tuple(likert), tuple(metadata), seconds)


def _listed(row, name: str, number: int, origin: str) -> list[Any]:
  """An optional list with one value a response."""
  values = row.get(name)
  values = [] if values is None else values
  if not isinstance(values, list) or len(values) not in (0, number):
    raise DataError(
        f"{origin}: {name!r} has to be a list with one value for each of the "
        f"{number} responses, or empty, got {records.short(values)}")
  return values


def _check_metadata(value: Any, origin: str) -> None:
  if not isinstance(value, dict):
    raise DataError(
        f"{origin}: metadata {records.short(value)}; write an object for each "
        "response")
  for name, claim in value.items():
    if name not in METADATA or not isinstance(claim, bool):
      raise DataError(
          f"{origin}: metadata {quoted(name)} = {records.short(claim)}; the "
          f"fields are {', '.join(METADATA)}, each true or false")


def is_number(value: Any, low: float, high: float) -> bool:
  """Whether a JSON value is a number from `low` to `high`; NaN is none."""
  return (isinstance(value, (int, float)) and not isinstance(value, bool)
          and low <= value <= high)


def quoted(value: Any) -> str:
  """A value as messages name it: its repr, cut at 80 characters."""
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + "..."


def _refuse_missing(path: str, by_id, returned) -> None:
  missing = [name for name in by_id if name not in returned]
  if missing:
    raise DataError(
        f"{path}: {len(missing)} of {len(by_id)} tasks are missing, such as "
        f"{', '.join(map(repr, missing[:3]))}; return all of them")
