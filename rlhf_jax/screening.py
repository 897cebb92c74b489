"""Screening: who of some candidates may label (InstructGPT, appendix B.1).

Candidates rank tasks that researchers have ranked before, and mark the
sensitive responses. A line of the reference is a line of `tasks.jsonl` with
the researchers' view:

  {"task_id": "...", "prompt": "...", "responses": [...], "ranks": [...],
   "metadata": [{"violent_content": true}, {}, ...]}         metadata optional

An answer has the same `task_id`, `prompt` and `responses`, the candidate's
`ranks` and `metadata`, and a `labeler_id`. Researchers rate the demonstrations
that a candidate has written, 1 to 7, in `demonstration_rating`: in any answer
of the candidate's, or in a line with nothing but that and the `labeler_id`.
`evals.candidates` has the figures and who passes.
"""

from collections.abc import Mapping, Sequence
import itertools
import json
import os
from typing import Any

from etils import epath

from rlhf_jax import handoff
from rlhf_jax import storage
from rlhf_jax.data import fields
from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data.records import DataError
from rlhf_jax.evals import candidates
from rlhf_jax.evals.candidates import Answers, Cutoffs, Reference

_UNCHANGED = ("prompt", "responses")


def screen(reference_path: str, answer_paths: Sequence[str], roster_path: str,
           report_path: str, group: str, cutoffs: Cutoffs) -> dict[str, Any]:
  """Measures the candidates, writes the report and the roster of who passes.

  Args:
    reference_path: JSON lines of the reference, `.gz` or not.
    answer_paths: files of answers, of any candidates.
    roster_path: where those who pass go, `group` with each; not written where
      nobody passes.
    report_path: where all figures go.
    group: one of `labelers.GROUPS`.
    cutoffs: what passes.

  Returns:
    The report.

  Raises:
    DataError: a line is not as described above, or the roster or the report
      would take the place of something else; then nothing is written.
  """
  check_outputs((roster_path, report_path), (reference_path, *answer_paths))
  reference = read_reference(reference_path)
  answers = read_answers(answer_paths, reference)
  check_roster(roster_path, answers, group)
  report = candidates.make_report(reference, answers, cutoffs)
  storage.write_text(report_path, json.dumps(report, indent=2) + "\n")
  passed = [name for name, found in report["candidates"].items()
            if found["passes"]]
  if passed:
    storage.write_text(roster_path, "".join(
        json.dumps({"labeler_id": name, "group": group}) + "\n"
        for name in passed))
  return report


def check_outputs(written: Sequence[str], read: Sequence[str]) -> None:
  """Refuses to write over what is read, or where nothing can be written.

  Raises:
    DataError: names the path.
    StorageError: a bucket cannot be used.
  """
  for path in read:
    storage.check(path, "input", is_written=False)
  taken = {_place(path) for path in read}
  for path in written:
    folder = storage.absolute(path).parent
    is_local = not storage.is_bucket(path) and "://" not in path
    if is_local and not folder.is_dir():
      raise DataError(f"{path}: there is no folder {folder}; make it first")
    storage.check(folder if is_local else path, "output", is_written=True)
    if epath.Path(path).is_dir():
      raise DataError(f"{path} is a folder; name a file")
    if _place(path) in taken:
      raise DataError(f"{path} would be written over; name another file")
    taken.add(_place(path))


def _place(path: str) -> str:
  """One name for each place, however it is written."""
  return path if storage.is_bucket(path) else os.path.realpath(path)


def check_roster(path: str, answers: Mapping[str, Answers], group: str
                 ) -> None:
  """Refuses to write over a roster with others than these candidates.

  Raises:
    DataError: names somebody who would be lost.
  """
  if not epath.Path(path).exists():
    return
  for name, theirs in handoff.read_roster(path).items():
    if name not in answers or theirs != group:
      raise DataError(
          f"{path} has {handoff.quoted(name)} of the group {theirs!r}, who "
          "would be lost; write to another file and join the two")


# --------------------------------------------------------------------- reading


def read_reference(path: str) -> Reference:
  """The researchers' rankings.

  Raises:
    DataError: a line is not as described above, a task is twice there, or
      nothing is ranked above anything.
  """
  tasks, rankings, places = {}, {}, {}
  for row, origin in sources.json_lines(path):
    name = handoff.given_id(row, origin)
    if name in tasks:
      raise DataError(
          f"{origin}: task {handoff.quoted(name)} is in {places[name]} too; "
          "remove one")
    rankings[name] = handoff.ranking_of(row, origin)
    tasks[name], places[name] = row, origin
  if all(len(set(ranking.ranks)) == 1 for ranking in rankings.values()):
    raise DataError(
        f"{path}: each of the {len(tasks)} tasks ranks all its responses the "
        "same; there is nothing to agree with")
  return Reference(tasks, rankings)


def read_answers(paths: Sequence[str], reference: Reference
                 ) -> dict[str, Answers]:
  """Candidate -> what was returned, sorted by candidate.

  Raises:
    DataError: a line is not as described above, or a candidate has answered a
      task twice.
  """
  found, places = {}, {}
  for row, origin in itertools.chain.from_iterable(
      map(sources.json_lines, paths)):
    name = candidate_of(row, origin)
    answers = found.setdefault(name, Answers())
    if row.get("demonstration_rating") is not None:
      answers.ratings.append(rating_of(row, origin))
      if "task_id" not in row:
        continue
    task = handoff.task_of(row, reference.tasks, origin, _UNCHANGED)
    answered = name, task["task_id"]
    if answered in places:
      raise DataError(
          f"{origin}: {handoff.quoted(name)} has answered task "
          f"{handoff.quoted(task['task_id'])} in {places[answered]} too; "
          "remove one")
    answers.rankings[task["task_id"]] = handoff.ranking_of(row, origin)
    places[answered] = origin
  return dict(sorted(found.items()))


def candidate_of(row: Any, origin: str) -> str:
  """Who answered.

  Raises:
    DataError: nobody is named.
  """
  name = row.get("labeler_id") if isinstance(row, dict) else None
  if not isinstance(name, str) or not name.strip():
    raise DataError(
        f"{origin}: no labeler_id in {records.short(row)}; write the "
        "candidate's name into every line")
  return fields.text(name, "labeler_id", origin)


def rating_of(row: Mapping[str, Any], origin: str) -> float:
  """The rating of a demonstration.

  Raises:
    DataError: it is none.
  """
  rating = row["demonstration_rating"]
  if not handoff.is_number(rating, 1, 7):
    raise DataError(
        f"{origin}: demonstration_rating {records.short(rating)}; write a "
        "number from 1 to 7")
  return rating
