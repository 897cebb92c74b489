"""A run is a list of stages: order, skip, resume, refuse, summary."""

from collections.abc import Callable, Iterator
import contextlib
import json
import sys
import time
from typing import Any

from etils import epath
import jax
import ml_collections

from rlhf_jax import (
    checkpoint, collect, compilation, config as config_lib, datasets,
    distributed, faults, guards, handoff, interruption, lock, metrics,
    profiling, sharding, storage, streams, summaries,
)
from rlhf_jax.data.records import DataError
from rlhf_jax.evals import stage as evaluate
from rlhf_jax.report import page
from rlhf_jax.run import Run
from rlhf_jax.trainers import lm, ppo, rm, select

STAGES: dict[str, Callable[[Run, str], dict[str, Any]]] = {
    "pretrain": lm.train,
    "sft": lm.train,
    "rl_init": lm.train,
    "collect": collect.run_stage,
    "rm": rm.train,
    "judge": rm.train,
    "sft_select": select.run_stage,
    "ppo": ppo.train,
    "evaluate": evaluate.run_stage,
}
# Of how a run ends, those after which somebody looks at it.
_FOR_A_PERSON = (guards.GuardError, handoff.WaitingForPeople)


class WorkdirError(RuntimeError):
  """The workdir belongs to another run."""


def run_all(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
  """Runs the stages of `config` that are not finished in `workdir`.

  From Python as from the command line: the config stays as it is, Ctrl-C saves
  and ends at the next step, and the same call goes on.

  Raises:
    FolderError: config.init names no checkpoint that can be read.
    config.ConfigError: the config contradicts itself or the devices.
    WorkdirError: a stage was begun with other settings.
    DataError: bad data.
    Interrupted: it was asked to end (see `interruption`).
    LockError: another run has the workdir.
    StorageError: the workdir cannot be used, or not any more.
  """
  storage.check(workdir, "--workdir", is_written=True)
  workdir = epath.Path(workdir)
  config, news = config_lib.with_imported(config)
  config_lib.validate(
      config, jax.device_count(),
      slice_count=sharding.slice_count(jax.devices()),
      platform=jax.default_backend())
  if news:
    metrics.say("\n".join(news))
  with (storage_faults(config, workdir), alone(workdir),
        interruption.heeded()):
    run_stages(config, workdir)


def alone(workdir: epath.Path) -> contextlib.AbstractContextManager[None]:
  """No other run has the workdir meanwhile; process 0 sees to it for all."""
  if jax.process_index() != 0:
    return contextlib.nullcontext()
  return lock.held(workdir, on_lost=distributed.refuse_at_once)


@contextlib.contextmanager
def storage_faults(config, workdir: epath.Path) -> Iterator[None]:
  """A disk that is full, a bucket that is silent: one message for all of it.

  Raises:
    StorageError: in the place of such an error, wherever it was raised.
  """
  try:
    yield
  except Exception as error:
    fault = faults.explain(error)
    if fault is None:
      raise
    raise storage.StorageError(
        f"{fault.path or workdir}: {fault.cause}.\n{kept(config, workdir)}\n"
        f"The way out: {fault.way_out}; then give the same command again, and "
        "the run goes on.") from error


def kept(config, workdir: epath.Path) -> str:
  """What a run that failed has, in words, as far as that can be read."""
  try:
    done = [stage for stage in config.stages
            if checkpoint.read_done(workdir / stage)]
    steps = [
        (stage, int(path.name)) for stage in config.stages
        if stage not in done
        for path in checkpoint.step_folders(workdir / stage / "checkpoints")]
  except Exception as error:  # the same failure, most likely
    return (f"What was saved is kept, but cannot be looked at now ({error}).")
  stages = f"finished stages ({', '.join(done) or 'none'})"
  if not steps:
    return f"Kept: {stages}; no checkpoint of another."
  stage, step = max(steps, key=lambda found: found[1])
  return f"Kept: {stages}, and {stage!r} up to its checkpoint of step {step}."


def run_stages(config, workdir: epath.Path) -> None:
  """All that `run_all` does once it has the workdir for itself."""
  started = time.monotonic()
  check_workdir(config, workdir)
  run = make_run(config, workdir)
  check_inputs(run)
  check_results(run)
  metrics.say(describe(run))
  prepare_first_data(run)
  # the last that can be refused is done, so what is older may go
  if unfinished(run):
    forget_summary(workdir)
  checkpoint.write_json(workdir / "config.json", config.to_dict())
  try:
    for stage in config.stages:
      interruption.check(stage)
      run_stage(run, stage)
  except BaseException as error:
    run.writer.close(is_failing=True)
    if isinstance(error, _FOR_A_PERSON):
      leave_report(workdir, is_failing=True)
    raise
  run.writer.close()
  summary = summaries.summarise(run, time.monotonic() - started)
  checkpoint.write_json(workdir / "summary.json", summary)
  leave_report(workdir)
  metrics.say(summaries.format_summary(run, summary))


def forget_summary(workdir: epath.Path) -> None:
  """Removes that of an earlier finish: a run with stages to come has none, for
  its figures would be shown as those of the settings that it has now."""
  if jax.process_index() == 0:
    storage.remove(workdir / "summary.json")


def leave_report(workdir: epath.Path, *, is_failing: bool = False) -> None:
  """Writes report.html, once for all processes; an error already on its way is
  not hidden by one of the report."""
  if jax.process_index() != 0:
    return
  try:
    page.write([workdir], workdir / page.NAME)
  except Exception as error:
    if not is_failing:
      raise
    print(f"\nwarning: {workdir / page.NAME} is not written: {error}",
          file=sys.stderr, flush=True)


def config_of(workdir: epath.Path) -> ml_collections.ConfigDict:
  """The experiment of a run.

  Raises:
    CheckpointError: there is no run, or one of another version.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise checkpoint.CheckpointError(
        f"{path} does not exist: --workdir must be the folder of a run.")
  config = ml_collections.ConfigDict(json.loads(path.read_text()))
  if errors := config_lib.unknown_keys(config):
    raise checkpoint.CheckpointError(
        f"{path} was written by another version of this package: "
        f"{errors[0].partition(';')[0]}. Read the run with that version, or "
        "run the experiment anew in another --workdir.")
  return config


def open_run(workdir: epath.PathLike) -> Run:
  """The run of a workdir, to be read, on the devices of this process.

  Raises:
    CheckpointError: there is no run.
  """
  workdir = epath.Path(workdir)
  config = config_of(workdir)
  config.mesh = dict(data=jax.device_count(), fsdp=1, tensor=1)
  return make_run(config, workdir)


def choose_step(run: Run, stage: str, step: int | None) -> int:
  """The checkpoint asked for, or the one that a finished stage gave.

  Raises:
    CheckpointError: names the steps that are kept.
  """
  with checkpoint.Reader(run.stage_dir(stage) / "checkpoints") as saved:
    steps = saved.steps
  if step is None:
    figures = checkpoint.read_done(run.stage_dir(stage))["figures"]
    step = figures.get("selected_step", steps[-1] if steps else None)
  if step not in steps:
    raise checkpoint.CheckpointError(
        f"--step={step}: the checkpoints kept of {stage!r} are those of the "
        f"steps {', '.join(map(str, steps))}")
  return step


def make_run(config, workdir: epath.Path) -> Run:
  """Mesh, Smallworld, tokenizer, writer."""
  mesh = sharding.make_mesh(**config.mesh)
  world = datasets.make_world(config)
  return Run(
      config=config, workdir=workdir, mesh=mesh,
      tokenizer=datasets.make_tokenizer(config, workdir, world), world=world,
      writer=metrics.Writer(workdir))


def describe(run: Run) -> str:
  policy = run.policy().config
  filled = "".join(
      f"{key} = {rows} is filled up to {shards} rows, one a batch shard\n"
      for key, rows, shards in config_lib.filled_up(
          run.config.to_dict(), run.mesh.shape))
  kept: str | None = jax.config.jax_compilation_cache_dir  # type: ignore
  return (
      f"{run.config.name}: {', '.join(run.config.stages)}\n"
      f"policy {policy.num_params:,} parameters, "
      f"{jax.device_count()} {jax.devices()[0].platform} device(s), "
      f"mesh {dict(run.mesh.shape)}\n{filled}workdir {run.workdir}\n"
      f"compiled programs {kept or 'unkept'}\n")


def check_workdir(config, workdir: epath.Path) -> None:
  """Refuses stages that were begun with other settings.

  Raises:
    WorkdirError: names the stage and each key that differs; or the folder's
      own name cannot stand in a list of files.
  """
  folders = [folder for stage, folder in given_inputs(config).items()
             if config_lib.name_of(stage) == "collect"]
  for folder in (str(workdir), *folders):
    if "," in folder:
      raise WorkdirError(
          f"{folder!r} has a comma, which would cut its path in two where "
          "comparisons are read; use another name.")
  for stage in config.stages:
    if found := changes(config, workdir, stage):
      raise WorkdirError(
          f"{workdir / stage} was begun with other settings:\n  "
          + "\n  ".join(found)
          + "\nSet them back, use another --workdir, or remove that folder "
          "and those of the stages after it.")


def changes(config, workdir: epath.Path, stage: str) -> list[str]:
  """Of what a stage was begun with there, as `config.differing`; [] where it
  was not begun."""
  path = workdir / stage / "settings.json"
  return config_lib.differing(
      begun_with(path, config), config_lib.stage_keys(config, stage)
  ) if path.exists() else []


def is_all_done(config, workdir: epath.Path) -> bool:
  """Whether every stage that a run makes itself is finished there, with these
  settings."""
  return all(
      checkpoint.read_done(workdir / stage)
      and not changes(config, workdir, stage)
      for stage in own_stages(config))


def begun_with(path: epath.Path, config) -> dict[str, Any]:
  """The settings of a stage; who ranks its exported tasks is open until their
  ranks are taken in, for a refused file may come back by another name."""
  settings, stage = json.loads(path.read_text()), path.parent.name
  if config_lib.name_of(stage) == "collect" and (
      config_lib.asks_people(settings[stage]["labeler"])
      and config_lib.asks_people(config[stage]["labeler"])
      and not checkpoint.read_done(path.parent)):
    settings[stage] |= {
        name: config[stage][name] for name in ("labeler", "roster")}
  return settings


def check_inputs(run: Run) -> None:
  """Stages taken from another run must have used the same tokenizer, and SFT
  whose checkpoints are candidates must have kept them.

  Raises:
    WorkdirError: such a stage is unfinished, had another vocabulary, or kept
      no candidates.
  """
  for stage in given_inputs(run.config):
    done = checkpoint.read_done(run.stage_dir(stage))
    if done is None:
      raise WorkdirError(
          f"config.inputs.{stage}={run.stage_dir(stage)} has no done.json: "
          "that stage did not finish.")
    if done["tokenizer"] != run.tokenizer.digest:
      raise WorkdirError(
          f"config.inputs.{stage}={run.stage_dir(stage)} was made with "
          "another tokenizer; use the same config.data, or set "
          "--config.data.tokenizer to that run's data/tokenizer.json.")
  for stage in unfinished(run):
    if STAGES[config_lib.name_of(stage)] is select.run_stage:
      check_candidates(run, run.config[stage].candidates)


def check_candidates(run: Run, stage: str) -> None:
  """Raises a WorkdirError if another run's `stage` kept no candidates."""
  folder = given_inputs(run.config).get(stage)
  path = epath.Path(folder or "") / "settings.json"
  if folder and path.exists():
    selected_by = json.loads(path.read_text())[path.parent.name]["select"]
    if selected_by != "rm_score":
      raise WorkdirError(
          f"config.inputs.{stage}={folder} kept no candidates to select from: "
          f"its select was {selected_by!r}, not 'rm_score'.")


def check_results(run: Run) -> None:
  """What finished stages left must be there for those that still read it.

  Raises:
    CheckpointError: something was removed.
  """
  for stage in unfinished(run):
    for source in config_lib.read_by(run.config, stage):
      directory = run.stage_dir(source)
      left = directory / "checkpoints"
      is_there = checkpoint.exists(left)
      if config_lib.name_of(source) == "collect":
        left = directory / "comparisons.jsonl"
        is_there = left.exists()
      if checkpoint.read_done(directory) and not is_there:
        raise checkpoint.CheckpointError(
            f"{left} is gone, and {stage!r} needs it: bring it back, remove "
            f"{directory} so that {source!r} runs again, or set "
            f"config.inputs.{source} to the folder of a finished one.")


def unfinished(run: Run) -> list[str]:
  """The stages that are still to be run here."""
  return [stage for stage in own_stages(run.config)
          if not checkpoint.read_done(run.stage_dir(stage))]


def own_stages(config) -> list[str]:
  """The stages that a run makes itself."""
  given = given_inputs(config)
  return [stage for stage in config.stages if stage not in given]


def given_inputs(config) -> dict[str, str]:
  """The stages that are taken from other runs, with their folders."""
  return {stage: folder for stage, folder in config.inputs.items() if folder}


def prepare_first_data(run: Run) -> None:
  """All data that does not come out of a stage, before any training.

  Raises:
    DataError: bad rows, or a stage to come cannot use what there is.
  """
  kinds = {
      kind for stage in run.config.stages for kind in reads(stage)
      if run.config.data[kind] != "collect"
  }
  datasets.prepare_for(run, tuple(sorted(kinds)))
  if "demonstrations" in kinds:
    streams.training_mixture(run)  # refuses what it cannot use
  for stage in unfinished(run):
    runs = STAGES[config_lib.name_of(stage)]
    if runs is rm.train and "comparisons" in kinds:
      streams.training_comparisons(run, stage)  # refuses what it cannot use
    elif runs is evaluate.run_stage:
      for kind in sorted(kinds & set(reads(stage)) & set(datasets.HELD_OUT)):
        if reason := datasets.lacks(run, kind, stage):
          raise DataError(f"{reason}; or leave {stage!r} out of config.stages")


def reads(stage: str) -> tuple[str, ...]:
  return tuple(config_lib.READS[config_lib.name_of(stage)].split())


def run_stage(run: Run, stage: str) -> None:
  """Runs one stage unless it is finished or another run's is used."""
  if stage in given_inputs(run.config):
    metrics.say(f"{stage}: taken from {run.stage_dir(stage)}")
    return
  directory = run.workdir / stage
  if checkpoint.read_done(directory):
    metrics.say(f"{stage}: finished before")
    return
  started = time.monotonic()
  checkpoint.write_json(
      directory / "settings.json", config_lib.stage_keys(run.config, stage))
  datasets.prepare_for(run, reads(stage), stage)
  with (compilation.recorded() as compiled,
        profiling.of_stage(directory, run.config.profile)):
    figures = STAGES[config_lib.name_of(stage)](run, stage)
  run.writer.upload()
  checkpoint.write_json(directory / summaries.COMPILED, compiled.as_json())
  checkpoint.write_done(directory, {
      "stage": stage,
      "seconds": round(time.monotonic() - started, 2),
      "tokenizer": run.tokenizer.digest,
      "figures": figures,
  })
  distributed.barrier(f"done {stage}")
