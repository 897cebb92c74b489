"""Comparisons: how many, of whom, by whom, and again after an interruption."""

import collections
import dataclasses
import itertools
import json
import shutil

from etils import epath
import numpy as np
import pytest

from rlhf_jax import (
    checkpoint, collect, labelers, pipeline, scoring, sharding, storage,
)
from tests import tiny_run


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return pipeline.make_run(base.config, epath.Path(base.workdir))


def settings_of(run, **changes):
  settings = run.config.collect.copy_and_resolve_references()
  settings.update(changes)
  return settings


def tasks_of(run, num_prompts=100, **changes):
  return collect.make_tasks(run, settings_of(
      run, num_prompts=num_prompts, num_validation_prompts=10, **changes))


# ----------------------------------------------------------------------- tasks


def test_every_number_of_responses_occurs(run):
  tasks = tasks_of(run, min_responses=4, max_responses=9)
  counts = collections.Counter(task.num_responses for task in tasks)
  assert set(counts) == {4, 5, 6, 7, 8, 9}
  assert max(counts.values()) < 3 * min(counts.values())


def test_a_prompts_share_does_not_depend_on_the_others(run):
  """K and labelers are functions of the prompt's text."""
  panel = collect.smallworld_panel(run)
  of_prompt = lambda tasks: {
      task.row["prompt"]:
          (task.num_responses, [x.labeler_id for x in panel.of(task)])
      for task in tasks}
  more = tasks_of(run, min_responses=4, max_responses=9)
  fewer = tasks_of(run, num_prompts=20, min_responses=4, max_responses=9)
  assert of_prompt(fewer).items() <= of_prompt(more).items()
  assert len(fewer) < len(more)


def test_labelers_share_the_work(run):
  panel, tasks = collect.smallworld_panel(run), tasks_of(run)
  names = collections.Counter(
      x.labeler_id for task in tasks if task.split == "train"
      for x in panel.of(task))
  assert set(names) == {f"train_{n:02d}" for n in range(8)}
  for task in tasks:
    found = [x.labeler_id for x in panel.of(task)]
    assert len(set(found)) == len(found)
    assert [panel.group_of[name] for name in found] == list(task.groups)
    assert len(found) == (1 if task.split == "train" else 4)


def test_how_many_labelers_a_validation_prompt_gets(run):
  task = tasks_of(run, num_train_labels=3, num_heldout_labels=0)[-1]
  assert task.groups == ("train",) * 3
  assert len(collect.smallworld_panel(run).of(task)) == 3


# ------------------------------------------------------------ several policies


@pytest.fixture(name="mixed", scope="module")
def _mixed(base, tmp_path_factory):
  """A second round of one part SFT, three parts PPO."""
  workdir = tmp_path_factory.mktemp("mixed")
  config = tiny_run.only(
      ("collect",), collect__policies=(("sft", 1.0), ("ppo", 3.0)))
  tiny_run.run(config, workdir)
  return workdir, storage.read_lines(
      epath.Path(workdir / "collect" / "comparisons.jsonl"))


def test_policies_answer_by_their_weights(mixed):
  _, rows = mixed
  names = collections.Counter(itertools.chain(
      *(row["policies"] for row in rows if row["split"] == "train")))
  share = names["ppo"] / sum(names.values())
  assert abs(share - 0.75) < 0.12
  assert sum(len(set(row["policies"])) > 1 for row in rows) > len(rows) / 2


def test_the_policy_named_is_the_one_that_answered(base, run, mixed):
  """Asked alone, with the same noise, it says the same."""
  _, rows = mixed
  seen = {}
  for row in rows:
    seen[row["prompt"]] = row
  tasks = {task.row["prompt"]: task for task in collect.make_tasks(
      run, run.config.collect)}
  for name in ("sft", "ppo"):
    only = pipeline.Run(**{**vars(run), "config": tiny_run.tiny_config(
        collect__policies=((name, 1.0),))})
    with sharding.use(run.mesh, run.axis_rules):
      answers = collect.make_answer(only, "collect")(
          [tasks[prompt] for prompt in list(seen)[:8]])
    pairs = [
        (text, row["responses"][k])
        for answer, row in zip(answers, list(seen.values())[:8])
        for k, text in enumerate(answer["responses"])
        if row["policies"][k] == name]
    # another batch rounds otherwise, and may tip a close call
    assert sum(a == b for a, b in pairs) >= 0.9 * len(pairs) > 0


def test_seeds_name_the_noise(mixed):
  _, rows = mixed
  by_prompt = {row["prompt"]: row["seeds"] for row in rows}
  seeds = list(itertools.chain(*by_prompt.values()))
  assert len(set(seeds)) == len(seeds)
  for row in rows:
    assert len(row["seeds"]) == len(row["policies"]) == len(row["responses"])


def test_a_comparison_says_where_its_prompt_is_from(run):
  where = {"prompt_kind": "few_shot", "few_shot_set": "a name"}
  first, second = tasks_of(run)[:2]
  tasks = [dataclasses.replace(first, row=first.row | where), second]
  with sharding.use(run.mesh, run.axis_rules):
    marked, bare = collect.make_answer(run, "collect")(tasks)
  assert marked.items() >= where.items()
  assert not where.keys() & bare.keys()


# --------------------------------------------------- a reward model as labeler


def test_a_reward_model_ranks_by_its_scores(base, run, tmp_path):
  config = tiny_run.only(("collect",), collect__labeler="rm")
  tiny_run.run(config, tmp_path)
  rows = storage.read_lines(
      epath.Path(tmp_path / "collect" / "comparisons.jsonl"))
  assert len(rows) == 40 and {row["labeler_id"] for row in rows} == {"rm"}
  unit = checkpoint.read_done(run.stage_dir("rm"))["figures"]["score_sd"]
  with sharding.use(run.mesh, run.axis_rules):
    scorer = scoring.Scorer(run, run.scalar(), 8)
    params = run.load("rm", "params", run.scalar())
    for row in rows[:8]:
      prompt = run.prompt_tokens(row["prompt"])
      scores = scorer(params, [
          (prompt, run.response_tokens(text)) for text in row["responses"]])
      expected = labelers.dense_ranks(
          [float(s) / unit for s in scores], config.labelers.tie_margin)
      assert row["ranks"] == list(expected)
    asked = labelers.RewardLabeler(
        run, "rm", tie_margin=config.labelers.tie_margin, max_responses=5)
    assert [asked.rank(row["prompt"], row["responses"]).ranks
            for row in rows] == [tuple(row["ranks"]) for row in rows]
    assert {len(row["ranks"]) for row in rows} == {4, 5}
    assert asked._scorer._scores._cache_size() == 1  # whatever K
  figures = checkpoint.read_done(tmp_path / "collect")["figures"]
  assert not [name for name in figures if name.startswith("agreement")]


# --------------------------------------------------------------------- resuming


def task(number):
  return collect.Task(number=number, split="train", row={}, num_responses=4,
                      groups=("train",))


# Groups of 3, 4 and 2 lines.
GROUPS = [[task(n) for n in numbers]
          for numbers in (range(3), range(3, 7), range(7, 9))]


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
  path = epath.Path(tmp_path / "responses.jsonl")
  path.write_text(text)
  assert collect.keep_whole_groups(path, GROUPS) == done
  assert path.read_text() == kept


def test_nothing_collected_yet(tmp_path):
  path = epath.Path(tmp_path / "responses.jsonl")
  assert collect.keep_whole_groups(path, GROUPS) == 0
  assert not path.exists()


def test_a_file_cut_in_a_line_is_completed(mixed, tmp_path, monkeypatch):
  """Killed while it wrote: the rerun samples what is missing, no more."""
  workdir, _ = mixed
  names = ("responses.jsonl", "comparisons.jsonl", "report.json")
  whole = {name: (workdir / "collect" / name).read_bytes() for name in names}
  path = tmp_path / "collect" / "responses.jsonl"
  path.parent.mkdir()
  path.write_bytes(whole[path.name][:len(whole[path.name]) * 2 // 3])
  make_answer, groups = collect.make_answer, []

  def counted(run, stage):
    answer = make_answer(run, stage)

    def count(tasks):
      groups.append([task.number for task in tasks])
      return answer(tasks)

    return count

  monkeypatch.setattr(collect, "make_answer", counted)
  tiny_run.run(tiny_run.only(
      ("collect",), collect__policies=(("sft", 1.0), ("ppo", 3.0))), tmp_path)
  assert {n: (path.parent / n).read_bytes() for n in names} == whole
  assert 0 < len(groups) < 5
  assert groups[-1] == list(range(32, 40))


def test_sampled_whole_and_not_ranked_yet(base, tmp_path, monkeypatch):
  """Killed while labelers ranked: nothing is sampled again."""
  shutil.copytree(base.workdir / "collect", tmp_path / "collect")
  for name in ("comparisons.jsonl", "report.json", "done.json"):
    (tmp_path / "collect" / name).unlink()

  def never(run, stage):
    raise AssertionError("sampled again")

  monkeypatch.setattr(collect, "make_answer", never)
  tiny_run.run(tiny_run.only(("collect",)), tmp_path)
  for name in ("comparisons.jsonl", "report.json"):
    assert (tmp_path / "collect" / name).read_bytes() == (
        base.workdir / "collect" / name).read_bytes()


def test_company_does_not_change_a_response(base, tmp_path):
  """The noise is that of prompt and token, whatever the batch."""
  tiny_run.run(
      tiny_run.only(("collect",), collect__prompts_per_batch=16), tmp_path)
  pairs = [
      pair for ours, theirs in zip(
          (tmp_path / "collect" / "responses.jsonl").read_text().splitlines(),
          base.rows("collect/responses.jsonl"), strict=True)
      for pair in zip(json.loads(ours)["responses"], theirs["responses"],
                      strict=True)]
  # another batch rounds otherwise, and may tip a close call
  assert sum(ours == theirs for ours, theirs in pairs) > 0.97 * len(pairs)


# ---------------------------------------------------------------------- report


def test_the_report_is_that_of_the_file(base, run):
  rows = base.rows("collect/comparisons.jsonl")
  report = base.json("collect/report.json")
  assert report == json.loads(json.dumps(collect.make_report(
      rows, collect.smallworld_panel(run))))
  assert report["comparisons"] == len(rows) == 32 + 8 * 4
  of_sft = report["policies"]["sft"]
  ratings = [x for row in rows for x in row["likert"]]
  assert of_sft["likert"]["mean"] == pytest.approx(np.mean(ratings))
  assert of_sft["responses"] == len(ratings)
  figures = base.json("collect/done.json")["figures"]
  agreed = report["agreement"]
  summary = base.json("summary.json")["labelers"]
  for group, name in (("train", "agreement"),
                      ("heldout", "agreement_heldout"),
                      ("between", "agreement_between")):
    rate = agreed[group]["pairwise"]["mean"]
    assert figures[f"agreement_{group}"] == summary[name] == rate


def test_rows_say_all_there_is_to_say(base):
  for row in base.rows("collect/comparisons.jsonl"):
    assert set(row) == {
        "prompt", "responses", "policies", "seeds", "ranks", "likert",
        "metadata", "seconds", "labeler_id", "labeler_group", "split",
        "user_id", "category"}
    assert row["labeler_id"].startswith(row["labeler_group"])
    assert row["seconds"] is None
    for marks in row["metadata"]:
      assert set(marks) == set(labelers.METADATA)
