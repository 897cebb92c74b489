"""A whole run: what it leaves, how it goes on, what it refuses."""

import collections
import dataclasses
import json
import math
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

from etils import epath
import jax
import numpy as np
import pytest

from rlhf_jax import (
    checkpoint, collect, config as config_lib, datasets, labelers, metrics,
    pipeline, scoring, sharding,
)
from rlhf_jax.data import prepare
from rlhf_jax.data.records import DataError
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.data.smallworld.rubric import Judgment, Parts
from rlhf_jax.evals import intervals, preferences
from rlhf_jax.report import folder as report_folder
from tests import results, tiny_run

STAGES = ("pretrain", "sft", "collect", "rm", "rl_init", "ppo", "evaluate")
TRAINED = ("pretrain", "sft", "rm", "rl_init", "ppo")
KINDS = ("comparisons", "demonstrations", "pretrain", "prompts")
SECONDS = ("seconds", "train/ppo/rollout_seconds",
           "train/ppo/iteration_seconds")


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return pipeline.make_run(base.config, epath.Path(base.workdir))


def numbers(tree, path=""):
  """(path, number) of everything in nested objects."""
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from numbers(value, f"{path}{name}.")
    elif isinstance(value, (int, float)):
      yield path + name, value


@pytest.mark.parametrize("device_count", [1, 2, 4, 8])
def test_the_tiny_run_fits_its_devices(device_count):
  config_lib.validate(tiny_run.tiny_config(), device_count)


# ------------------------------------------------------------ what it leaves


def test_the_workdir_is_that_of_the_design(base):
  found = {path.name for path in base.workdir.iterdir()}
  assert found == {"config.json", "metrics.jsonl", "tensorboard", "data",
                   "samples.jsonl", "summary.json", "report.html", *STAGES}
  for stage in STAGES:
    assert (base.workdir / stage / "settings.json").exists()
    assert (base.workdir / "tensorboard" / stage).is_dir()
  for stage in TRAINED:
    assert checkpoint.exists(base.workdir / stage / "checkpoints")
  for kind in KINDS:
    assert list((base.workdir / "data" / kind).rglob("*.array_record*"))
  assert base.json("config.json") == json.loads(
      json.dumps(base.config.to_dict()))


def test_every_stage_says_that_it_is_done(base):
  digests = set()
  for stage in STAGES:
    done = base.json(f"{stage}/done.json")
    assert done["stage"] == stage and done["seconds"] > 0
    assert all(math.isfinite(x) for _, x in numbers(done["figures"]))
    digests.add(done["tokenizer"])
  assert len(digests) == 1
  assert base.json("sft/settings.json") == config_lib.stage_keys(
      base.config, "sft")


@pytest.mark.parametrize("stage, items", [
    ("sft", {"params", "opt_state", "scalars"}),
    ("rm", {"params", "opt_state", "scalars"}),
    ("ppo", {"params", "opt_state", "critic", "critic_opt_state", "ema",
             "scalars", "metrics"}),
])
def test_a_checkpoint_keeps_its_parts_apart(base, stage, items):
  steps = saved_steps(base.workdir / stage)
  if stage == "sft":  # the one of the lowest validation loss, and the last
    selected = base.json("sft/done.json")["figures"]["selected_step"]
    assert steps == sorted({selected, base.config.sft.num_steps})
  else:
    assert len(steps) == base.config[stage].keep_checkpoints
  for step in steps:
    folder = base.workdir / stage / "checkpoints" / str(step)
    parts = {path.name for path in folder.iterdir() if path.is_dir()}
    assert parts == items | {"meta"}


def test_the_summary_has_the_headline_figures(base):
  summary = base.json("summary.json")
  found = dict(numbers(summary))
  wanted = [f"stages.{name}.seconds" for name in STAGES]
  wanted += [f"eval.win_rate_vs_sft.{x}" for x in ("mean", "low", "high", "n")]
  for name in ("gold_score", "pretrain_loss"):
    wanted += [f"eval.{name}.{p}" for p in ("pretrain", "sft", "ppo")]
  wanted += ["eval.response_length.sft", "eval.response_length.ppo",
             "rm.accuracy.train_labelers", "rm.accuracy.heldout_labelers",
             "labelers.agreement", "eval.kl_to_sft", "seconds", "peak_rss_mb",
             "seed"]
  assert not set(wanted) - set(found)
  assert all(math.isfinite(value) for value in found.values())
  assert summary["devices"] == {
      "count": jax.device_count(), "platform": "cpu",
      "mesh": {"data": 1, "fsdp": jax.device_count(), "tensor": 1}}
  assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= set(
      summary["versions"])
  assert summary["eval"]["win_rate_vs_sft"]["n"] == 32
  assert summary["eval"]["kl_to_sft"] >= 0


def test_the_terminal_ends_with_a_table(base):
  table = base.printed[base.printed.index("stage     time"):]
  for stage in STAGES:
    assert f"\n{stage} " in table
  rate = base.json("summary.json")["eval"]["win_rate_vs_sft"]
  assert (f"ppo is preferred to sft: {100 * rate['mean']:.1f} ± "
          f"{50 * (rate['high'] - rate['low']):.1f} % of 32") in table
  for name in ("metrics.jsonl", "samples.jsonl", "summary.json", "tensorboard"):
    assert str(base.workdir / name) in table


def test_every_stage_has_its_rows(base):
  steps = collections.defaultdict(list)
  for row in base.rows("metrics.jsonl"):
    assert list(row)[:3] == ["stage", "step", "seconds"] and len(row) > 3
    assert all(math.isfinite(value) for _, value in numbers(row))
    steps[row["stage"]].append(row["step"])
  assert tuple(steps) == STAGES
  lm = [4, 8, 8, 12, 16, 16]  # losses every 4 steps, evaluation every 8
  assert steps["pretrain"] == steps["sft"] == steps["rl_init"] == lm
  assert steps["ppo"] == [1, 2, 3]
  seconds = [row["seconds"] for row in base.rows("metrics.jsonl")]
  assert seconds == sorted(seconds)


def test_training_learns(base):
  for stage in ("pretrain", "sft", "rl_init"):
    rows = metrics.read(base.workdir, stage)
    name = next(n for n in rows[0] if n.endswith("/loss"))
    losses = [row[name] for row in rows if name in row]
    assert losses[-1] < losses[0] < math.log(512)


def test_ppo_starts_at_its_reference(base):
  rows = metrics.read(base.workdir, "ppo")
  assert abs(rows[0]["train/ppo/kl"]) <= 1e-5
  assert rows[0]["train/ppo/kl_k3"] <= 1e-5
  assert max(abs(row["train/ppo/kl"]) for row in rows[1:]) > 1e-4
  assert rows[0]["train/ppo/sampler_drift"] <= 1e-4
  figures = base.json("ppo/done.json")["figures"]
  assert figures["first_ratio_deviation_max"] <= 1e-5
  assert rows[0]["train/ppo/ratio_max_deviation"] > 1e-4  # later minibatches
  assert [row["train/ptx/next_row"] for row in rows] == [16, 32, 48]
  assert all(row["train/ptx/grad_norm"] > 0 for row in rows)


def test_demonstrations_score_zero_on_average(base, run):
  model = run.scalar()
  with sharding.use(run.mesh, run.axis_rules):
    scores = scoring.Scorer(run, model, base.config.rm.eval_batch_size)(
        run.load("rm", "params", model),
        [(row["prompt_tokens"], row["response_tokens"])
         for row in run.source("demonstrations", "train")])
  figures = base.json("rm/done.json")["figures"]
  assert abs(scores.mean()) <= 1e-5 < abs(figures["bias"])
  assert scores.std() == pytest.approx(
      figures["demonstration_score_sd"], rel=1e-4)


# ------------------------------------------------------- samples and labels


def test_samples_are_the_evaluations_own(base):
  rows = base.rows("samples.jsonl")
  prompts = prepare.open_split(str(base.workdir / "data"), "prompts", "test")
  assert [row["prompt"] for row in rows] == [
      row["prompt"] for row in prompts][:32]
  figures = base.json("summary.json")["eval"]
  policies = base.config.evaluate.policies
  for name in policies:
    own = [row["responses"][name] for row in rows]
    for key, figure in (("score", "score"), ("kl", "kl"),
                        ("gold", "gold_score")):
      mean = np.mean([response[key] for response in own])
      assert mean == pytest.approx(figures[figure][name], abs=1e-4), key
  assert all(list(row["responses"]) == list(policies) for row in rows)
  assert len({row["responses"]["ppo"]["text"] for row in rows}) > 16


def test_the_win_rate_is_that_of_the_samples(base, run):
  rows = base.rows("samples.jsonl")
  train, heldout = labelers.of_run(run, labelers.TRUTHFUL_HARMLESS)
  asked = []

  def judge(number, prompt, pair):
    labeler, = labelers.assign(heldout, prompt, 1)
    asked.append(labeler)
    return labeler.rank(prompt, pair).ranks

  # Smallworld's labelers do not go by the order, so one will do
  found = intervals.mean([
      preferences.points(judge(number, row["prompt"], [
          row["responses"][name]["text"] for name in ("ppo", "sft")]))
      for number, row in enumerate(rows)])
  assert found == base.json("summary.json")["eval"]["win_rate_vs_sft"]
  assert not {x.labeler_id for x in asked} & {x.labeler_id for x in train}
  assert len({x.labeler_id for x in asked}) > 1


def test_comparisons_are_whole(base):
  rows = base.rows("collect/comparisons.jsonl")
  asked = collections.defaultdict(list)
  for row in rows:
    number = len(row["responses"])
    assert 4 <= number <= 5
    assert len(row["ranks"]) == len(row["likert"]) == number
    assert len(row["metadata"]) == number
    assert sorted(set(row["ranks"])) == list(range(1, max(row["ranks"]) + 1))
    assert all(1 <= likert <= 7 for likert in row["likert"])
    assert row["policies"] == ["sft"] * number
    asked[row["split"], row["prompt"]].append(row["labeler_id"])
  assert {len(row["responses"]) for row in rows} == {4, 5}
  groups = {
      split: {tuple(name.partition("_")[0] for name in names)
              for (s, _), names in asked.items() if s == split}
      for split in ("train", "validation")}
  assert groups == {"train": {("train",)},
                    "validation": {("train", "train", "heldout", "heldout")}}
  assert all(len(set(names)) == len(names) for names in asked.values())
  assert collections.Counter(split for split, _ in asked) == {
      "train": 32, "validation": 8}


def test_no_two_responses_share_noise(base):
  """Equal prompts aside, the policy's responses differ."""
  rows = base.rows("collect/comparisons.jsonl")
  by_prompt = {row["prompt"]: row["responses"] for row in rows}
  texts = [text for responses in by_prompt.values() for text in responses]
  assert len(set(texts)) > 0.9 * len(texts)


def test_evaluation_shares_nothing_with_training(base, run):
  """No user, prompt, slot tuple or fact of the test prompts was trained on."""

  def shared_things(kind, split):
    for row in run.source(kind, split):
      task = run.world.parse(row["prompt"])
      yield "prompt", row["prompt"]
      yield "user", row["user_id"]
      yield "group", task.group
      if task.kind.fact:
        yield "fact", task.fact_key

  test = set(shared_things("prompts", "test"))
  assert {name for name, _ in test} == {"prompt", "user", "group", "fact"}
  for kind in ("prompts", "demonstrations", "comparisons"):
    train = set(shared_things(kind, "train"))
    assert len(train) > 30
    assert not train & test, kind
    assert not train & set(shared_things(kind, "validation")), kind
  asked = {row["prompt"] for row in base.rows("samples.jsonl")}
  assert asked <= {text for name, text in test if name == "prompt"}


def test_cleaning_gave_an_account(base):
  for kind in KINDS:
    report = base.json(f"data/{kind}/report.json")
    dropped = sum(rule["count"] for rule in report["dropped"].values())
    assert report["rows_in"] == dropped + sum(report["rows_out"].values())
  dropped = base.json("data/prompts/report.json")["dropped"]
  assert dropped["long_prompt"]["count"] > 0
  assert dropped["duplicate_prompt"]["count"] > 0
  assert f"- long_prompt          -{dropped['long_prompt']['count']}" in (
      base.printed)


def test_the_report_has_every_stage_and_its_curves(base):
  report = (base.workdir / "report.html").read_text()
  assert f"{len(STAGES)} of {len(STAGES)} stages are finished" in report
  for stage in STAGES:
    assert f"<td>{stage}</td><td>finished</td>" in report
  for stage in ("pretrain", "sft", "rm", "rl_init", "ppo"):
    assert f'id="chart-{stage}-grad_norm"' in report
  for kind in KINDS:
    assert f"<td>{kind}</td>" in report
  assert str(base.workdir / "report.html") in base.printed


# ------------------------------------------------------------ done and again


def changeless(workdir):
  """All files but the three that every call writes."""
  files = tiny_run.contents(workdir)
  for name in ("config.json", "summary.json", "report.html"):
    del files[name]
  return files


@pytest.fixture(name="finished", scope="module")
def _finished(base, tmp_path_factory):
  """A copy of the base run, which others read at the same time."""
  return shutil.copytree(
      base.workdir, tmp_path_factory.mktemp("finished") / "base")


def not_run(run, stage):
  raise AssertionError(f"{stage} ran again")


@pytest.mark.parametrize("changes", [
    {},
    # no result depends on these
    dict(name="other", mesh__data=-1, mesh__fsdp=1, pretrain__every_log_steps=1,
         sft__num_microbatches=2, model__scan_unroll=2,
         ppo__keep_checkpoints=1),
])
def test_finished_stages_are_skipped(finished, changes, capsys):
  before = changeless(finished)
  with mock.patch.dict(pipeline.STAGES, dict.fromkeys(STAGES, not_run)):
    tiny_run.run(tiny_run.tiny_config(**changes), finished)
  assert changeless(finished) == before
  printed = capsys.readouterr().out
  for stage in STAGES:
    assert f"{stage}: finished before" in printed


@pytest.mark.parametrize("changes, message", [
    (dict(pretrain__num_steps=25),
     r"pretrain was begun .*\n  pretrain.num_steps: 16 -> 25\nSet them back"),
    (dict(ppo__method__kl_coef=0.5),
     r"ppo was begun .*\n  ppo.method.kl_coef: 0\S+ -> 0.5\n"),
    (dict(seed=1), r"pretrain was begun .*\n  seed: 0 -> 1\n"),
    (dict(labelers__noise_sd=1.0),
     r"collect was .*\n  labelers.noise_sd: 0\S+ -> 1.0\n"),
    (dict(smallworld__num_prompts=10, collect__num_prompts=3),
     r"smallworld.num_prompts: 240 -> 10"),
    (dict(data__prompt_suffix=""), r"data.prompt_suffix: '\\n' -> ''"),
])
def test_a_finished_stages_keys_are_held(finished, changes, message):
  before = tiny_run.contents(finished)
  with pytest.raises(pipeline.WorkdirError, match=message):
    tiny_run.run(tiny_run.tiny_config(**changes), finished)
  assert tiny_run.contents(finished) == before


def test_keys_of_stages_to_come_may_change(base, tmp_path):
  for name in ("settings.json", "done.json"):
    path = tmp_path / "pretrain" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((base.workdir / "pretrain" / name).read_bytes())
  pipeline.check_workdir(
      tiny_run.tiny_config(sft__num_steps=3, ppo__num_iters=9,
                           smallworld__seed=0), epath.Path(tmp_path))
  with pytest.raises(pipeline.WorkdirError, match="smallworld.seed: 0 -> 3"):
    pipeline.check_workdir(
        tiny_run.tiny_config(smallworld__seed=3), epath.Path(tmp_path))


# ------------------------------------------------------------------ interrupted


def interrupt_before_done():
  """Ctrl-C when all is saved but the mark that says so."""
  return mock.patch.object(
      checkpoint, "write_done", side_effect=KeyboardInterrupt)


def interrupt_collecting(groups):
  """Ctrl-C at the group with this number."""
  make_answer, calls = collect.make_answer, []

  def stopped(run, stage):
    answer = make_answer(run, stage)

    def stop(tasks):
      calls.append(tasks)
      if len(calls) > groups:
        raise KeyboardInterrupt
      return answer(tasks)

    return stop

  return mock.patch.object(collect, "make_answer", stopped)


def saved_steps(directory):
  """The steps that a stage has checkpoints of."""
  return results.steps(directory.parent, directory.name)


def restored(directory):
  """The newest checkpoint of a stage."""
  newest = saved_steps(directory)[-1]
  return results.saved_items(directory / "checkpoints" / str(newest))


def assert_same_result(stage, workdir, base, but=()):
  """Bit for bit: arrays, comparisons, figures, rows without the metrics of
  `but`."""
  if stage == "collect":
    ours, theirs = (
        (root / "collect" / "comparisons.jsonl").read_bytes()
        for root in (workdir, base.workdir))
    assert ours == theirs
  elif stage in TRAINED:
    ours, theirs = (restored(root / stage) for root in (workdir, base.workdir))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  if stage == "rm":
    ours, theirs = ((root / "rm" / "report.json").read_bytes()
                    for root in (workdir, base.workdir))
    assert ours == theirs
  ours, theirs = (
      checkpoint.read_done(root / stage) for root in (workdir, base.workdir))
  assert ours["figures"] == theirs["figures"]
  rows = [[{k: v for k, v in row.items() if k not in (*SECONDS, *but)}
           for row in metrics.read(root, stage)]
          for root in (workdir, base.workdir)]
  assert rows[0] == rows[1]


@pytest.mark.parametrize("stage, interruption, saved", [
    ("pretrain", tiny_run.interrupt_at("pretrain", 12), [8]),
    ("sft", tiny_run.interrupt_at("sft", 4), []),  # before the first checkpoint
    ("collect", interrupt_collecting(2), []),
    ("rm", tiny_run.interrupt_at("rm", 3), [2]),
    ("ppo", tiny_run.interrupt_at("ppo", 2), [1]),
])
def test_an_interrupted_stage_ends_as_an_uninterrupted_one(
    base, tmp_path, stage, interruption, saved):
  """Interrupted on its way and once more when only the mark is missing, in a
  workdir of its own, after stages of the base run."""
  config = tiny_run.only((stage,))
  with interruption, pytest.raises(KeyboardInterrupt):
    tiny_run.run(config, tmp_path)
  assert saved_steps(tmp_path / stage) == saved
  with interrupt_before_done(), pytest.raises(KeyboardInterrupt):
    tiny_run.run(config, tmp_path)
  assert checkpoint.read_done(tmp_path / stage) is None
  tiny_run.run(config, tmp_path)
  assert_same_result(stage, tmp_path, base)


def test_a_run_with_stages_to_come_has_no_summary(base, tmp_path):
  """Nor does its report show that of an earlier end."""
  workdir = shutil.copytree(
      base.workdir, tmp_path / "again",
      ignore=shutil.ignore_patterns("tensorboard"))
  (workdir / "evaluate" / "done.json").unlink()
  assert report_folder.read(workdir).summary
  with mock.patch.dict(pipeline.STAGES, evaluate=mock.Mock(
      side_effect=KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
    tiny_run.run(base.config, workdir)
  assert not report_folder.read(workdir).summary


def test_evaluation_alone_does_the_same(base, tmp_path):
  tiny_run.run(tiny_run.only(("evaluate",)), tmp_path)
  assert (tmp_path / "samples.jsonl").read_bytes() == (
      base.workdir / "samples.jsonl").read_bytes()
  assert_same_result("evaluate", tmp_path, base)


def test_the_rubric_never_reaches_ppo(base, tmp_path):
  """PPO learns from the reward model alone: with the rubric replaced after
  `collect` by a constant it is bit-identical."""
  constant = Judgment(0.5, 4, {}, Parts(0.5, 0.5, 0.5, 0.5, 0.5))
  with mock.patch.object(Smallworld, "judge", lambda *args: constant):
    tiny_run.run(tiny_run.only(("ppo",)), tmp_path)
  # which is there for a guard that warns
  assert_same_result("ppo", tmp_path, base, but=("train/ppo/gold",))


# ---------------------------------------------------------- other runs' stages


def test_a_moved_run_still_has_its_comparisons(base, tmp_path):
  moved = tmp_path / "moved"
  shutil.copytree(base.workdir / "data", moved / "data")
  shutil.copytree(base.workdir / "collect", moved / "collect")
  run = pipeline.make_run(base.config, epath.Path(moved))
  # would raise, had they been made otherwise
  datasets.prepare_for(run, ("comparisons",), "rm")
  rows = (moved / "collect" / "comparisons.jsonl").read_text().splitlines()
  (moved / "collect" / "comparisons.jsonl").write_text("\n".join(rows[1:]))
  with pytest.raises(DataError, match="prepared otherwise .source: 'collect#"):
    datasets.prepare_for(run, ("comparisons",), "rm")


def test_an_unfinished_input_is_refused(base, tmp_path):
  folder = tmp_path / "other" / "pretrain"
  folder.mkdir(parents=True)
  config = tiny_run.only(("sft",))
  config.inputs.pretrain = str(folder)
  with pytest.raises(config_lib.ConfigError, match="has no done.json"):
    tiny_run.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_input_with_another_tokenizer_is_refused(base, tmp_path):
  folder = tmp_path / "other" / "pretrain"
  done = base.json("pretrain/done.json") | {"tokenizer": "another"}
  checkpoint.write_done(folder, done)
  config = tiny_run.only(("sft",))
  config.inputs.pretrain = str(folder)
  with pytest.raises(pipeline.WorkdirError, match="with another tokenizer"):
    tiny_run.run(config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()
  assert not (tmp_path / "run" / "sft").exists()


def test_a_lost_checkpoint_is_missed_before_anything_runs(base, tmp_path):
  folder = tmp_path / "other" / "pretrain"
  checkpoint.write_done(folder, base.json("pretrain/done.json"))
  config = tiny_run.only(("sft",))
  config.inputs.pretrain = str(folder)
  with (mock.patch.dict(pipeline.STAGES, dict.fromkeys(STAGES, not_run)),
        pytest.raises(checkpoint.CheckpointError,
                      match="checkpoints is gone, and 'sft' needs it")):
    tiny_run.run(config, tmp_path / "run")


# ----------------------------------------------------------------------- meshes


def test_one_device_does_the_same(base, tmp_path):
  """The command line, on one device, against the base run on eight."""
  assert base.json("summary.json")["devices"]["count"] == 8
  experiment = tmp_path / "experiment.py"
  experiment.write_text(
      "from tests import tiny_run\n\n\ndef get_config():\n"
      "  return tiny_run.tiny_config()\n")
  root = pathlib.Path(__file__).parent.parent
  done = subprocess.run(
      [sys.executable, "-m", "rlhf_jax.main", f"--config={experiment}",
       f"--workdir={tmp_path / 'run'}", "--config.stages=('pretrain',)"],
      cwd=root, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "pretrain" in done.stdout and "summary.json" in done.stdout
  ours = metrics.read(tmp_path / "run", "pretrain")
  theirs = metrics.read(base.workdir, "pretrain")
  for one, eight in zip(ours, theirs, strict=True):
    for name in set(one) - {"stage", "step", "seconds"}:
      assert one[name] == pytest.approx(eight[name], abs=1e-4), name


def test_only_smallworlds_own_prompts_are_judged_by_it(run):
  assert run.rubric is run.world is not None
  config = run.config.copy_and_resolve_references()
  config.data.prompts = "jsonl:mine.jsonl"  # the rest is still Smallworld's
  assert dataclasses.replace(run, config=config).rubric is None
