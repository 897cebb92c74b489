"""Runs what a study needs, seed by seed, and measures each seed once.

  WORKDIR/seed0/RUN/...       its runs, shared by all studies of this workdir
  WORKDIR/NAME/seed0.json     what was measured on them

Whatever is finished is not done again: of a run its stages, of a seed its
measurement, so that an interrupted study goes on with the same command.
"""

from collections.abc import Iterator, Mapping
import graphlib
import hashlib
import json
from typing import Any

from etils import epath
import jax
import ml_collections

from rlhf_jax import checkpoint, config as config_lib, metrics, pipeline
from rlhf_jax.config import ConfigError
from rlhf_jax.run import Run
from rlhf_jax.studies.study import Row, Study

_KEYS = {"name", "seeds", "runs"}
_REPORT = "report.json"
# Of a run's data, what does not come out of its stages.
_SHARED_DATA = ("tokenizer.json", "tokenizer_config.json", "pretrain",
                "demonstrations", "prompts")


def validate(study: ml_collections.ConfigDict) -> None:
  """Checks all runs before the first starts.

  Raises:
    ConfigError: names the run and what is wrong with it.
  """
  if not isinstance(study.get("runs"), ml_collections.ConfigDict) or (
      set(study) != _KEYS):
    raise ConfigError(
        "--config is no study, which has a name, seeds and runs: name a file "
        "of experiments/studies/. An experiment is run by rlhf_jax.main.")
  for name in order(study):
    try:
      config_lib.validate(
          study.runs[name], jax.device_count(),
          platform=jax.default_backend(), check_inputs=False)
    except ConfigError as error:
      raise ConfigError(f"config.runs.{name}:\n{error}") from None


def seeds_of(study: ml_collections.ConfigDict, asked: list[str] | None
             ) -> list[int]:
  """The seeds to run.

  Raises:
    ConfigError: there is none, or one is none of the study's.
  """
  if not study.seeds:
    raise ConfigError(
        f"config.seeds = {tuple(study.seeds)} is empty; name one at least.")
  if asked is not None and not asked:
    raise ConfigError(
        "--seeds= names no seed; name some of config.seeds = "
        f"{tuple(study.seeds)}, or leave it out for all.")
  for seed in asked or ():
    if seed not in map(str, study.seeds):
      raise ConfigError(
          f"--seeds={','.join(asked)}: {seed!r} is none of "
          f"config.seeds = {tuple(study.seeds)}.")
  return list(study.seeds) if asked is None else [int(s) for s in asked]


def order(study: ml_collections.ConfigDict) -> list[str]:
  """The runs, each after those that it takes stages of.

  Raises:
    ConfigError: one takes a stage of a run that the study has not, or that
      has no such stage.
  """
  needs = {name: set() for name in study.runs}
  for name, run in study.runs.items():
    for stage, source in taken(run).items():
      other, _, result = source.partition("/")
      if result not in study.runs.get(other, {}).get("stages", ()):
        raise ConfigError(
            f"config.runs.{name}.inputs.{stage} = {source!r} is no stage of a "
            f"run of this study; its runs are {', '.join(study.runs)}.")
      needs[name].add(other)
  return list(graphlib.TopologicalSorter(needs).static_order())


def taken(run: ml_collections.ConfigDict) -> dict[str, str]:
  """Stage -> "RUN/STAGE", of those that come from another run of the seed."""
  return {stage: source for stage, source in run.inputs.items() if source}


def placed(run: ml_collections.ConfigDict, workdir: epath.Path, seed: int
           ) -> ml_collections.ConfigDict:
  """A run of the study as an experiment of its own: of this seed, with the
  folders of what it takes."""
  config = run.copy_and_resolve_references()
  config.seed = seed
  for stage, source in taken(run).items():
    config.inputs[stage] = str(seed_folder(workdir, seed) / source)
  return config


def seed_folder(workdir: epath.Path, seed: int) -> epath.Path:
  return workdir / f"seed{seed}"


def run_all(study: ml_collections.ConfigDict, workdir: epath.Path,
            seed: int) -> None:
  """Runs those of a seed that are not finished.

  Raises:
    as `pipeline.run_all`.
  """
  names = order(study)
  for number, name in enumerate(names, 1):
    config = placed(study.runs[name], workdir, seed)
    folder = seed_folder(workdir, seed) / name
    metrics.say(f"\n=== {study.name}, seed {seed}: run {number} of "
                f"{len(names)}, {name}")
    if is_finished(config, folder):
      metrics.say("finished before")
      continue
    lend_data(study, name, seed_folder(workdir, seed))
    pipeline.run_all(config, folder)
    jax.clear_caches()  # the next one compiles its own, or finds it on disk


def lend_data(study: ml_collections.ConfigDict, name: str,
              folder: epath.Path) -> None:
  """Copies data that are prepared already from a run that this one takes
  stages of, if it makes the same of the same sources; cleaning and tokenising
  are a good part of a short run."""
  settings = lambda run: (
      run.data.to_dict(), run.smallworld.to_dict(), run.model.vocab_size,
      run.model.context_length)
  ours = study.runs[name]
  for lender in {source.partition("/")[0] for source in taken(ours).values()}:
    theirs = study.runs[lender]
    if settings(theirs) == settings(ours):
      for part in _SHARED_DATA:
        _copy(folder / lender / "data" / part, folder / name / "data" / part)


def _copy(source: epath.Path, target: epath.Path) -> None:
  """A file or a folder that is there, to where there is none; whole or not at
  all."""
  if target.exists() or not source.exists():
    return
  if not source.is_dir():
    target.parent.mkdir(parents=True, exist_ok=True)
    source.copy(target)
    return
  # the report comes last: it says that the rest is there
  for path in sorted(source.iterdir(), key=lambda path: path.name == _REPORT):
    _copy(path, target / path.name)


def is_finished(config: ml_collections.ConfigDict, folder: epath.Path) -> bool:
  """Whether a run ended with these very settings, and has all its stages still:
  a summary alone may be of an earlier end."""
  if not (folder / "summary.json").exists() or (
      not pipeline.is_all_done(config, folder)):
    return False
  return not config_lib.differing(
      json.loads((folder / "config.json").read_text()), config.to_dict())


def measure(study: ml_collections.ConfigDict, of: Study, workdir: epath.Path,
            seed: int) -> None:
  """Measures a seed's runs, which are finished, unless that was done."""
  path = _path(study, workdir, seed)
  if path.exists() and not stale(study, of, workdir, seed):
    metrics.say(f"\n=== {study.name}, seed {seed}: measured before in {path}")
    return
  metrics.say(f"\n=== {study.name}, seed {seed}: measuring")
  runs = {name: pipeline.open_run(seed_folder(workdir, seed) / name)
          for name in order(study)}
  rows: list[Row] = [
      {"seed": seed, **result.as_json()} for result in of.measure(runs)]
  rows += _seconds(runs, seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  checkpoint.write_json(path, {
      "settings": settings(study, of),
      "stages": _stages(study, workdir, seed), "rows": rows})
  jax.clear_caches()


def _path(study: ml_collections.ConfigDict, workdir: epath.Path, seed: int
          ) -> epath.Path:
  return workdir / study.name / f"seed{seed}.json"


def stale(study: ml_collections.ConfigDict, of: Study, workdir: epath.Path,
          seed: int) -> str:
  """Why a seed's figures are not those of what is there now, "" if they are.

  A stage that is gone, as to save disk, is no reason: nothing else than what
  was measured is there.
  """
  found = json.loads(_path(study, workdir, seed).read_text())
  if changes := config_lib.differing(
      found.get("settings", {}), settings(study, of)):
    more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
    return f"it was measured with other settings ({changes[0]}{more})"
  again = [stage for stage, digest in _stages(study, workdir, seed).items()
           if found["stages"].get(stage) != digest]
  return f"{', '.join(again)} was made again since" if again else ""


def settings(study: ml_collections.ConfigDict, of: Study) -> dict[str, Any]:
  """All that a measurement depends on but its seed: what the results of each
  run's own stages depend on, whose stages it takes, what is measured by."""
  return json.loads(json.dumps({
      "runs": {name: {"taken": taken(run), "stages": {
          stage: config_lib.stage_keys(run, stage)
          for stage in pipeline.own_stages(run)}}
               for name, run in study.runs.items()},
      "measured_by": dict(of.settings)}))


def digest(study: ml_collections.ConfigDict, of: Study) -> str:
  """Of `settings`: seeds of one study may be joined where it is the same."""
  return _sha256(json.dumps(settings(study, of), sort_keys=True))


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _stages(study: ml_collections.ConfigDict, workdir: epath.Path, seed: int
            ) -> dict[str, str]:
  """"RUN/STAGE" -> the digest of what it left as done, of all that are."""
  paths = {f"{name}/{stage}":
               seed_folder(workdir, seed) / name / stage / "done.json"
           for name in order(study)
           for stage in pipeline.own_stages(study.runs[name])}
  return {stage: _sha256(path.read_text())
          for stage, path in paths.items() if path.exists()}


def _seconds(runs: Mapping[str, Run], seed: int) -> Iterator[Row]:
  """Yields how long each run's own stages took."""
  for name, run in runs.items():
    for stage in pipeline.own_stages(run.config):
      seconds = checkpoint.read_done(run.stage_dir(stage))["seconds"]
      yield {"seed": seed, "run": name, "policy": stage, "task": "stage",
             "name": "seconds", "mean": seconds, "low": None, "high": None,
             "n": 1}


def measured(study: ml_collections.ConfigDict, of: Study, workdir: epath.Path
             ) -> list[Row]:
  """The rows of all seeds that are measured so far, in the seeds' order; says
  of which they are not current."""
  rows: list[Row] = []
  for seed in study.seeds:
    path = _path(study, workdir, seed)
    if not path.exists():
      continue
    if why := stale(study, of, workdir, seed):
      metrics.say(f"{path} is left out: {why}; --seeds={seed} measures it anew")
      continue
    rows += json.loads(path.read_text())["rows"]
  return rows
