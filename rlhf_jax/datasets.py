"""The data of a run: Smallworld, the tokenizer, the prepared kinds."""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath
import jax
import ml_collections
from tqdm import auto as tqdm

from rlhf_jax import distributed, metrics, storage
from rlhf_jax.config import INIT
from rlhf_jax.data import cleaning, prepare, sources, tokenizer
from rlhf_jax.data.records import DataError
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.hf import folder

# By which split of a kind policies and reward models are measured.
HELD_OUT = {"prompts": "test", "pretrain": "validation",
            "comparisons": "validation"}


def make_world(config: ml_collections.ConfigDict) -> Smallworld | None:
  """Smallworld, where any source asks for it."""
  data = config.data
  sources = (data.pretrain, data.demonstrations, data.prompts)
  if "smallworld" not in sources:
    return None
  return Smallworld(
      seed=config.smallworld.seed, num_people=config.smallworld.num_people,
      validation_fraction=data.validation_fraction,
      test_fraction=data.test_fraction)


def smallworld_rows(config, world: Smallworld | None):
  """kind -> iterator over Smallworld's rows of that kind."""
  if world is None:
    return None

  def rows(kind: str) -> Iterator[dict[str, Any]]:
    settings = config.smallworld
    return {
        "pretrain": lambda: world.pretrain(settings.num_documents),
        "demonstrations": lambda: world.demonstrations(
            settings.num_demonstrations, settings.few_shot_sets),
        "prompts": lambda: world.prompts(
            settings.num_prompts, settings.few_shot_prompts),
    }[kind]()

  return rows


def read_rows(config, world, kind: str, source: str, root: str):
  """Rows of a source with their origins, under a progress bar."""
  rows = sources.read(
      source, kind, root=root, smallworld=smallworld_rows(config, world))
  return tqdm.tqdm(
      rows, desc=f"{kind:>14}", unit="row", mininterval=1.0, leave=False,
      disable=jax.process_index() != 0)


def make_tokenizer(config, workdir: epath.Path, world) -> tokenizer.Tokenizer:
  """The run's tokenizer: stored, loaded, or trained on its own text.

  Raises:
    DataError: its vocabulary is not that of the model.
  """
  stored = workdir / "data" / "tokenizer.json"
  if jax.process_index() == 0 and not stored.exists():
    if config.data.tokenizer == "train":
      rows = read_rows(
          config, world, "pretrain", config.data.pretrain, config.data.root)
      made = tokenizer.train(
          (record["text"] for record, _ in rows), config.model.vocab_size)
    elif config.data.tokenizer == INIT:
      made = tokenizer.load(str(folder.locate(config.init.policy)))
      metrics.say(describe_imported(made, config.model.vocab_size))
    else:
      made = tokenizer.load(config.data.tokenizer)
    check_vocabulary(made, config)
    check_reward_model(made, config)
    made.save(str(stored))
  distributed.barrier("tokenizer")
  made = tokenizer.load(str(stored))
  check_vocabulary(made, config)
  return made


def describe_imported(made: tokenizer.Tokenizer, vocab_size: int) -> str:
  """How an imported tokenizer and its model come together."""
  start = f", prompts start with {made.start}" if made.start else ""
  spare = vocab_size - made.vocab_size
  rows = f"; {spare:,} rows of the model have no token" if spare else ""
  return (f"tokenizer of the policy: {made.vocab_size:,} tokens, texts end "
          f"with {made.end}{start}; padding is an id of its own{rows}")


def check_vocabulary(made: tokenizer.Tokenizer, config) -> None:
  """Raises a DataError unless every token has a row, and every row a token;
  an imported model may have rows to spare."""
  if config.init.policy and made.vocab_size <= config.model.vocab_size:
    return
  if config.init.policy:
    raise DataError(
        f"the tokenizer ({config.data.tokenizer}) has {made.vocab_size} "
        f"tokens, the embedding of {config.init.policy} only "
        f"{config.model.vocab_size} rows: use the tokenizer that the model was "
        f"trained with, as --config.data.tokenizer={INIT}, or take the last "
        f"{made.vocab_size - config.model.vocab_size} out of its files")
  if made.vocab_size != config.model.vocab_size:
    raise DataError(
        f"the tokenizer ({config.data.tokenizer}) has {made.vocab_size} "
        f"entries, config.model.vocab_size is {config.model.vocab_size}: set "
        f"--config.model.vocab_size={made.vocab_size} and the same for "
        "rm_model")


def check_reward_model(made: tokenizer.Tokenizer, config) -> None:
  """Raises a DataError if an imported reward model reads other ids."""
  spec = config.init.reward_model
  if not spec or spec == config.init.policy:
    return
  path = folder.locate(spec)
  if not any((path / name).exists() for name in tokenizer.FILES):
    metrics.say(f"reward_model: {spec} has no tokenizer; it is taken to read "
                "the ids of the run's")
    return
  theirs = tokenizer.load(str(path)).bpe.get_vocab(with_added_tokens=True)
  ours = made.bpe.get_vocab(with_added_tokens=True)
  other = [token for token, own in ours.items() if theirs.get(token) != own]
  if other:
    raise DataError(
        f"the tokenizer of config.init.reward_model = {spec!r} gives "
        f"{len(other)} tokens other ids than the run's, as {min(other)!r}: "
        f"{theirs.get(min(other))}, not {ours[min(other)]}; use a reward model "
        "of the policy's tokenizer")


def prepare_for(run, kinds: tuple[str, ...], stage: str = "") -> None:
  """Prepares the kinds that are not there yet; prints each new report.

  Comparisons that a run collects are those that `stage` reads.

  Raises:
    DataError: bad rows, nothing left, or data prepared otherwise.
  """
  config, workdir = run.config, run.workdir
  for kind in kinds:
    source, root = source_of(run, kind, stage)
    out_dir = run.data_dir(stage) if kind == "comparisons" else (
        workdir / "data")
    is_new = not (out_dir / kind / "report.json").exists()
    if jax.process_index() == 0:
      report = prepare.prepare(
          kind,
          source_rows=read_rows(config, run.world, kind, source, root),
          source=fingerprint(config, kind, source, root),
          out_dir=str(out_dir),
          tokenizer=run.tokenizer,
          settings=cleaning_settings(config),
          root=root)
      if is_new:
        print(prepare.format_report(report), end="\n\n", flush=True)
    distributed.barrier(f"data {kind}")


def lacks(run, kind: str, stage: str = "") -> str:
  """Why a run cannot be measured by its prepared rows of a kind, "" if it can.

  Args:
    run: whose.
    kind: one of HELD_OUT.
    stage: of comparisons, the one that reads them.
  """
  folder, split = run.workdir / "data", HELD_OUT[kind]
  if kind == "comparisons":
    folder = run.data_dir(stage)
  number = prepare.num_rows(str(folder), kind, split)
  if number is None:
    return f"{run.workdir} has no prepared {kind}" + (stage and f" of {stage}")
  if not number:
    return (f"{folder / kind} has nothing in the split {split!r}; raise "
            f"config.data.{split}_fraction, or bring more {kind}")
  return ""


def source_of(run, kind: str, stage: str) -> tuple[str, str]:
  """The source of a kind, and where its relative paths start; comparisons may
  be those of the `collect` stages that `stage` reads."""
  source = run.config.data[kind]
  if source != "collect":
    return source, run.config.data.root
  files = (
      str(storage.local_copy(run.stage_dir(name) / "comparisons.jsonl"))
      for name in run.config[stage].collected)
  return f"jsonl:{','.join(files)}", ""


def fingerprint(config, kind: str, source: str, root: str) -> str:
  """Names the rows by all that they depend on."""
  if source == "smallworld":
    return "smallworld " + json.dumps(config.smallworld.to_dict())
  named = sources.fingerprint(source, root=root)
  if config.data[kind] == "collect":  # wherever the run's folder lies
    return "collect#" + named.rpartition("#")[2]
  return named


def cleaning_settings(config) -> cleaning.Settings:
  data = config.data
  return cleaning.Settings(
      window=config.model.context_length,
      max_prompt_tokens=data.max_prompt_tokens,
      max_response_tokens=data.max_response_tokens,
      dedup_prefix_tokens=data.dedup_prefix_tokens,
      max_prompts_per_user=data.max_prompts_per_user,
      validation_fraction=data.validation_fraction,
      test_fraction=data.test_fraction,
      prompt_suffix=data.prompt_suffix,
      response_prefix=data.response_prefix)
