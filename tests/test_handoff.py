"""People rank: what they are given, and what is taken back from them."""

import gzip
import json
import pathlib
import shutil
import sys

from absl.testing import flagsaver
import pytest

from rlhf_jax import collect, handoff, labelers, main, pipeline
from rlhf_jax.data.records import DataError
from tests import tiny_run

ROSTER = {"ann": "train", "bob": "train", "eve": "heldout", "zoe": "heldout"}


def tasks():
  """Two training prompts, and a validation prompt for two of each group."""
  rows = [
      collect.Task(number=n, split=split, row={}, num_responses=2,
                   groups=groups)
      for n, (split, groups) in enumerate((
          ("train", ("train",)), ("train", ("train",)),
          ("validation", ("train", "train", "heldout", "heldout"))))]
  answers = [{"prompt": f"prompt {n}", "responses": [f"a{n}", f"b{n}"]}
             for n in range(3)]
  return handoff.make_tasks("collect", rows, answers)


def ranked():
  """The tasks, ranked as they should be."""
  names = ("ann", "bob", "ann", "bob", "eve", "zoe")
  return [
      task | {"ranks": [1, 2], "labeler_id": name}
      for task, name in zip(tasks(), names, strict=True)]


def write(path: pathlib.Path, rows) -> str:
  text = "".join(
      row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
  if path.suffix == ".gz":
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text)
  return str(path)


def read(tmp_path, rows):
  path = write(tmp_path / "ranked.jsonl", rows)
  return handoff.read_ranked(path, tasks(), ROSTER)


def test_tasks_hide_the_policies():
  for task in tasks():
    assert set(task) == {
        "task_id", "group", "prompt", "responses", "ranks", "likert",
        "metadata", "labeler_id", "seconds"}


@pytest.mark.parametrize("name", ["ranked.jsonl", "ranked.jsonl.gz"])
def test_what_is_returned_is_taken_in_whatever_its_order(tmp_path, name):
  rows = ranked()
  rows[0] |= {"ranks": [1, 1], "likert": [6, 7], "seconds": 12.5,
              "metadata": [{"hallucination": True}, {}]}
  path = write(tmp_path / name, rows[::-1])
  found = handoff.read_ranked(path, tasks(), ROSTER)
  assert list(found) == [row["task_id"] for row in rows[::-1]]
  assert found["collect/0.0"].labeler_id == "ann"
  assert found["collect/0.0"].rank("prompt 0", ["a0", "b0"]) == (
      labelers.Ranking((1, 1), (6, 7), ({"hallucination": True}, {}), 12.5))
  assert found["collect/2.2"].rank("prompt 2", ["a2", "b2"]).ranks == (1, 2)


# Row 2 (line 3) changed -> the message.
_BAD_ROWS = (
    ({"ranks": [1]}, "2 responses but 1 ranks"),
    ({"ranks": []}, "2 responses but 0 ranks"),
    ({"ranks": [0, 1]}, "rank 0 in"),
    ({"ranks": [1, 1.5]}, "rank 1.5 in"),
    ({"ranks": None}, "'ranks' must be a list"),
    ({"labeler_id": "nobody"}, "'nobody' is not on the roster"),
    ({"labeler_id": ""}, "labeler_id '' is not on the roster"),
    ({"labeler_id": ["ann"]}, r"labeler_id \['ann'\] is not on the roster"),
    ({"labeler_id": 7}, "labeler_id 7 is not on the roster"),
    ({"labeler_id": "eve"}, "'eve' is of the group 'heldout', but"),
    ({"task_id": "collect/9.0"}, "no task 'collect/9.0' was given out"),
    ({"task_id": 7}, "no task_id in"),
    ({"task_id": "collect/0.0"}, "'prompt' of task 'collect/0.0' was altered"),
    ({"prompt": "Prompt 2"}, "'prompt' of task 'collect/2.0' was altered"),
    ({"responses": ["b2", "a2"]}, "'responses' of task .* was altered"),
    ({"group": "heldout"}, "'group' of task .* was altered"),
    ({"likert": [7]}, "'likert' has to be a list with one value for each"),
    ({"likert": [8, 1]}, "likert 8; ratings are whole numbers from 1 to 7"),
    ({"likert": [True, 1]}, "likert true"),
    ({"likert": [6.0, 1]}, "likert 6.0"),
    ({"likert": False}, "'likert' has to be a list"),
    ({"metadata": [{}]}, "'metadata' has to be a list"),
    ({"metadata": [{"halucination": True}, {}]}, "metadata 'halucination'"),
    ({"metadata": [{"hallucination": 1}, {}]}, "'hallucination' = 1; the"),
    ({"metadata": ["no", "yes"]}, "metadata no; write an object"),
    ({"seconds": -1}, "seconds -1; write the time"),
    ({"seconds": "ten"}, "seconds ten; write the time"),
    ({"seconds": float("nan")}, "seconds NaN; write the time"),
    ({"seconds": 10**400}, "seconds 1000"),
)


@pytest.mark.parametrize("change, message", _BAD_ROWS)
def test_a_bad_row_is_refused_with_its_line(tmp_path, change, message):
  rows = ranked()
  rows[2] |= change
  with pytest.raises(DataError, match=message) as error:
    read(tmp_path, rows)
  assert str(error.value).startswith(f"{tmp_path}/ranked.jsonl:3: ")


@pytest.mark.parametrize("change", [
    {"task_id": "x" * 10**7}, {"prompt": "x" * 10**7},
    {"labeler_id": "x" * 10**7}, {"ranks": [2] * 10**6},
    {"likert": "x" * 10**7}, {"metadata": [{"x" * 10**7: True}, {}]},
    {"extra": "x" * 10**7, "ranks": [0, 1]}])
def test_a_message_about_ten_megabytes_is_short(tmp_path, change):
  rows = ranked()
  rows[2] |= change
  with pytest.raises(DataError, match="ranked.jsonl:3: ") as error:
    read(tmp_path, rows)
  assert len(str(error.value)) < 1000


def test_a_file_cut_while_it_was_compressed(tmp_path):
  path = tmp_path / "ranked.jsonl.gz"
  whole = pathlib.Path(write(path, ranked())).read_bytes()
  path.write_bytes(whole[:len(whole) - 12])
  with pytest.raises(DataError, match=r"gz:\d: broken gzip file"):
    handoff.read_ranked(str(path), tasks(), ROSTER)


def test_only_the_order_of_ranks_counts(tmp_path):
  rows = ranked()
  rows[0]["ranks"], rows[1]["ranks"] = [7, 3], [2, 2]
  found = read(tmp_path, rows)
  assert found["collect/0.0"].rank("prompt 0", ["a0", "b0"]).ranks == (2, 1)
  assert found["collect/1.0"].rank("prompt 1", ["a1", "b1"]).ranks == (1, 1)


@pytest.mark.parametrize("line, message", [
    ("[1, 2]\n", "no task_id in"),
    ("{'task_id'\n", "not JSON"),
    ("\udcff\n", "not UTF-8"),
])
def test_a_line_that_is_no_task(tmp_path, line, message):
  path = tmp_path / "ranked.jsonl"
  text = [json.dumps(row) for row in ranked()[:2]] + [line]
  path.write_bytes("\n".join(text).encode("utf-8", "surrogateescape"))
  with pytest.raises(DataError, match=f"ranked.jsonl:3: .*{message}"):
    handoff.read_ranked(str(path), tasks(), ROSTER)


def test_a_task_twice_or_missing(tmp_path):
  rows = ranked()
  with pytest.raises(DataError, match=(
      "jsonl:7: task 'collect/0.0' is in .*jsonl:1 too; remove one")):
    read(tmp_path, rows + rows[:1])
  with pytest.raises(DataError, match=(
      "2 of 6 tasks are missing, such as 'collect/0.0', 'collect/1.0'")):
    read(tmp_path, rows[2:])


def test_two_labels_of_a_prompt_are_of_two_people(tmp_path):
  rows = ranked()
  rows[3]["labeler_id"] = "ann"
  with pytest.raises(DataError, match=(
      "jsonl:4: 'ann' has ranked these responses before, in .*jsonl:3")):
    read(tmp_path, rows)


@pytest.mark.parametrize("line, message", [
    ({"labeler_id": "ann", "group": "test"}, "group of 'ann' is 'test'"),
    ({"labeler_id": "ann", "group": ["train"]}, "group of 'ann' is "),
    ({"labeler_id": 3, "group": "train"}, "a labeler is"),
    ("[]\n", "a labeler is"),
    ({"labeler_id": "bob", "group": "train"}, "'bob' is in .*jsonl:1 too"),
])
def test_a_bad_roster_is_refused_with_its_line(tmp_path, line, message):
  path = write(tmp_path / "roster.jsonl", [
      {"labeler_id": "bob", "group": "train"}, line])
  with pytest.raises(DataError, match=f"roster.jsonl:2: .*{message}"):
    handoff.read_roster(path)


# ------------------------------------------------------------ through the run


@pytest.fixture(name="exported", scope="module")
def _exported(tmp_path_factory):
  """(workdir, what people return: the ranks of the base run's labelers)."""
  workdir = tmp_path_factory.mktemp("exported")
  with pytest.raises(handoff.WaitingForPeople, match="64 tasks are written"):
    tiny_run.run(
        tiny_run.only(("collect",), collect__labeler="export"), workdir)
  lines = (workdir / "collect" / "tasks.jsonl").read_text().splitlines()
  rows = [
      task | {name: given[name] for name in (
          "ranks", "likert", "metadata", "labeler_id")}
      for task, given in zip(
          map(json.loads, lines),
          tiny_run.base().rows("collect/comparisons.jsonl"), strict=True)]
  return workdir, rows


def take_in(workdir, rows, path=None):
  ids = {row["labeler_id"]: row["group"] for row in rows}
  roster = write(workdir / "roster.jsonl", [
      {"labeler_id": name, "group": group} for name, group in ids.items()])
  ranked_path = write(path or workdir / "ranked.jsonl", rows)
  tiny_run.run(tiny_run.only(
      ("collect",), collect__roster=roster,
      collect__labeler=f"jsonl:{ranked_path}"), workdir)


def test_an_exported_run_stops_before_the_next_stage(exported):
  workdir, _ = exported
  left = {path.name for path in (workdir / "collect").iterdir()}
  assert left == {"settings.json", "responses.jsonl", "tasks.jsonl"}


def test_nobody_else_ranks_what_people_were_given(exported):
  """The same command without its flag would have simulated labelers do it."""
  workdir, _ = exported
  with pytest.raises(pipeline.WorkdirError,
                     match="collect.labeler: 'export' -> 'smallworld'"):
    tiny_run.run(tiny_run.only(("collect",)), workdir)
  assert not (workdir / "collect" / "comparisons.jsonl").exists()


def test_a_bad_file_is_not_half_taken_in(exported, tmp_path):
  workdir, rows = exported
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  with pytest.raises(DataError, match="1 of 64 tasks are missing"):
    take_in(tmp_path, rows[:-1])
  left = {path.name for path in (tmp_path / "collect").iterdir()}
  assert left == {"settings.json", "responses.jsonl", "tasks.jsonl"}


def test_the_program_stops_for_people_and_goes_on(
    exported, tmp_path, capsys, monkeypatch):
  """Exit code 0 and no later stage; then the groups are the roster's."""
  workdir, rows = exported
  shutil.copytree(workdir, tmp_path / "run")
  rows = [row | {"labeler_id": "person " + row["labeler_id"][-1] + row["group"]}
          for row in rows]
  roster = write(tmp_path / "roster.jsonl", [
      {"labeler_id": name, "group": group}
      for name, group in sorted({(r["labeler_id"], r["group"]) for r in rows})])
  (tmp_path / "people.py").write_text(
      "from tests import tiny_run\n\n\ndef get_config():\n"
      "  return tiny_run.only(('collect', 'rm'))\n")

  def call(*args):
    argv = ["main", f"--config={tmp_path / 'people.py'}",
            f"--workdir={tmp_path / 'run'}", *args]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
      main.main(main.parse_flags(argv))
    return capsys.readouterr().out

  printed = call("--config.collect.labeler=export")
  assert "collect: 64 tasks are written to " in printed
  assert "--config.collect.labeler=jsonl:RANKED_FILE" in printed
  assert not (tmp_path / "run" / "rm").exists()
  call(f"--config.collect.labeler=jsonl:{write(tmp_path / 'r.jsonl', rows)}",
       f"--config.collect.roster={roster}")
  report = json.loads((tmp_path / "run" / "rm" / "report.json").read_text())
  assert set(report["validation"]["accuracy"]) == {
      "all", "train_labelers", "heldout_labelers"}


def test_tasks_that_are_being_ranked_are_not_written_again(exported, tmp_path):
  """Filled in where they lie, exported again, refused, given back."""
  workdir, rows = exported
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  tasks_path = tmp_path / "collect" / "tasks.jsonl"
  half = "".join(json.dumps(row) + "\n" for row in rows[:10])
  tasks_path.write_text(half)
  with pytest.raises(handoff.WaitingForPeople):
    tiny_run.run(
        tiny_run.only(("collect",), collect__labeler="export"), tmp_path)
  assert tasks_path.read_text() == half
  with pytest.raises(DataError, match="54 of 64 tasks are missing"):
    take_in(tmp_path, rows[:10], tasks_path)
  assert tasks_path.read_text() == half
  take_in(tmp_path, rows)  # by another name than the file that was refused
  assert (tmp_path / "collect" / "done.json").exists()
  with pytest.raises(pipeline.WorkdirError, match="collect.labeler: "):
    take_in(tmp_path, rows, tmp_path / "other.jsonl")


def test_what_people_rank_is_what_the_run_learns_from(exported, tmp_path):
  """The same ranks give the same file, whoever they came from."""
  workdir, rows = exported
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  take_in(tmp_path, rows[::-1])
  for name in ("comparisons.jsonl", "report.json"):
    assert (tmp_path / "collect" / name).read_bytes() == (
        tiny_run.base().workdir / "collect" / name).read_bytes()
