"""Measures the policies of finished runs.

  python -m rlhf_jax.evaluate --workdir=DIR[,DIR...]
      [--suite=paper|run|all|NAME|FAMILY:FILE[,...]] [--data.root=FOLDER]
      [--policies=STAGE[+prompted][,...]] [--judge=labelers|STAGE]
      [--out=FOLDER]

Writes TASK.jsonl, a figure a line with its 95 % interval, into DIR/evaluations
(or FOLDER), and prints tables; what it leaves out it names, with the reason.
docs/evaluations.md has all evaluators and their files.
"""

from rlhf_jax import host_memory, usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)
  host_memory.restart_with_large_pages()

# pylint: disable=wrong-import-position
import os
import re

from absl import app
from absl import flags
from absl import logging
from etils import epath
import tabulate

from rlhf_jax import (
    checkpoint, compilation, config as config_lib, distributed, metrics,
    pipeline, storage,
)
from rlhf_jax.data.records import DataError
from rlhf_jax.evals import registry, results, suite
from rlhf_jax.run import Run

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folders of runs, with commas between them.",
    allow_override=True)
_SUITE = flags.DEFINE_list(
    "suite", "paper", "Suites (paper, run, all), evaluators, or FAMILY:FILE.")
_ROOT = flags.DEFINE_string(
    "data.root", "", "The folder where the files of benchmarks lie.")
_OUT = flags.DEFINE_string(
    "out", None, "Where results are written; by default evaluations/ in each "
    "run's folder.", allow_override=True)
_POLICIES = flags.DEFINE_list(
    "policies", "", "Stages, also as STAGE+prompted, behind a few-shot prefix; "
    "by default those of the run's own evaluation.")
_BASELINE = flags.DEFINE_string(
    "baseline", "", "Win rates are against it; by default that of the run's "
    "own evaluation, or sft.")
_KL_REFERENCE = flags.DEFINE_string(
    "kl_reference", "", "The KL is to it; by default that of the run's own "
    "evaluation, or rl_init.")
_JUDGE = flags.DEFINE_string(
    "judge", "", "labelers, or a reward model of the first run that no policy "
    "was optimised for; by default that of the run's own evaluation.")
_NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts", 512, "Held-out prompts that are responded to.",
    lower_bound=1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Of the responses to held-out prompts.",
    lower_bound=0.0, allow_override=True)
_LIMIT = flags.DEFINE_integer(
    "limit", None, "Items of a benchmark, evenly spaced in its file; by "
    "default all.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Rows of a compiled batch; by default as in the run's "
    "own evaluation, or 32.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the responses; 0 gives those of the stage evaluate.",
    allow_override=True)

_REFUSED = (checkpoint.CheckpointError, config_lib.ConfigError, DataError,
            registry.LeftOut, storage.StorageError)


def workdirs_of(text: str) -> list[str]:
  """The folders that --workdir names.

  Raises:
    CheckpointError: it names none.
  """
  workdirs = [folder for folder in text.split(",") if folder]
  if not workdirs:
    raise checkpoint.CheckpointError(
        f"--workdir={text} names no folder; name those of finished runs, with "
        "commas between them")
  return workdirs


def open_runs(workdirs: list[str]) -> dict[str, Run]:
  """The runs by their folders, as they were named.

  Raises:
    CheckpointError: one is none, or named twice.
    StorageError: it cannot be used.
  """
  for folder in workdirs:
    storage.check(folder, "--workdir", is_written=False)
  folders = [os.path.abspath(folder) for folder in workdirs]
  if len(set(folders)) < len(folders):
    raise checkpoint.CheckpointError(
        f"--workdir={','.join(workdirs)} names a folder twice; name it once")
  return {folder: pipeline.open_run(epath.Path(folder))
          for folder in workdirs}


def out_folders(workdirs: list[str], out: str | None) -> dict[str, epath.Path]:
  """Run -> where its results go.

  Raises:
    StorageError: nothing can be written there.
  """
  folders = {folder: epath.Path(out) if out else
             epath.Path(folder) / "evaluations" for folder in workdirs}
  for folder in set(folders.values()):
    storage.check(folder, "--out", is_written=True)
  return folders


def options_of_flags() -> suite.Options:
  return suite.Options(
      policies=tuple(_POLICIES.value), baseline=_BASELINE.value,
      reference=_KL_REFERENCE.value, judge=_JUDGE.value,
      batch_size=_BATCH_SIZE.value, num_prompts=_NUM_PROMPTS.value,
      temperature=_TEMPERATURE.value, limit=_LIMIT.value, seed=_SEED.value)


def save(report: suite.Report, folders: dict[str, epath.Path]) -> None:
  """A file a task in each run's folder; `elo`, which is of all policies
  together, whole in each."""
  for folder in dict.fromkeys(folders.values()):
    here = [run for run, of in folders.items() if of == folder]
    by_task: dict[str, list] = {}
    for result in report.results:
      if result.run in here or result.task == "elo":
        by_task.setdefault(result.task, []).append(result.as_json())
    for task, rows in by_task.items():
      checkpoint.write_lines(folder / f"{file_name(task)}.jsonl", rows)
    checkpoint.write_json(folder / "left_out.json", report.left_out)
    if prefixes := [{"run": run, "policy": policy, "prefix": prefix}
                    for (run, policy), prefix in report.prefixes.items()
                    if run in here]:
      checkpoint.write_json(folder / "prefixes.json", prefixes)


def file_name(task: str) -> str:
  """FAMILY:PATH as a file may be called."""
  return re.sub(r"[^\w.-]+", "_", task)


def format_report(report: suite.Report) -> str:
  """A table a task, and what was left out."""
  parts = []
  measured = dict.fromkeys(result.task for result in report.results)
  tasks = dict.fromkeys(
      (*(name for name in registry.EVALUATORS if name in measured), *measured))
  labels = run_labels([result.run for result in report.results])
  for task in tasks:
    columns: dict[str, dict[str, results.Row]] = {}
    for result in report.results:
      if result.task == task:
        column = f"{labels[result.run]}{result.policy}"
        columns.setdefault(column, {})[result.row.name] = result.row
    about = registry.EVALUATORS.get(task)
    parts.append(f"{task}{f': {about.about}' if about else ''}\n"
                 + results.format_table(columns))
  if report.left_out:
    parts.append(tabulate.tabulate(
        report.left_out.items(), headers=("left out", "why"),
        disable_numparse=True))
  return "\n\n".join(parts)


def run_labels(runs: list[str]) -> dict[str, str]:
  """What stands before a policy's name: nothing where there is one run, else
  the run's folder without what all have alike."""
  runs = list(dict.fromkeys(runs))
  if len(runs) < 2:
    return dict.fromkeys(runs, "")
  shared = os.path.commonpath([os.path.abspath(run) for run in runs])
  return {run: f"{os.path.relpath(os.path.abspath(run), shared)}:"
          for run in runs}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  try:
    workdirs = workdirs_of(_WORKDIR.value)
    folders = out_folders(workdirs, _OUT.value)
    compilation.enable_compilation_cache(
        epath.Path(_OUT.value or workdirs[0]))
    runs = open_runs(workdirs)
    tasks, left_out = suite.prepare(
        _SUITE.value, _ROOT.value, _LIMIT.value)
    measurement = suite.Measurement(
        runs, tasks, left_out, options_of_flags())
    for report in measurement.measure():
      save(report, folders)  # what there is so far
  except _REFUSED as error:
    distributed.refuse(str(error))
  metrics.say(format_report(report))
  metrics.say("\nwritten: " + ", ".join(
      f"{folder}/*.jsonl" for folder in dict.fromkeys(folders.values())))


if __name__ == "__main__":
  usage.run(main, required=["workdir"])
