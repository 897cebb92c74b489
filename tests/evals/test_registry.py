"""Every benchmark's file is read whole, and luck gives chance.

  RLHF_JAX_DATA=DIR python -m pytest tests/evals/test_registry.py

DIR/evals has the real files; without it the tests read a few rows of each
format.
"""

import gzip
import os
import pathlib
import zlib

import numpy as np
import pytest

from rlhf_jax.data.fields import DataError
from rlhf_jax.evals import items as items_lib, registry, suite
from rlhf_jax.evals.model import Completion, Likelihood
from tests.evals import benchmarks
from tests.evals.models import by_name

FOLDER = os.environ.get("RLHF_JAX_DATA", "")
IN_FILES = sorted(name for name, of in registry.EVALUATORS.items()
                  if of.read and name not in ("quac", "cnn_dm"))
# Rows of the file that one item is of.
ROWS_AN_ITEM = {"winogender": 3, "drop": 24, "squadv2": 24, "fr_to_en": 24,
                "tldr": 12}
# (task, model, prompt type, figure, its value, two standard errors): of the 100
# inputs that were published, of which three quarters are in the folder.
KNOWN = [
    ("squadv2", "gpt-175b", "fewshot", "f1", 0.679, 0.092),
    ("squadv2", "ppo-noptx-175b", "zeroshot", "f1", 0.407, 0.088),
    ("fr_to_en", "ppo-noptx-175b", "zeroshot", "bleu", 22.0, 4.0),
    ("fr_to_en", "ppo-ptx-175b", "fewshot", "bleu", 33.3, 4.0),
    ("tldr", "gpt-xl", "", "rouge_l", 0.113, 0.02),
    ("tldr", "gpt-175b", "", "rouge_l", 0.176, 0.02),
] if FOLDER else [
    ("squadv2", "m", "", "f1", 1.0, 1e-6),
    ("fr_to_en", "m", "", "bleu", 100.0, 1e-6),
    ("tldr", "m", "", "rouge_l", 1.0, 1e-6),
]


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory):
  """The real data folder, or a small one."""
  return pathlib.Path(FOLDER) if FOLDER else benchmarks.write(
      tmp_path_factory.mktemp("data") / "data")


class Lucky:
  """Numbers that have nothing to do with the texts."""

  def likelihoods(self, pairs):
    return [Likelihood(-self._noise(pair) * len(pair[1]), len(pair[1]))
            for pair in pairs]

  def complete(self, prompts):
    return [Completion("yes") for _ in prompts]

  def _noise(self, pair):
    return 1 + zlib.crc32(repr(pair).encode()) / 2**32


def number_of_rows(root, name):
  path = root / registry.EVALUATORS[name].file
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return sum(bool(line.strip()) for line in file)


@pytest.mark.parametrize("name", IN_FILES)
def test_every_row_is_read(root, name):
  items = registry.EVALUATORS[name].items(str(root), None)
  rows = number_of_rows(root, name)
  each = ROWS_AN_ITEM.get(name, 1) if FOLDER else rows / len(items)
  assert len(items) * each == rows
  assert all(item.num_texts >= 1 for item in items)


@pytest.mark.parametrize("name", IN_FILES)
def test_luck_gives_chance(root, name):
  evaluator = registry.EVALUATORS[name]
  found = by_name(evaluator.measure(
      Lucky(), evaluator.items(str(root), None)))
  for row in found.values():
    assert (np.isfinite(row.mean) and row.low <= row.mean <= row.high) or (
        row.n < 2)
  for figure in {"accuracy", "mc1", "mc1_total"} & set(found):
    row = found[figure]
    # nearly four standard errors, twice its interval: no seed was chosen
    assert abs(row.mean - found["chance"].mean) <= row.high - row.low


@pytest.mark.parametrize("name, model, kind, figure, known, error", KNOWN)
def test_published_samples_score_as_known(
    root, name, model, kind, figure, known, error):
  evaluator = registry.EVALUATORS[name]
  rows = items_lib.read(str(root / evaluator.file), lambda row, origin: row)
  said = {row["context"]: row["sample"] for row in rows
          if row["model_type"] == model and row.get("prompt_type", "") == kind}
  replayed = Lucky()
  replayed.complete = lambda prompts: [Completion(said[p]) for p in prompts]
  found = by_name(evaluator.measure(
      replayed, evaluator.items(str(root), None)))
  assert abs(found[figure].mean - known) < error


def test_a_suite_names_what_it_leaves_out(root):
  tasks, left_out = suite.prepare(["paper"], str(root), 1)
  assert set(tasks) | set(left_out) == set(registry.SUITES["paper"])
  assert "evals/instructgpt_samples_quac.jsonl.gz" in left_out["quac"]
  assert "Perspective" in left_out["real_toxicity"]
  assert not set(IN_FILES) & set(left_out)
  assert len(tasks["hellaswag"].items) == 1


def test_without_a_folder_the_flag_is_named():
  tasks, left_out = suite.prepare(["paper"], "", None)
  assert "give --data.root" in left_out["hellaswag"]
  assert set(tasks) == set(registry.SUITES["run"])


def test_what_is_asked_for_by_name_is_not_left_out(root):
  with pytest.raises(registry.LeftOut, match="--suite=quac: there is no "):
    suite.prepare(["run", "quac"], str(root), None)
  with pytest.raises(registry.LeftOut, match="--suite=real_toxicity: needs"):
    suite.prepare(["real_toxicity"], str(root), None)
  with pytest.raises(registry.LeftOut, match="there is no /nowhere/x.jsonl"):
    suite.prepare(["multiple_choice:/nowhere/x.jsonl"], "", None)
  with pytest.raises(registry.LeftOut, match=(
      r"there is no \S+/x.jsonl; relative paths are of --data.root=")):
    suite.prepare(["multiple_choice:x.jsonl"], str(root), None)


def test_an_unknown_name_is_refused():
  with pytest.raises(DataError, match="--suite has no 'hellaswig'; there are"):
    suite.prepare(["hellaswig"], "", None)


def test_a_bad_row_ends_it(tmp_path):
  path = tmp_path / "q.jsonl"
  path.write_text('{"context": "c", "choices": ["a", "b"], "label": 0}\n7\n')
  with pytest.raises(DataError, match="q.jsonl:2: expected a JSON object"):
    suite.prepare([f"multiple_choice:{path}"], "", None)
