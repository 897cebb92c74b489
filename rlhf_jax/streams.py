"""The batches of each kind that trainers and evaluators ask for by number."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
from typing import Any
import zlib

from rlhf_jax.config.names import MAX_RESPONSES
from rlhf_jax.data import batches, sources, splits
from rlhf_jax.data.records import DataError
from rlhf_jax.run import Run


def pretrain(
    run: Run, split: str, batch_size: int, seed: int | None
) -> batches.Batches:
  """Packed windows; every token but the first is trained on."""
  return run.batches(
      batches.lm_examples(run.source("pretrain", split), seed), batch_size)


def demonstrations(
    run: Run, split: str, batch_size: int, seed: int | None
) -> batches.Batches:
  """Prompts with responses, one or (packed) several a row; the responses'
  tokens are trained on. The files of a mixture share the training split by
  their weights; of a mixture too, what is measured comes once."""
  packed = run.config.data.pack_demonstrations
  make = functools.partial(
      batches.demonstration_examples, packed=packed,
      length=run.config.model.context_length if packed else run.pair_length,
      pad_id=run.config.model.vocab_size)
  mixture = training_mixture(run) if split == "train" else {}
  if mixture:
    # a file keeps its order when others come or go
    parts = [make(rows, zlib.crc32(f"{seed}/{name}".encode()))
             for name, (rows, _) in mixture.items()]
    examples = batches.mixed_examples(
        parts, [weight for _, weight in mixture.values()])
  else:
    examples = make(run.source("demonstrations", split), seed)
  return run.batches(examples, batch_size)


def training_mixture(run: Run) -> dict[str, tuple[list[Any], float]]:
  """File -> (its training demonstrations, weight), {} without weights.

  Raises:
    DataError: a file has no row there, or rows are of no file named now.
  """
  data = run.config.data
  weights = sources.file_weights(data.demonstrations, root=data.root)
  if not weights:
    return {}
  rows_of = {name: [] for name in weights}
  for row in run.source("demonstrations", "train"):
    name = row.get("file")  # not there if prepared before mixtures were
    if name not in rows_of:
      raise DataError(
          f"the prepared demonstrations have rows of the file {name!r}, which "
          f"is none of {sorted(weights)}: remove data/demonstrations in the "
          "run's folder, so that they are prepared again")
    rows_of[name].append(row)
  for name, rows in rows_of.items():
    if not rows:
      raise DataError(
          f"{name!r} has the weight {weights[name]:g} in the mixture of "
          "demonstrations, but none of its rows is left to train on (see "
          "data/demonstrations/report.json); leave it out, or loosen the rule "
          "that takes them")
  return {name: (rows, weights[name]) for name, rows in rows_of.items()}


def comparisons(run: Run, stage: str, rows: list[Any]) -> batches.Batches:
  """Blocks of comparisons: of prompts with all their ranked responses
  (`batching` "kwise"), or of single pairs ("pairs")."""
  settings = run.config[stage]
  seed = run.data_seed(stage, "comparisons")
  max_responses = settings.max_responses
  if settings.batching == "pairs":
    rows, max_responses = batches.untied_pairs(rows, seed), 2
  return run.batches(
      batches.comparison_examples(
          rows, seed,
          length=run.config.rm_model.context_length,
          num_rows=settings.block_rows, max_prompts=settings.block_prompts,
          max_responses=max_responses,
          pad_id=run.config.model.vocab_size),
      settings.batch_size)


def training_comparisons(run: Run, stage: str) -> list[Any]:
  """The comparisons that `stage` learns from.

  Raises:
    DataError: there are none, or they do not fit, or none to measure it by.
  """
  settings = run.config[stage]
  rows = list(run.comparisons(stage, "train"))
  most = max(len(row["ranks"]) for row in rows)
  if most > settings.max_responses:
    way_out = (f"set it to {most}" if most <= MAX_RESPONSES else
               f"it can be {MAX_RESPONSES} at most, so leave some of the "
               "responses out")
    raise DataError(
        f"a prompt of the comparisons has {most} responses, but "
        f"config.{stage}.max_responses = {settings.max_responses}; {way_out}")
  fold = labeler_fold(run, stage)
  if fold:
    rows = [r for r in rows if r["labeler_id"] in fold.inside]
  if settings.half is not None:
    rows = [r for r in rows if splits.half_of(
        r.get("few_shot_set") or r["prompt"]) == settings.half]
  if not rows:
    raise DataError(
        f"no training comparison falls into config.{stage}.half = "
        f"{settings.half}; bring more prompts, or set it to None for all")
  rows = first_prompts(rows, settings.max_prompts, stage)
  if not any(map(has_order, rows)):
    raise DataError(
        f"all {len(rows)} comparisons that {stage!r} would learn from are "
        "ties; check their 'ranks', or bring more prompts")
  if not any(map(has_order, run.comparisons(stage, "validation"))):
    raise DataError(
        f"no validation comparison to measure {stage!r} by; raise "
        "config.data.validation_fraction or bring more prompts")
  return rows


def has_order(row: Mapping[str, Any]) -> bool:
  """Whether any two responses of a comparison are no tie."""
  return len(set(map(int, row["ranks"]))) > 1


def first_prompts(
    rows: list[Any], number: int | None, stage: str) -> list[Any]:
  """The rows of the first `number` prompts, or all (None).

  Raises:
    DataError: there are not that many.
  """
  if number is None:
    return rows
  prompts = list(dict.fromkeys(row["prompt"] for row in rows))
  if len(prompts) < number:
    raise DataError(
        f"config.{stage}.max_prompts = {number}, but {stage!r} has "
        f"{len(prompts)} prompts to learn from; lower it, or set it to None "
        "for all")
  chosen = set(prompts[:number])
  return [row for row in rows if row["prompt"] in chosen]


@dataclasses.dataclass(frozen=True)
class Fold:
  """Labeler ids: whom a stage learns from, and the group left out."""

  inside: frozenset[str]
  heldout: frozenset[str]


def labeler_fold(run: Run, stage: str) -> Fold | None:
  """The fold of config.STAGE.fold = (index, count), None without one.

  The labelers of all comparisons of the training split are dealt.

  Raises:
    DataError: a row without a labeler, too few labelers, or no validation
      comparison by those inside or by those left out.
  """
  if run.config[stage].fold is None:
    return None
  index, count = run.config[stage].fold
  key = f"config.{stage}.fold = {(index, count)}"
  rows = run.comparisons(stage, "train")
  unnamed = next((row for row in rows if not row["labeler_id"]), None)
  if unnamed:
    raise DataError(
        f"{key} needs a 'labeler_id' in every training comparison, and that "
        f"of the prompt {unnamed['prompt'][:80]!r} has none; add it, or set "
        "fold to None")
  groups = labeler_groups((row["labeler_id"] for row in rows), count)
  if not groups[-1]:
    number = sum(map(len, groups))
    raise DataError(
        f"{key} makes {count} groups of {number} training labeler(s); use a "
        f"count of {number} at most, or set fold to None")
  heldout = groups.pop(index)
  fold = Fold(frozenset().union(*groups), heldout)
  measured = {row["labeler_id"]
              for row in run.comparisons(stage, "validation")
              if has_order(row)}
  for name, group in (
      ("the left-out", fold.heldout), ("the other", fold.inside)):
    if not measured & group:
      raise DataError(
          f"{key}: no validation comparison by {name} labelers "
          f"({', '.join(sorted(group))[:80]}); use a smaller count, or raise "
          "config.data.validation_fraction")
  return fold


def labeler_groups(
    labeler_ids: Iterable[str], count: int) -> list[frozenset[str]]:
  """The distinct ids, sorted and dealt in turn: `count` groups whose sizes
  differ by one at most. They depend on who labeled, not on how often."""
  ids = sorted(set(labeler_ids))
  return [frozenset(ids[index::count]) for index in range(count)]


def prompts(run: Run, stage: str, batch_size: int) -> batches.Batches:
  """Training prompts, left-padded."""
  return run.batches(
      batches.prompt_examples(
          run.source("prompts", "train"), run.data_seed(stage, "prompts"),
          prompt_length=run.prompt_length,
          pad_id=run.config.model.vocab_size),
      batch_size)
