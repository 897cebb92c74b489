"""Screening: who passes, who does not and why, and what is refused."""

import functools
import json
import random
import re

from absl import flags
from absl.testing import flagsaver
import pytest

from rlhf_jax import exits, handoff, labelers, screen, screening
from rlhf_jax.data.records import DataError
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.evals import candidates
from rlhf_jax.labelers import Ranking

CUTOFFS = candidates.Cutoffs(
    agreement=0.75, flag_agreement=0.75, demonstration_rating=6)
RUDE = {"violent_content": True, "hallucination": True}


def reference_rows():
  """Four tasks; the last response of each is sensitive, in the first two."""
  return [{
      "task_id": f"t/{n}", "prompt": f"prompt {n}", "group": "train",
      "responses": ["a", "b", "c"], "ranks": [1, 2, 3],
      "metadata": [{}, {}, RUDE if n < 2 else {}]} for n in range(4)]


def answer_rows(name="ann", **changes):
  """A candidate who says what the reference says, or `changes`."""
  return [row | {"labeler_id": name} | changes for row in reference_rows()]


def write(path, rows) -> str:
  path.write_text("".join(
      row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture(name="screened")
def _screened(tmp_path):
  """Screens answers; returns the report."""

  def screened(*answers, reference=None, group="train"):
    roster = tmp_path / "out" / "roster.jsonl"
    roster.parent.mkdir(exist_ok=True)
    return screening.screen(
        write(tmp_path / "reference.jsonl", reference or reference_rows()),
        [write(tmp_path / f"answers_{n}.jsonl", rows)
         for n, rows in enumerate(answers)],
        str(roster), str(tmp_path / "out" / "report.json"), group, CUTOFFS)

  return screened


def verdicts(report):
  return {name: found["failed"]
          for name, found in report["candidates"].items()}


# ------------------------------------------------------------------- who passes


def test_figures_by_hand(screened):
  rows = answer_rows()
  rows[0]["ranks"] = [2, 1, 3]  # 1 of 3 pairs wrong
  rows[1]["ranks"] = [1, 1, 2]  # 1 of 3 tied, the others right
  rows[0]["metadata"] = [{"harmful_advice": True}, {}, {}]  # 2 of 3 wrong
  rows[2]["metadata"] = [{"hallucination": True}, {}, {}]  # not sensitive
  rows[3]["demonstration_rating"] = 6
  report = screened(
      rows, [{"labeler_id": "ann", "demonstration_rating": 7}])
  assert report["reference"] == {
      "tasks": 4, "pairs": 12, "marked_responses": 12, "sensitive": 1 / 6}
  found = report["candidates"]["ann"]
  assert (found["tasks"], found["missing"], found["pairs"]) == (4, 0, 11)
  assert found["agreement"]["mean"] == pytest.approx(10 / 11)
  assert found["agreement"]["n"] == 4  # tasks, not pairs, are independent
  assert (found["flag_agreement"]["mean"], found["responses"]) == (10 / 12, 12)
  by_field = found["flag_agreement_by_field"]
  assert list(by_field) == list(candidates.SENSITIVE)
  assert by_field["harmful_advice"]["mean"] == 11 / 12
  assert by_field["violent_content"]["mean"] == 11 / 12
  assert by_field["sexual_content"]["mean"] == 1
  assert found["demonstration_rating"] == {"mean": 6.5, "n": 2}
  assert found["passes"] and not found["failed"]


def test_each_cutoff_and_what_was_left_out(screened):
  rated = lambda name, rating: {
      "labeler_id": name, "demonstration_rating": rating}
  report = screened(
      answer_rows("ann") + [rated("ann", 6)],
      answer_rows("bob")[:3] + [rated("bob", 7)],
      answer_rows("cat", ranks=[2, 1, 3], metadata=[RUDE] * 3)
      + [rated("cat", 7), rated("cat", 4)],
      answer_rows("dan", metadata=[]), [rated("eve", 7)],
      answer_rows("fay", ranks=[1, 1, 1]) + [rated("fay", 6.5)])
  assert verdicts(report) == {
      "ann": [],
      "bob": ["1 of 4 tasks missing"],
      "cat": ["agreement < 75 %", "flags < 75 %", "rating < 6"],
      "dan": ["flags missing in 4 tasks", "no rating"],
      "eve": ["4 of 4 tasks missing", "no untied pair"],
      "fay": ["no untied pair"]}
  table = candidates.format_report(report)
  for words in ("4 tasks, 12 untied pairs", "passes", "66.7 ± 0.0 %",
                "agreement < 75 %; flags < 75 %; rating < 6"):
    assert words in table
  assert ("16.7 % of the reference's responses are sensitive, so whoever "
          "marks no response passes") in table


def test_what_is_not_asked_is_not_missing(screened):
  plain = [row | {"metadata": []} for row in reference_rows()]
  report = screened(answer_rows(metadata=[]), reference=plain)
  assert verdicts(report) == {"ann": []}
  found = report["candidates"]["ann"]
  assert found["flag_agreement"] is found["demonstration_rating"] is None
  assert "note:" not in candidates.format_report(report)


def test_the_roster_is_what_a_run_reads(screened, tmp_path):
  report = screened(answer_rows("bob") + answer_rows("ann"),
                    answer_rows("eve")[:1], group="heldout")
  roster = str(tmp_path / "out" / "roster.jsonl")
  assert handoff.read_roster(roster) == {"ann": "heldout", "bob": "heldout"}
  assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
  assert len(list((tmp_path / "out").iterdir())) == 2
  # again, with other answers of the same candidates
  screened(answer_rows("bob")[:2] + answer_rows("ann"), group="heldout")
  assert handoff.read_roster(roster) == {"ann": "heldout"}


def test_a_roster_of_others_is_not_written_over(screened, tmp_path):
  screened(answer_rows("ann"))
  before = (tmp_path / "out" / "roster.jsonl").read_bytes()
  with pytest.raises(DataError, match="'ann' of the group 'train', who would"):
    screened(answer_rows("bob"))
  with pytest.raises(DataError, match="'ann' of the group 'train', who would"):
    screened(answer_rows("ann"), group="heldout")
  assert (tmp_path / "out" / "roster.jsonl").read_bytes() == before


# ------------------------------------------------------------ what is refused

# Line 2 of the answers changed -> the message.
_BAD_ANSWERS = (
    ({"task_id": "t/9"}, "no task 't/9' was given out"),
    ({"task_id": None}, "no task_id in"),
    ({"prompt": "Prompt 1"}, "'prompt' of task 't/1' was altered"),
    ({"responses": ["a", "c", "b"]}, "'responses' of task 't/1' was altered"),
    ({"ranks": [1, 2]}, "3 responses but 2 ranks"),
    ({"ranks": [0, 1, 2]}, "rank 0 in"),
    ({"ranks": []}, "3 responses but 0 ranks"),
    ({"metadata": [{}]}, "'metadata' has to be a list"),
    ({"metadata": [{"rude": True}, {}, {}]}, "metadata 'rude'"),
    ({"labeler_id": ""}, "no labeler_id in"),
    ({"labeler_id": ["ann"]}, "no labeler_id in"),
    ({"demonstration_rating": 8}, "demonstration_rating 8; write a number"),
    ({"demonstration_rating": True}, "demonstration_rating true"),
    ({"demonstration_rating": float("nan")}, "demonstration_rating NaN"),
    ({"task_id": "t/0", "prompt": "prompt 0"},
     "'ann' has answered task 't/0' in .*answers_0.jsonl:1 too"),
)


@pytest.mark.parametrize("change, message", _BAD_ANSWERS)
def test_a_bad_answer_is_refused_with_its_line(
    screened, tmp_path, change, message):
  rows = answer_rows()
  rows[1] |= change
  with pytest.raises(DataError, match=message) as error:
    screened(rows)
  assert str(error.value).startswith(f"{tmp_path}/answers_0.jsonl:2: ")
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("change, message", [
    ({"task_id": "t/0"}, "task 't/0' is in .*reference.jsonl:1 too"),
    ({"task_id": 3}, "no task_id in"),
    ({"ranks": [1]}, "3 responses but 1 ranks"),
    ({"metadata": [{"violent_content": 1}] * 3}, "metadata 'violent_content'"),
])
def test_a_bad_reference_is_refused_with_its_line(
    screened, tmp_path, change, message):
  rows = reference_rows()
  rows[1] |= change
  with pytest.raises(DataError, match=message) as error:
    screened(answer_rows(), reference=rows)
  assert str(error.value).startswith(f"{tmp_path}/reference.jsonl:2: ")
  assert not list((tmp_path / "out").iterdir())


def test_a_reference_of_ties_tells_nothing(screened):
  with pytest.raises(DataError, match="each of the 4 tasks ranks all its resp"):
    screened(answer_rows(), reference=[
        row | {"ranks": [1, 1, 1]} for row in reference_rows()])


# ------------------------------------------------------------------ the command


@pytest.fixture(name="call")
def _call(tmp_path):
  """Calls the program in this process."""

  def call(answers, **given):
    given = {
        "reference": write(tmp_path / "reference.jsonl", reference_rows()),
        "answers": write(tmp_path / "answers.jsonl", answers),
        "roster": tmp_path / "roster.jsonl"} | given
    with flagsaver.flagsaver():
      screen.main(flags.FLAGS(
          ["screen", *(f"--{name}={x}" for name, x in given.items())]))

  return call


def test_the_command_prints_and_writes(call, tmp_path, capsys):
  call(answer_rows("ann", ranks=[2, 1, 3]) + answer_rows("bob"),
       min_agreement=0.6)
  printed = capsys.readouterr().out
  assert f"2 of 2 pass: {tmp_path}/roster.jsonl" in printed
  assert len((tmp_path / "roster.jsonl").read_text().splitlines()) == 2
  assert (tmp_path / "roster.report.json").exists()


def test_nobody_passes(call, tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    call(answer_rows()[:1])
  assert stopped.value.code == exits.REFUSED
  said = capsys.readouterr()
  assert said.err.startswith("error: no candidate passes, so ")
  assert "3 of 4 tasks missing" in said.out
  assert not (tmp_path / "roster.jsonl").exists()
  assert (tmp_path / "roster.report.json").exists()


@pytest.mark.parametrize("given, message", [
    ({"reference": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read"),
    ({"roster": "{}/no/roster.jsonl"}, "there is no folder .*/no; make it"),
    ({"roster": "{}"}, "is a folder"),
    ({"roster": "{}/answers.jsonl"}, "answers.jsonl would be written over"),
    ({"report": "{}/roster.jsonl"}, "roster.jsonl would be written over"),
])
def test_the_command_gives_up_with_one_message(
    call, tmp_path, capsys, given, message):
  given = {name: path.format(tmp_path) for name, path in given.items()}
  with pytest.raises(SystemExit) as stopped:
    call(answer_rows(), **given)
  assert stopped.value.code == exits.REFUSED
  assert re.search(f"^error: .*{message}", capsys.readouterr().err)
  assert {path.name for path in tmp_path.iterdir()} <= {
      "answers.jsonl", "reference.jsonl"}


# ---------------------------------------------------- of Smallworld's labelers


@functools.cache
def small_world():
  return Smallworld(seed=0, num_people=12, validation_fraction=0.1,
                    test_fraction=0.1)


def labeler(name, noise_sd, bias_sd=0.05):
  return labelers.SmallworldLabeler(
      small_world(), name, bias_sd=bias_sd, noise_sd=noise_sd, tie_margin=0.05,
      seed=0)


class ByLength:
  """Likes long replies, whatever they say."""

  labeler_id = "lengthy"

  def rank(self, prompt, responses):
    return Ranking(labelers.dense_ranks([len(r) for r in responses], 0.0))


class ByChance:
  labeler_id = "careless"

  def rank(self, prompt, responses):
    rng = random.Random(prompt)
    return Ranking(tuple(rng.choices(range(1, 5), k=len(responses))))


class MarksNothing:
  """Ranks well, and finds nothing sensitive."""

  labeler_id = "blind"

  def __init__(self, other):
    self._other = other

  def rank(self, prompt, responses):
    return Ranking(
        self._other.rank(prompt, responses).ranks, (), ({},) * len(responses))


def test_good_simulated_labelers_pass_and_bad_ones_do_not(screened, tmp_path):
  """Ranked and marked as the gold score has it, not by length or chance.

  Half of the replies are rude, so that flags tell something.
  """
  world = small_world()
  tasks = []
  for number, row in enumerate(world.prompts(60)):
    polite = world.responses(row["prompt"], 3, 0)
    tasks.append({
        "task_id": f"t/{number}", "prompt": row["prompt"],
        "responses": polite + [f"{x} I do not want to help." for x in polite]})

  def rows_of(someone):
    for task in tasks:
      found = someone.rank(task["prompt"], task["responses"])
      yield task | {
          "labeler_id": someone.labeler_id, "ranks": found.ranks,
          "metadata": found.metadata or [{}] * len(found.ranks)}

  good = [labeler("good_0", 0.05), labeler("good_1", 0.15)]
  bad = [labeler("noisy", 5.0), ByLength(), ByChance(), MarksNothing(good[0])]
  reference = list(rows_of(labeler("researcher", 0.0, bias_sd=0.0)))
  report = screened(
      *(rows_of(someone) for someone in good + bad), reference=reference)
  assert handoff.read_roster(str(tmp_path / "out" / "roster.jsonl")) == {
      "good_0": "train", "good_1": "train"}
  failed = verdicts(report)
  for name in ("noisy", "lengthy", "careless"):
    assert "agreement < 75 %" in failed[name]
  assert failed["noisy"] == ["agreement < 75 %"]
  assert failed["blind"] == ["flags < 75 %"]
  assert abs(report["candidates"]["careless"]["agreement"]["mean"] - 0.5) < 0.1
