"""Writes a stage's model as a folder that Hugging Face's programs read.

  python -m rlhf_jax.export --workdir=DIR --stage=ppo[:ema] --out=FOLDER
      [--dtype=float32] [--max-shard-size=5GB] [--step=N]

Any finished stage with a policy or a reward model can be named; `ppo` is the
trained parameters, `ppo:ema` their average, which is what the run evaluates.
It runs on the CPU alone, also beside a training run.
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)

# pylint: disable=wrong-import-position
import pathlib
import re

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax

from rlhf_jax import (
    checkpoint, config as config_lib, distributed, faults, metrics, model_card,
    pipeline, recipe, sharding, storage,
)
from rlhf_jax.config import names
from rlhf_jax.data.records import DataError
from rlhf_jax.hf import exporting, families, model_files, vocabulary
from rlhf_jax.hf.exporting import Tensors
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.hf.vocabulary import Vocabulary
from rlhf_jax.recipe import Source
from rlhf_jax.run import Run

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder.", allow_override=True)  # main's too
_STAGE = flags.DEFINE_string(
    "stage", None, "Whose model; of ppo with :ema the average.",
    allow_override=True)  # sample's too
_OUT = flags.DEFINE_string(
    "out", None, "The folder to write.", allow_override=True)  # of others too
_DTYPE = flags.DEFINE_string(
    "dtype", "float32", "float32, bfloat16 or float16.")
_MAX_SHARD_SIZE = flags.DEFINE_string(
    "max-shard-size", "5GB", "Of a file of weights, as 500MB or 2GiB.")
_STEP = flags.DEFINE_integer(
    "step", None, "Of which checkpoint; by default the one that the stage "
    "gave.", allow_override=True)  # sample's too

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
EMA = "ema"


class ExportError(ValueError):
  """What was asked cannot be written."""


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  # Accelerators are taken where a run trains, and of no use here.
  jax.config.update("jax_platforms", "cpu")
  try:
    export(_WORKDIR.value, _STAGE.value, _OUT.value, dtype=_DTYPE.value,
           max_shard_size=_MAX_SHARD_SIZE.value, step=_STEP.value)
  except (checkpoint.CheckpointError, storage.StorageError, DataError,
          FolderError, ExportError) as error:
    distributed.refuse(str(error))


def export(
    workdir: epath.PathLike, stage: str, out: str, *, dtype: str,
    max_shard_size: str, step: int | None) -> None:
  """Everything is checked first, then written beside `out`, then moved there.

  Args:
    workdir: of a run.
    stage: as --stage.
    out: a folder that is not there, or empty.
    dtype: a key of `exporting.DTYPES`.
    max_shard_size: as --max-shard-size.
    step: of a checkpoint, or None.

  Raises:
    ExportError, StorageError: an argument cannot be.
    CheckpointError: there is no such stage or step.
    FolderError: the model has no counterpart there, or numbers do not fit.
  """
  storage.check(workdir, "--workdir", is_written=False)
  if dtype not in exporting.DTYPES:
    raise ExportError(
        f"--dtype={dtype}: weights are written as "
        f"{', '.join(exporting.DTYPES)}; name one of them")
  most = parse_size(max_shard_size)
  folder = check_out(out)
  run = pipeline.open_run(epath.Path(workdir))
  source = choose(run, stage, step)
  words = (vocabulary.of_policy if source.is_policy
           else vocabulary.of_reward_model)(run.tokenizer)
  tensors = read(run, source, words, dtype)
  exporting.check(tensors)
  write(run, source, tensors, words, folder, most)
  metrics.say(
      f"{out}: {stage} of {workdir}, step {source.step}, "
      f"{tensors.num_params:,} parameters in {dtype}, "
      f"{tensors.family.ARCHITECTURES[tensors.last]}")


def parse_size(text: str) -> int:
  """"5GB" -> bytes; with an i powers of 1,024, as in GiB.

  Raises:
    ExportError: it is no size.
  """
  match = _SIZE.fullmatch(text.strip())
  size = 0
  if match:
    number, unit, is_binary = match.groups()
    base = 1024 if is_binary else 1000
    size = int(float(number) * base ** _POWERS[unit.upper()])
  if size < 1:
    raise ExportError(
        f"--max-shard-size={text}: it is no size above 0; write e.g. 5GB, "
        "500MB or 2GiB")
  return size


def check_out(out: str) -> pathlib.Path:
  """The folder to write.

  Raises:
    ExportError: it is in a bucket, or has something in it already.
    StorageError: it cannot be written.
  """
  if "://" in out:
    raise ExportError(
        f"--out={out}: folders are written on this machine only; write one "
        "here and copy it, e.g. with 'gcloud storage cp -r'")
  storage.check(out, "--out", is_written=True)
  folder = pathlib.Path(out).absolute()
  if folder.exists() and any(folder.iterdir()):
    raise ExportError(
        f"--out={out} is not empty; name a folder that is not there, or remove "
        "it")
  return folder


def choose(run: Run, spec: str, step: int | None) -> Source:
  """What --stage and --step name.

  Raises:
    CheckpointError: names what there is.
  """
  stage, colon, item = spec.partition(":")
  finished = [name for name in _with_models(run)
              if checkpoint.read_done(run.stage_dir(name))]
  there = ", ".join(
      f"{name}, {name}:{EMA}" if _has_average(name) else name
      for name in finished) or "none"
  if stage in _with_models(run) and stage not in finished:
    raise checkpoint.CheckpointError(
        f"--stage={spec}: {stage!r} of {run.workdir} is not finished; give the "
        f"run's command again to finish it. Those with a model that are: "
        f"{there}")
  if stage not in finished or (
      colon and not (item == EMA and _has_average(stage))):
    raise checkpoint.CheckpointError(
        f"--stage={spec}: the finished stages with a model in {run.workdir} "
        f"are {there}")
  result = pipeline.choose_step(run, stage, None)
  step = pipeline.choose_step(run, stage, step)
  return Source(stage, item or "params", step, is_result=step == result)


def _with_models(run: Run) -> list[str]:
  """Stages, also those of other runs, that leave a policy or reward model."""
  known = (*pipeline.given_inputs(run.config), *run.config.stages)
  return [name for name in dict.fromkeys(known)
          if names.name_of(name) in (
              *config_lib.POLICIES, *config_lib.REWARD_MODELS)]


def _has_average(stage: str) -> bool:
  return names.name_of(stage) == "ppo"


def read(
    run: Run, source: Source, words: Vocabulary, dtype: str) -> Tensors:
  """The parameters, on their way out.

  Raises:
    FolderError: the model has no counterpart there.
  """
  model = run.policy() if source.is_policy else run.scalar()
  families.family_for(model.config)  # before anything is read
  with sharding.use(run.mesh, run.axis_rules):
    params = run.load(source.stage, source.item, model, source.step)
  return exporting.make_tensors(
      params, model.config, dtype=dtype,
      last="policy" if source.is_policy else "reward_model",
      vocab_size=max(model.config.vocab_size, words.id_of(words.pad) + 1))


def write(
    run: Run, source: Source, tensors: Tensors, words: Vocabulary,
    folder: pathlib.Path, max_shard_bytes: int) -> None:
  """Writes FOLDER.partial and gives it its name once it is whole.

  Raises:
    StorageError: the disk fails; nothing is left then.
  """
  partial = folder.with_name(folder.name + ".partial")
  storage.remove(partial)  # of one that was killed
  try:
    partial.mkdir(parents=True)
    exporting.write(tensors, partial, max_shard_bytes)
    data = run.config.data
    vocabulary.write(
        words, partial, context_length=tensors.c.context_length,
        template=vocabulary.chat_template(
            words, data.prompt_suffix, data.response_prefix))
    model_files.write(
        tensors, words, partial, temperature=temperature(run, source),
        max_new_tokens=run.response_length)
    (partial / "README.md").write_text(
        model_card.card(run, source, tensors, words), encoding="utf-8")
    partial.rename(folder)
  except BaseException as error:
    storage.remove(partial)
    if fault := faults.explain(error):
      raise storage.StorageError(
          f"--out={folder}: {fault.cause}; {fault.way_out}. Nothing of it was "
          "kept.") from error
    raise


def temperature(run: Run, source: Source) -> float:
  """What this policy is sampled with: by PPO, or else by the evaluation."""
  own = recipe.settings_of(run, source.stage).get("method.temperature")
  evaluations = [run.config[stage].temperature for stage in run.config.stages
                 if names.kind_of(stage) == "evaluate"]
  return next((t for t in (own, *evaluations) if t is not None), 1.0)


if __name__ == "__main__":
  usage.run(main, required=["workdir", "stage", "out"])
