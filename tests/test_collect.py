"""Comparisons: how many, by whom, and again after an interruption."""

import collections
import json

from etils import epath
import pytest

from rlhf_jax import collect, pipeline
from tests import tiny_run


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return pipeline.make_run(base.config, epath.Path(base.workdir))


def tasks_of(run, num_prompts=100, **changes):
  settings = run.config.collect.copy_and_resolve_references()
  settings.update(
      num_prompts=num_prompts, num_validation_prompts=10, **changes)
  return collect.make_tasks(run, settings, *collect.smallworld_labelers(run))


# ----------------------------------------------------------------------- tasks


def test_every_number_of_responses_occurs(run):
  tasks = tasks_of(run, min_responses=4, max_responses=9)
  counts = collections.Counter(task.num_responses for task in tasks)
  assert set(counts) == {4, 5, 6, 7, 8, 9}
  assert max(counts.values()) < 3 * min(counts.values())


def test_a_prompts_share_does_not_depend_on_the_others(run):
  """K and labelers are functions of the prompt's text."""
  more = tasks_of(run, min_responses=4, max_responses=9)
  of_prompt = lambda tasks: {
      task.row["prompt"]:
          (task.num_responses, [x.labeler_id for x in task.labelers])
      for task in tasks}
  fewer = tasks_of(run, num_prompts=20, min_responses=4, max_responses=9)
  assert of_prompt(fewer).items() <= of_prompt(more).items()
  assert len(fewer) < len(more)


def test_labelers_share_the_work(run):
  tasks = tasks_of(run)
  names = collections.Counter(
      x.labeler_id for task in tasks if task.split == "train"
      for x in task.labelers)
  assert set(names) == {f"train_{n:02d}" for n in range(8)}
  for task in tasks:
    assert len(task.labelers) == (1 if task.split == "train" else 4)
    assert len({x.labeler_id for x in task.labelers}) == len(task.labelers)


def test_a_small_group_is_not_asked_twice():
  assert collect.assign(["a"], "prompt", 2) == ("a",)
  assert set(collect.assign(["a", "b"], "prompt", 2)) == {"a", "b"}


def test_no_world_no_labelers(run):
  other = pipeline.Run(**{**vars(run), "world": None})
  with pytest.raises(ValueError, match="--config.data.comparisons=jsonl:PATH"):
    collect.smallworld_labelers(other)


# --------------------------------------------------------------------- resuming


def task(number, labelers):
  return collect.Task(number=number, split="train", row={}, num_responses=4,
                      labelers=("someone",) * labelers)


# Groups of 3, 4 and 2 lines.
GROUPS = [[task(0, 1), task(1, 2)], [task(2, 4)], [task(3, 2)]]


@pytest.mark.parametrize("text, done, kept", [
    ("", 0, ""),
    ("a\nb\n", 0, ""),
    ("a\nb\nc", 0, ""),  # the third line has no end
    ("a\nb\nc\n", 1, "a\nb\nc\n"),
    ("a\nb\nc\nd\ne\nf\n", 1, "a\nb\nc\n"),
    ("a\nb\nc\nd\ne\nf\ng\nh", 2, "a\nb\nc\nd\ne\nf\ng\n"),
    ("a\nb\nc\nd\ne\nf\ng\nh\ni\n", 3, "a\nb\nc\nd\ne\nf\ng\nh\ni\n"),
])
def test_groups_stay_whole(tmp_path, text, done, kept):
  path = epath.Path(tmp_path / "comparisons.jsonl")
  path.write_text(text)
  assert collect.keep_whole_groups(path, GROUPS) == done
  assert path.read_text() == kept


def test_nothing_collected_yet(tmp_path):
  path = epath.Path(tmp_path / "comparisons.jsonl")
  assert collect.keep_whole_groups(path, GROUPS) == 0
  assert not path.exists()


def test_a_file_cut_in_a_line_is_completed(base, tmp_path, monkeypatch):
  """Killed while it wrote: the rerun samples what is missing, no more."""
  whole = (base.workdir / "collect" / "comparisons.jsonl").read_bytes()
  path = tmp_path / "collect" / "comparisons.jsonl"
  path.parent.mkdir()
  path.write_bytes(whole[:len(whole) * 2 // 3])
  answer, groups = collect.answer, []

  def count(run, generate, params, key, group, settings):
    groups.append([task.number for task in group])
    return answer(run, generate, params, key, group, settings)

  monkeypatch.setattr(collect, "answer", count)
  tiny_run.run(tiny_run.only(("collect",)), tmp_path)
  assert path.read_bytes() == whole
  assert 0 < len(groups) < 5
  assert groups[-1] == list(range(32, 40))


def test_company_does_not_change_a_response(base, tmp_path):
  """The noise is that of prompt and token, whatever the batch."""
  tiny_run.run(
      tiny_run.only(("collect",), collect__prompts_per_batch=16), tmp_path)
  pairs = [
      pair for ours, theirs in zip(
          (tmp_path / "collect" / "comparisons.jsonl").read_text().splitlines(),
          base.rows("collect/comparisons.jsonl"), strict=True)
      for pair in zip(json.loads(ours)["responses"], theirs["responses"],
                      strict=True)]
  # another batch rounds otherwise, and may tip a close call
  assert sum(ours == theirs for ours, theirs in pairs) > 0.97 * len(pairs)


# -------------------------------------------------------------------- agreement


def line(prompt, labeler_id, ranks, split="validation"):
  return json.dumps({"prompt": prompt, "labeler_id": labeler_id,
                     "ranks": ranks, "split": split}) + "\n"


class Labeler:

  def __init__(self, labeler_id):
    self.labeler_id = labeler_id


def test_agreement_by_hand(tmp_path):
  path = epath.Path(tmp_path / "comparisons.jsonl")
  path.write_text(
      line("p", "t0", [1, 2, 3]) + line("p", "t1", [1, 3, 2])
      + line("p", "h0", [3, 2, 1]) + line("p", "h1", [2, 1, 1])
      + line("q", "t1", [1, 2]) + line("q", "t2", [1, 1])
      + line("r", "t0", [1, 2], split="train")
      + line("r", "h0", [2, 1], split="train"))
  found = collect.agreement(path, [Labeler(f"t{n}") for n in range(3)])
  # p, t0 with t1: pairs 01 and 02 alike, 12 not; q: tied by t2
  assert found["agreement_train_pairs"] == 3
  assert found["agreement_train"] == pytest.approx(2 / 3)
  # p, h0 with h1: 01 and 02 alike, 12 tied by h1
  assert found["agreement_heldout_pairs"] == 2
  assert found["agreement_heldout"] == 1
  # t0h0: 0 of 3; t0h1: 0 of 2; t1h0: 12 of 3; t1h1: 0 of 2
  assert found["agreement_between_pairs"] == 10
  assert found["agreement_between"] == pytest.approx(1 / 10)


def test_the_runs_agreement_is_that_of_its_file(base, run):
  train, _ = collect.smallworld_labelers(run)
  found = collect.agreement(
      epath.Path(base.workdir / "collect" / "comparisons.jsonl"), train)
  figures = base.json("collect/done.json")["figures"]
  assert {name: figures[name] for name in found} == found
  labelers = base.json("summary.json")["labelers"]
  assert labelers["agreement"] == found["agreement_train"]
  assert labelers["agreement_heldout"] == found["agreement_heldout"]
  assert labelers["agreement_between"] == found["agreement_between"]
