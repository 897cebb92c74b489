"""A run is a list of stages: order, skip, resume, refuse, summary."""

from collections.abc import Callable
import importlib.metadata
import json
import platform
import resource
import time
from typing import Any

from etils import epath
import jax
import ml_collections
import tabulate

from rlhf_jax import (
    checkpoint, collect, config as config_lib, datasets, metrics, sharding,
    streams,
)
from rlhf_jax.evals import stage as evaluate
from rlhf_jax.run import Run
from rlhf_jax.trainers import lm, ppo, rm

STAGES: dict[str, Callable[[Run, str], dict[str, Any]]] = {
    "pretrain": lm.train,
    "sft": lm.train,
    "rl_init": lm.train,
    "collect": collect.run_stage,
    "rm": rm.train,
    "judge": rm.train,
    "ppo": ppo.train,
    "evaluate": evaluate.run_stage,
}
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain",
             "tensorflow-datasets", "tokenizers", "numpy")


class WorkdirError(RuntimeError):
  """The workdir belongs to another run."""


def run_all(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
  """Runs the stages of `config` that are not finished in `workdir`.

  Raises:
    config.ConfigError: the config contradicts itself or the devices.
    WorkdirError: a stage was begun with other settings.
    DataError: bad data.
  """
  started = time.monotonic()
  workdir = epath.Path(workdir)
  config_lib.validate(config, jax.device_count(), jax.process_count())
  check_workdir(config, workdir)
  run = make_run(config, workdir)
  check_inputs(run)
  check_results(run)
  print(describe(run), flush=True)
  prepare_first_data(run)
  # the last that can be refused is done, so an older one may go
  checkpoint.write_json(workdir / "config.json", config.to_dict())
  for stage in config.stages:
    run_stage(run, stage)
  run.writer.close()
  summary = summarise(run, time.monotonic() - started)
  checkpoint.write_json(workdir / "summary.json", summary)
  print(format_summary(run, summary), flush=True)


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
  return (
      f"{run.config.name}: {', '.join(run.config.stages)}\n"
      f"policy {policy.num_params:,} parameters, "
      f"{jax.device_count()} {jax.devices()[0].platform} device(s), "
      f"mesh {dict(run.mesh.shape)}\nworkdir {run.workdir}\n")


def check_workdir(config, workdir: epath.Path) -> None:
  """Refuses stages that were begun with other settings.

  Raises:
    WorkdirError: names the stage and each key that differs; or the folder's
      own name cannot stand in a list of files.
  """
  for folder in (str(workdir), config.inputs.get("collect", "")):
    if "," in folder:
      raise WorkdirError(
          f"{folder!r} has a comma, which would cut its path in two where "
          "comparisons are read; use another name.")
  for stage in config.stages:
    path = workdir / stage / "settings.json"
    if not path.exists():
      continue
    changes = config_lib.differing(
        json.loads(path.read_text()), config_lib.stage_keys(config, stage))
    if changes:
      raise WorkdirError(
          f"{workdir / stage} was begun with other settings:\n  "
          + "\n  ".join(changes)
          + "\nSet them back, use another --workdir, or remove that folder "
          "and those of the stages after it.")


def check_inputs(run: Run) -> None:
  """Stages taken from another run must have used the same tokenizer.

  Raises:
    WorkdirError: such a stage is unfinished, or had another vocabulary.
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
      if kind_of(source) == "collect":
        left = directory / "comparisons.jsonl"
        is_there = left.exists()
      if checkpoint.read_done(directory) and not is_there:
        raise checkpoint.CheckpointError(
            f"{left} is gone, and {stage!r} needs it: bring it back, remove "
            f"{directory} so that {source!r} runs again, or set "
            f"config.inputs.{source} to the folder of a finished one.")


def unfinished(run: Run) -> list[str]:
  """The stages that are still to be run here."""
  return [
      stage for stage in run.config.stages
      if stage not in given_inputs(run.config)
      and not checkpoint.read_done(run.stage_dir(stage))
  ]


def given_inputs(config) -> list[str]:
  """The stages that are taken from other runs."""
  return [stage for stage, folder in config.inputs.items() if folder]


def prepare_first_data(run: Run) -> None:
  """All data that does not come out of a stage, before any training."""
  kinds = {
      kind for stage in run.config.stages for kind in reads(stage)
      if run.config.data[kind] != "collect"
  }
  datasets.prepare_for(run, tuple(sorted(kinds)))
  if "comparisons" in kinds:
    for stage in unfinished(run):
      if STAGES[kind_of(stage)] is rm.train:
        streams.training_comparisons(run, stage)  # refuses what it cannot use


def reads(stage: str) -> tuple[str, ...]:
  return datasets.READS[kind_of(stage)]


def kind_of(stage: str) -> str:
  """"ppo@2" is a second stage of the kind "ppo"."""
  return stage.partition("@")[0]


def run_stage(run: Run, stage: str) -> None:
  """Runs one stage unless it is finished or another run's is used."""
  if stage in given_inputs(run.config):
    print(f"{stage}: taken from {run.stage_dir(stage)}", flush=True)
    return
  directory = run.workdir / stage
  if checkpoint.read_done(directory):
    print(f"{stage}: finished before", flush=True)
    return
  started = time.monotonic()
  checkpoint.write_json(
      directory / "settings.json", config_lib.stage_keys(run.config, stage))
  datasets.prepare_for(run, reads(stage))
  figures = STAGES[kind_of(stage)](run, stage)
  checkpoint.write_done(directory, {
      "stage": stage,
      "seconds": round(time.monotonic() - started, 2),
      "tokenizer": run.tokenizer.digest,
      "figures": figures,
  })
  datasets.barrier(f"done {stage}")


def summarise(run: Run, seconds: float) -> dict[str, Any]:
  """The run's headline figures from what its stages left."""
  done = {
      stage: checkpoint.read_done(run.stage_dir(stage))
      for stage in run.config.stages
  }
  summary = {
      "name": run.config.name,
      "stages": {
          name: {"seconds": content["seconds"]}
          | ({} if kind_of(name) == "evaluate" else content["figures"])
          for name, content in done.items()
      },
      "seconds": round(sum(d["seconds"] for d in done.values()), 1),
      "seconds_this_call": round(seconds, 1),
      "peak_rss_mb": round(
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
      "devices": {"count": jax.device_count(),
                  "platform": jax.devices()[0].platform,
                  "mesh": dict(run.mesh.shape)},
      "seed": run.config.seed,
      "versions": {"python": platform.python_version()}
      | {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
  for content in done.values():
    if kind_of(content["stage"]) == "evaluate":
      summary |= content["figures"]
    if kind_of(content["stage"]) == "collect":
      figures = content["figures"]
      summary["labelers"] = {
          "agreement": figures["agreement_train"],
          "agreement_heldout": figures["agreement_heldout"],
          "agreement_between": figures["agreement_between"]}
  return summary


def format_summary(run: Run, summary: dict[str, Any]) -> str:
  """The table at the end of a run, and where its files are."""
  rows = []
  for name, content in summary["stages"].items():
    shown = ", ".join(
        f"{key} {value:.4g}" for key, value in content.items()
        if key != "seconds" and isinstance(value, (int, float))
        and not key.endswith(("_pairs", "_sd")))
    rows.append((name, f"{content['seconds']:.0f} s", shown[:90]))
  parts = [tabulate.tabulate(rows, headers=("stage", "time", "figures"))]
  figures = summary.get("eval")
  if figures:
    parts.append(format_policies(figures))
    if "win_rate_vs_sft" in figures:
      rate = figures["win_rate_vs_sft"]
      parts.append(
          f"{run.config.evaluate.policies[-1]} is preferred to "
          f"{run.config.evaluate.baseline}: {interval(rate, percent=True)} "
          f"of {rate['n']} held-out prompts (95 % interval, ties half)")
  files = ("config.json", "metrics.jsonl", "tensorboard", "samples.jsonl",
           "summary.json")
  present = [str(run.workdir / f) for f in files
             if (run.workdir / f).exists() or f == "summary.json"]
  parts.append(
      f"{summary['seconds']:.0f} s in all, peak memory "
      f"{summary['peak_rss_mb']:.0f} MB\nwritten: " + "\n         ".join(
          present))
  return "\n" + "\n\n".join(parts)


def format_policies(figures: dict[str, Any]) -> str:
  """One line a policy."""
  rows = []
  for name in figures["score"]:
    row = {"policy": name}
    if "gold_score" in figures:
      row["gold score"] = interval(figures["gold_score_intervals"][name])
    row["rm score"] = interval(figures["score_intervals"][name])
    row["win rate"] = (
        interval(figures["win_rate"][name], percent=True)
        if name in figures["win_rate"] else "-")
    row["KL"] = f"{figures['kl'][name]:.2f}"
    row["pretrain loss"] = f"{figures['pretrain_loss'][name]:.4f}"
    row["tokens"] = f"{figures['response_length'][name]:.1f}"
    row["ended"] = f"{100 * figures['ended'][name]:.0f} %"
    rows.append(row)
  return tabulate.tabulate(rows, headers="keys", disable_numparse=True)


def interval(value: dict[str, float], percent: bool = False) -> str:
  scale, unit = (100, " %") if percent else (1, "")
  digits = 1 if percent else 3
  half = (value["high"] - value["low"]) / 2
  return f"{scale * value['mean']:.{digits}f} ± {scale * half:.{digits}f}{unit}"
