"""A study's runs: in which order, from whom, once, with every seed."""

import dataclasses
import importlib
import json
import math
import pathlib
import shutil
from unittest import mock

from etils import epath
import ml_collections
import pytest

from experiments import ppo
from experiments.studies import runs as study_runs
from rlhf_jax import config as config_lib
from rlhf_jax import datasets, ending, exits, pipeline
from rlhf_jax.evals import results
from rlhf_jax.evals.suite import LeftOut, Result
from rlhf_jax.studies import driver, measuring, policies, registry
from rlhf_jax.studies import results as results_lib
from rlhf_jax.studies.study import Study, Table
from tests import tiny_run

TAKEN = ("pretrain", "sft", "collect", "rm", "rl_init")
FILES = [path.stem for path in sorted(pathlib.Path(
    study_runs.__file__).parent.glob("*.py"))
         if path.stem not in ("__init__", "runs")]


def tiny_study():
  """The base run as `main`, and PPO without pretraining gradients."""
  plain = ppo.get_config()
  tiny_run.shrink(plain)
  plain.stages = ("pretrain", "sft", "rl_init", "rm", "ppo")
  main = tiny_run.base().config.copy_and_resolve_references()
  return study_runs.study("tiny", {
      "plain": study_runs.taking(plain, "main", *TAKEN), "main": main})


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory):
  """Seed 0 of the tiny study, of which the base run is a part."""
  workdir = epath.Path(tmp_path_factory.mktemp("studies"))
  shutil.copytree(tiny_run.base().workdir, workdir / "seed0" / "main")
  read_rows = datasets.read_rows
  prepared = []

  def noted(config, world, kind, *args):
    prepared.append(kind)  # when the first row is asked for
    yield from read_rows(config, world, kind, *args)

  tiny_run.keep_compiled()
  with mock.patch.object(datasets, "read_rows", noted):
    driver.run_all(tiny_study(), workdir, 0)
  (workdir / "prepared.json").write_text(json.dumps(prepared))
  return workdir


def test_takes_stages_of_the_same_seed(workdir):
  config = pipeline.config_of(workdir / "seed0" / "plain")
  assert config.inputs.sft == str(workdir / "seed0" / "main" / "sft")
  assert config.seed == 0
  assert not (workdir / "seed0" / "plain" / "sft").exists()
  assert (workdir / "seed0" / "plain" / "ppo" / "done.json").exists()
  other = driver.placed(tiny_study().runs.plain, workdir, 2)
  assert other.seed == 2
  assert other.inputs.rm == str(workdir / "seed2" / "main" / "rm")


def test_prepares_no_data_that_its_lender_has(workdir):
  assert json.loads((workdir / "prepared.json").read_text()) == []
  lent, own = (workdir / "seed0" / run / "data" / "prompts" / "report.json"
               for run in ("main", "plain"))
  assert lent.read_text() == own.read_text()


def test_data_of_other_settings_are_not_lent(tmp_path):
  study = tiny_study()
  study.runs.plain.smallworld.num_prompts += 1
  source = tmp_path / "main" / "data" / "prompts" / "report.json"
  source.parent.mkdir(parents=True)
  source.write_text("{}")
  driver.lend_data(study, "plain", epath.Path(tmp_path))
  assert not (tmp_path / "plain").exists()


def test_what_is_finished_is_not_run_again(workdir):
  with mock.patch.object(pipeline, "run_all") as run_all:
    driver.run_all(tiny_study(), workdir, 0)
    run_all.assert_not_called()
    driver.run_all(tiny_study(), workdir, 1)
  assert [call.args[1] for call in run_all.call_args_list] == [
      workdir / "seed1" / name for name in ("main", "plain")]


@pytest.fixture(name="again")
def _again(workdir, tmp_path):
  """A copy of what `plain` left but its data, to be changed."""
  shutil.copytree(
      workdir / "seed0" / "plain", tmp_path / "plain",
      ignore=shutil.ignore_patterns("data", "checkpoints", "tensorboard"))
  return epath.Path(tmp_path / "plain")


def test_a_run_that_lost_a_stage_is_not_finished(workdir, again):
  """As one that was interrupted in its second time, whose config is new and
  whose summary is of the first."""
  config = driver.placed(tiny_study().runs.plain, workdir, 0)
  assert driver.is_finished(config, again)
  (again / "ppo" / "done.json").unlink()
  assert not driver.is_finished(config, again)


def test_a_run_whose_stage_has_other_settings_is_not_finished(workdir, again):
  study = tiny_study()
  study.runs.plain.ppo.method.kl_coef = 0.7
  config = driver.placed(study.runs.plain, workdir, 0)
  (again / "config.json").write_text(json.dumps(config.to_dict()))
  assert not driver.is_finished(config, again)


def test_a_finished_run_with_other_settings_is_refused(workdir):
  study = tiny_study()
  study.runs.plain.ppo.method.kl_coef = 0.7
  with pytest.raises(pipeline.WorkdirError, match="kl_coef: 0.1 -> 0.7"):
    driver.run_all(study, workdir, 0)


def test_a_seed_is_measured_once_for_the_same_settings(workdir):
  measure = mock.Mock(side_effect=lambda runs: iter([Result(
      "main", "sft", "gold", results.row(
          "gold", {"mean": len(runs), "low": 1.0, "high": 3.0, "n": 5}))]))
  of = Study("?", measure, lambda rows: [], lambda rows, figure: None, {})
  study = tiny_study()
  driver.measure(study, of, workdir, 0)
  driver.measure(study, of, workdir, 0)
  assert measure.call_count == 1
  assert set(measure.call_args.args[0]) == {"main", "plain"}
  rows = driver.measured(study, of, workdir)
  assert rows[0] == {
      "seed": 0, "run": "main", "policy": "sft", "task": "gold",
      "name": "gold", "mean": 2.0, "low": 1.0, "high": 3.0, "n": 5}
  own = {(row["run"], row["policy"]) for row in rows if row["task"] == "stage"}
  assert ("plain", "ppo") in own and ("main", "sft") in own
  assert ("plain", "sft") not in own  # it took it
  study.seeds = (0, 1)  # no reason to measure anew
  driver.measure(study, of, workdir, 0)
  assert measure.call_count == 1
  study.runs.plain.ppo.method.kl_coef = 0.7
  assert not driver.measured(study, of, workdir)


@pytest.fixture(name="remade")
def _remade(workdir, tmp_path):
  """A copy of the runs, without what measuring here does not read; a study that
  counts how often it measures."""
  shutil.copytree(
      workdir / "seed0", tmp_path / "seed0",
      ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
  measure = mock.Mock(side_effect=lambda runs: iter(()))
  of = Study("?", measure, lambda rows: [], lambda rows, figure: None,
             {"num_prompts": 16})
  driver.measure(tiny_study(), of, epath.Path(tmp_path), 0)
  assert driver.measured(tiny_study(), of, epath.Path(tmp_path))
  return of, epath.Path(tmp_path)


def test_a_seed_whose_stage_was_made_again_is_measured_again(remade, capsys):
  of, workdir = remade
  path = workdir / "seed0" / "plain" / "ppo" / "done.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1.0}))
  assert not driver.measured(tiny_study(), of, workdir)
  assert ("seed0.json is left out: plain/ppo was made again since; --seeds=0 "
          "measures it anew") in capsys.readouterr().out
  driver.measure(tiny_study(), of, workdir, 0)
  assert of.measure.call_count == 2
  assert driver.measured(tiny_study(), of, workdir)


def test_a_seed_of_other_measuring_is_measured_again(remade, capsys):
  of, workdir = remade
  other = dataclasses.replace(of, settings={"num_prompts": 512})
  assert not driver.measured(tiny_study(), other, workdir)
  assert "(measured_by.num_prompts: 16 -> 512)" in capsys.readouterr().out
  driver.measure(tiny_study(), other, workdir, 0)
  assert of.measure.call_count == 2


def test_a_stage_that_is_gone_is_no_reason_to_leave_a_seed_out(remade):
  of, workdir = remade
  (workdir / "seed0" / "plain" / "ppo" / "done.json").unlink()
  assert driver.measured(tiny_study(), of, workdir)


def test_the_digest_is_of_all_that_a_figure_depends_on(remade):
  of, _ = remade
  study, first = tiny_study(), driver.digest(tiny_study(), of)
  study.seeds = (7,)
  study.runs.plain.ppo.every_log_steps = 7  # no result depends on it
  assert driver.digest(study, of) == first
  other = dataclasses.replace(of, settings={"num_prompts": 512})
  assert driver.digest(study, other) != first
  study.runs.plain.ppo.method.kl_coef = 0.7
  assert driver.digest(study, of) != first


def test_studies_that_measure_say_by_what():
  for name, of in registry.STUDIES.items():
    assert bool(of.settings) == (name != "reward_models")


def test_measures_draws_and_writes(workdir):
  study, name = tiny_study(), "alignment_tax"
  study.name, of = name, registry.find(name)
  with mock.patch.object(measuring, "NUM_PROMPTS", 16):
    driver.measure(study, of, workdir, 0)
  rows = driver.measured(study, of, workdir)
  ours = {(row["run"], row["policy"]) for row in rows if row["task"] == "gold"}
  assert ("plain", "ppo") in ours and ("main", "sft") in ours
  assert ("plain", "sft") not in ours  # measured where it was made
  results_lib.write(of, rows, workdir / name, driver.digest(study, of))
  for file in ("rows.csv", "tables.md", "figure.svg"):
    assert (workdir / name / file).stat().length > 500


def test_policies_of_several_runs_before_one_judge(workdir):
  members = {"SFT": ("main", "sft"), "PPO": ("plain", "ppo")}
  runs = {name: pipeline.open_run(workdir / "seed0" / name)
          for name in ("main", "plain")}
  said = {}
  with mock.patch.object(measuring, "NUM_PROMPTS", 16):
    rows = list(policies.measure(
        runs, (policies.Family("tiny", members),), ("rating", "gold"), said))
  assert {(row.run, row.policy) for row in rows} == set(members.values())
  assert set(said) == set(members.values())
  won, = policies.win_rates(runs["main"], said, members["SFT"])
  assert (won.run, won.policy, won.row.n) == ("plain", "ppo", 16)
  assert 0 <= won.row.mean <= 1


@pytest.mark.parametrize("source", ["other/sft", "main/rm@2", "main"])
def test_refuses_to_take_what_is_not_there(source):
  study = tiny_study()
  study.runs.plain.inputs.sft = source
  with pytest.raises(config_lib.ConfigError, match=source):
    driver.validate(study)


def test_names_the_run_that_is_wrong():
  study = tiny_study()
  study.runs.plain.ppo.batch_size = 0
  with pytest.raises(config_lib.ConfigError, match="runs.plain"):
    driver.validate(study)
  with pytest.raises(config_lib.ConfigError, match="no study"):
    driver.validate(tiny_run.base().config)


@pytest.mark.parametrize("name", FILES)
def test_studies_are_ready_to_run(name):
  study = importlib.import_module(f"experiments.studies.{name}").get_config()
  assert study.name == name
  assert registry.find(name)
  for run in study.runs.values():
    config_lib.validate(run, 1, check_inputs=False)
  placed = driver.order(study)
  for run in study.runs:
    for source in driver.taken(study.runs[run]).values():
      assert placed.index(source.partition("/")[0]) < placed.index(run)


def test_runs_of_the_same_name_are_the_same_in_all_studies():
  seen = {}
  for name in FILES:
    study = importlib.import_module(
        f"experiments.studies.{name}").get_config()
    for run, config in study.runs.items():
      assert seen.setdefault(run, config.to_dict()) == config.to_dict(), run


def test_seeds():
  study = ml_collections.ConfigDict(dict(seeds=(0, 1, 2)))
  assert driver.seeds_of(study, None) == [0, 1, 2]
  assert driver.seeds_of(study, ["2", "0"]) == [2, 0]
  with pytest.raises(config_lib.ConfigError, match="'3' is none of"):
    driver.seeds_of(study, ["1", "3"])
  with pytest.raises(config_lib.ConfigError, match=(
      r"--seeds= names no seed; name some of config.seeds = \(0, 1, 2\), or")):
    driver.seeds_of(study, [])
  study.seeds = ()
  with pytest.raises(
      config_lib.ConfigError, match=r"config.seeds = \(\) is empty; name one"):
    driver.seeds_of(study, None)


def test_what_cannot_be_measured_ends_in_one_message(capsys):
  with pytest.raises(SystemExit) as stopped, ending.one_message():
    raise LeftOut("runs/a has no prepared prompts")
  assert stopped.value.code == exits.REFUSED
  assert capsys.readouterr().err == (
      "\nerror: runs/a has no prepared prompts\n")


def test_results_are_files(tmp_path):
  rows = [{"seed": seed, "run": "main", "policy": "ppo", "task": task,
           "name": name, "mean": mean, "low": None, "high": None, "n": 1}
          for seed in (0, 1)
          for task, name, mean in (("gold", "gold", 0.25),
                                   ("stage", "seconds", 90.0))]

  def draw(rows, figure):
    figure.subplots().plot([row["mean"] for row in rows])

  of = Study("Is it so?", None, lambda rows: [
      Table("Gold", ("policy", "gold"), [("ppo", rows[0]["mean"])])], draw, {})
  folder = epath.Path(tmp_path)
  results_lib.write(of, rows, folder, "5e7")
  assert json.loads((folder / "rows.json").read_text()) == {"settings": "5e7"}
  lines = (folder / "rows.csv").read_text().splitlines()
  assert lines[0] == "seed,run,policy,task,name,mean,low,high,n"
  assert lines[1] == "0,main,ppo,gold,gold,0.25,,,1"
  tables = (folder / "tables.md").read_text()
  assert tables.startswith("# Is it so?") and "0.250" in tables
  assert "| main  | 1.5" in tables  # minutes
  picture = (folder / "figure.svg").read_text()
  results_lib.write(of, rows, folder, "5e7")
  assert (folder / "figure.svg").read_text() == picture


def test_a_mean_over_seeds_leaves_out_those_without_a_figure():
  rows = [{"seed": seed, "task": "t", "name": "n", "mean": mean}
          for seed, mean in ((0, 1.0), (1, None), (2, 2.0))]
  assert measuring.values(rows, task="t") == {0: 1.0, 2: 2.0}
  assert measuring.value(rows, task="t") == 1.5
  assert math.isnan(measuring.value(rows, task="other"))
  assert measuring.spread(rows, 1, task="t") == "1.5 (1.0 to 2.0)"
  assert measuring.spread(rows, 1, task="other") == "-"
