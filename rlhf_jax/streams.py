"""The batches of each kind that trainers and evaluators ask for by number."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax.data import batches, splits
from rlhf_jax.data.records import DataError
from rlhf_jax.run import Run

BatchAt = Callable[[int], dict[str, np.ndarray]]


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
  tokens are trained on."""
  packed = run.config.data.pack_demonstrations
  examples = batches.demonstration_examples(
      run.source("demonstrations", split), seed, packed=packed,
      length=run.config.model.context_length if packed else run.pair_length,
      pad_id=run.config.model.vocab_size)
  return run.batches(examples, batch_size)


def comparisons(run: Run, stage: str, rows: list[Any]) -> batches.Batches:
  """Blocks of prompts with all their ranked responses."""
  settings = run.config[stage]
  return run.batches(
      batches.comparison_examples(
          rows, run.data_seed(stage, "comparisons"),
          length=run.config.rm_model.context_length,
          num_rows=settings.block_rows, max_prompts=settings.block_prompts,
          max_responses=settings.max_responses,
          pad_id=run.config.model.vocab_size),
      settings.batch_size)


def training_comparisons(run: Run, stage: str) -> list[Any]:
  """The comparisons that `stage` learns from.

  Raises:
    DataError: there are none, or they do not fit, or none to measure it by.
  """
  settings = run.config[stage]
  rows = list(run.source("comparisons", "train"))
  most = max(len(row["ranks"]) for row in rows)
  if most > settings.max_responses:
    raise DataError(
        f"a prompt of the comparisons has {most} responses, but "
        f"config.{stage}.max_responses = {settings.max_responses}; set it to "
        f"{most}")
  if settings.half is not None:
    rows = [r for r in rows if splits.half_of(r["prompt"]) == settings.half]
  if not rows:
    raise DataError(
        f"no training comparison falls into config.{stage}.half = "
        f"{settings.half}; bring more prompts, or set it to None for all")
  if not len(run.source("comparisons", "validation")):
    raise DataError(
        f"no validation comparison to measure {stage!r} by; raise "
        "config.data.validation_fraction or bring more prompts")
  return rows


def prompts(run: Run, stage: str, batch_size: int) -> BatchAt:
  """Training prompts, left-padded, with the row ids of their noise."""
  at = run.batches(
      batches.prompt_examples(
          run.source("prompts", "train"), run.data_seed(stage, "prompts"),
          prompt_length=run.prompt_length,
          pad_id=run.config.model.vocab_size),
      batch_size)
  share = batch_size // jax.process_count()
  first = jax.process_index() * share

  def with_row_ids(number):
    ids = number * batch_size + first + np.arange(share, dtype=np.int32)
    return {**at(number), "row_ids": ids}

  return with_row_ids
