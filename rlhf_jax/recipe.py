"""What a run's files say of one of its models: how it was made, and what was
measured. Nothing is computed again, and what no file says is left out."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from typing import Any

from rlhf_jax import checkpoint, config as config_lib, pipeline
from rlhf_jax.config import names
from rlhf_jax.data import sources
from rlhf_jax.run import Run

# Settings of a stage that make its result, by the kind of the stage.
_SETTINGS = {
    "lm": "init_from batch_size pretrain_batch_size pretrain_weight "
          "dropout_rate select optimizer.learning_rate",
    "collect": "policies labeler min_responses max_responses temperature",
    "rm": "init_from collected batching num_epochs batch_size half fold "
          "max_prompts optimizer.learning_rate",
    "select": "candidates reward_model num_prompts temperature",
    "ppo": "init_from reward_model batch_size ptx_batch_size reward_unit "
           "method.kl_coef method.ptx_coef method.discount method.gae_lambda "
           "method.clip_eps method.value_clip_eps method.missing_eos_penalty "
           "method.num_epochs method.num_minibatches method.ema_decay "
           "method.temperature optimizer.learning_rate "
           "critic_optimizer.learning_rate",
}
_LENGTHS = ("steps", "iterations", "prompts")


@dataclasses.dataclass(frozen=True)
class Source:
  """Which parameters of a run.

  Attributes:
    stage: whose.
    item: "params", or "ema", their average.
    step: of which checkpoint.
    is_result: whether this step is what the stage gave to others.
  """

  stage: str
  item: str
  step: int
  is_result: bool

  @property
  def is_policy(self) -> bool:
    return config_lib.name_of(self.stage) in config_lib.POLICIES

  @property
  def is_measured(self) -> bool:
    """Whether these are what evaluations measure: of PPO the average."""
    is_ppo = config_lib.name_of(self.stage) == "ppo"
    return self.is_result and self.item == ("ema" if is_ppo else "params")


# ------------------------------------------------------------------- the recipe


def is_here(run: Run, stage: str) -> bool:
  """Whether the stage ran here, by this run's own settings."""
  return stage in run.config.stages and (
      stage not in pipeline.given_inputs(run.config))


def lineage(run: Run, stage: str) -> list[str]:
  """The stages that `stage` comes from, in their order, itself last; of those
  taken from another run no further ones."""
  found: set[str] = set()

  def add(name: str) -> None:
    if name in found or name == config_lib.INIT:
      return
    found.add(name)
    if is_here(run, name):
      for source in config_lib.read_by(run.config, name):
        add(source)

  add(stage)
  known = list(dict.fromkeys(
      (*run.config.stages, *pipeline.given_inputs(run.config))))
  return sorted(found - {stage}, key=known.index) + [stage]


def imported(run: Run, stage: str) -> str:
  """The checkpoint that the body of `stage` started from, "" where its files
  name none."""
  while stage:
    tree, own = settings_file(run, stage)
    origin = names.at(tree, f"{own}.init_from") or names.at(
        tree, f"{own}.candidates")
    if origin == config_lib.INIT:
      kind = "reward_model" if names.kind_of(stage) == "rm" else "policy"
      return tree["init"][kind]
    stage = origin if is_here(run, stage) else ""
  return ""


def stages(run: Run, stage: str) -> Iterator[str]:
  """Yields a line a stage of the lineage: its length and settings."""
  for name in lineage(run, stage):
    figures = (checkpoint.read_done(run.stage_dir(name)) or {}).get(
        "figures", {})
    length = next((f", {figures[key]:,} {key}" for key in _LENGTHS
                   if key in figures), "")
    settings = ", ".join(
        f"{key.removeprefix('method.')} {shown(value)}"
        for key, value in settings_of(run, name).items())
    origin = "" if is_here(run, name) else ", of another run"
    yield f"`{name}`{origin}{length}: {settings}"


def settings_of(run: Run, stage: str) -> dict[str, Any]:
  """Of the settings that the stage was begun with, those that make its
  result."""
  tree, own = settings_file(run, stage)
  keys = _SETTINGS.get(names.kind_of(stage), "").split()
  found = {key: names.at(tree, f"{own}.{key}") for key in keys}
  return {key: value for key, value in found.items() if value is not None}


def settings_file(run: Run, stage: str) -> tuple[dict[str, Any], str]:
  """(settings.json, the stage's name there: another run may have another)."""
  folder = run.stage_dir(stage)
  path = folder / "settings.json"
  return (json.loads(path.read_text()) if path.exists() else {}), folder.name


def readers(run: Run, stage: str) -> dict[str, str]:
  """Kind of data -> the last stage of the lineage that reads it."""
  tree = run.config.to_dict()
  here = [name for name in lineage(run, stage) if is_here(run, name)]
  return {kind: name for name in here for kind in names.sources_of(tree, name)}


def made_up(run: Run, stage: str) -> list[str]:
  """The kinds of data of the lineage that are Smallworld's."""
  return sorted(kind for kind in readers(run, stage)
                if run.config.data[kind] == names.SMALLWORLD)


def data(run: Run, stage: str) -> Iterator[str]:
  """Yields a line a kind of data that the lineage was made with."""
  for kind, reader in sorted(readers(run, stage).items()):
    folder = (run.data_dir(reader) if kind == "comparisons"
              else run.workdir / "data")
    path, rows = folder / kind / "report.json", ""
    if path.exists():
      number = json.loads(path.read_text())["rows_out"]["train"]
      rows = f", {number:,} rows of the training split after cleaning"
    yield f"{kind}: {shown(run.config.data[kind])}{rows}"


def shown(value: Any) -> str:
  """A setting as people read it; of files their names alone."""
  if isinstance(value, str) and value.startswith("jsonl:"):
    return "jsonl:" + ",".join(
        path.rpartition("/")[2] for path, _ in sources.weighted_paths(value))
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, (list, tuple)):
    return "(" + " ".join(map(shown, value)) + ")"
  return str(value) if value != "" else "none"


# ------------------------------------------------------------------ the figures


def evaluations(
    run: Run, source: Source) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """Yields (what was done, figures) of each evaluation of a policy."""
  for stage in run.config.stages:
    done = checkpoint.read_done(run.stage_dir(stage))
    if names.kind_of(stage) != "evaluate" or not done or (
        stage in pipeline.given_inputs(run.config)):
      continue
    settings, found = run.config[stage], done["figures"]["eval"]
    if source.stage in settings.policies:
      yield (_what_was_done(run, settings, found),
             list(_of_policy(source.stage, settings, found)))


def _what_was_done(run: Run, settings, found: Mapping[str, Any]) -> str:
  judge = f"the judge is the reward model `{settings.judge}`"
  if settings.judge == names.LABELERS:
    judge = "the judges are Smallworld's held-out labelers, which are simulated"
  return (f"{found['n']:,} held-out prompts ({shown(run.config.data.prompts)}, "
          f"test split), one response each at temperature "
          f"{settings.temperature:g}; {judge}. Intervals are of 95 %, over "
          "prompts.")


def _of_policy(
    policy: str, settings, found: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
  """Rows of one policy's figures, those that the evaluation has."""
  with_interval = {
      f"preferred to `{settings.baseline}`, share of prompts":
          found["win_rate"].get(policy),
      "gold score of Smallworld's rubric, 0 to 1":
          found.get("gold_score_intervals", {}).get(policy),
      f"score of `{settings.reward_model}`":
          found["score_intervals"].get(policy),
      f"KL to `{settings.reference}`, nats a response":
          found["kl_intervals"].get(policy),
  }
  for what, value in with_interval.items():
    if value:
      yield {"figure": what, "value": interval(value)}
  alone = {"pretraining loss on held-out text, nats a token": "pretrain_loss",
           "tokens a response": "response_length",
           "share of responses that end": "ended"}
  for what, key in alone.items():
    if policy in found[key]:
      yield {"figure": what, "value": number(found[key][policy])}


def accuracies(run: Run, stage: str) -> list[dict[str, str]]:
  """Rows of a reward model's figures on its own validation comparisons."""
  found = checkpoint.read_done(run.stage_dir(stage))["figures"]
  rows = [
      {"figure": f"accuracy, {group.replace('_', ' ')}",
       "value": f"{interval(value)}, {value['pairs']:,} pairs"}
      for group, value in found.get("validation_accuracy_by_group", {}).items()]
  alone = {
      "expected calibration error": "calibration_error",
      "SD of the scores of compared responses": "score_sd",
      "SD of the scores of demonstrations": "demonstration_score_sd",
      "comparisons learnt from": "comparisons"}
  return rows + [
      {"figure": what, "value": number(found[key])}
      for what, key in alone.items() if key in found]


def of_training(run: Run, stage: str) -> list[dict[str, str]]:
  """Rows of the numbers that a policy's stage gave at its end."""
  found = checkpoint.read_done(run.stage_dir(stage))["figures"]
  return [
      {"figure": f"`{name}`", "value": number(value)}
      for name, value in found.items()
      if isinstance(value, float)]


def interval(value: Mapping[str, float]) -> str:
  mean, low, high = (number(value[key]) for key in ("mean", "low", "high"))
  return f"{mean} ({low} to {high}), n = {value['n']:,}"


def number(value: float) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
