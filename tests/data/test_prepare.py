"""Prepared once, read back as it was, refused when asked for otherwise."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rlhf_jax.data import cleaning
from rlhf_jax.data import prepare as prepare_lib
from rlhf_jax.data import records
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data import splits
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.records import DataError

FIXTURES = os.path.join(os.path.dirname(__file__), "fixtures")
SETTINGS = cleaning.Settings(
    window=16,
    max_prompt_tokens=64,
    max_response_tokens=32,
    dedup_prefix_tokens=48,
    max_prompts_per_user=2,
    validation_fraction=0.1,
    test_fraction=0.1,
    prompt_suffix="",
    response_prefix=" ",
)


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer():
  rows = records.read("jsonl:pretrain.jsonl", "pretrain", root=FIXTURES)
  texts = [record["text"] for record, _ in rows]
  return tokenizer_lib.train(texts + ["\n\nHuman: \n\nAssistant:"] * 9, 400)


def _prepare(kind, out_dir, tokenizer, rows=None, **changes):
  source = f"jsonl:{kind}.jsonl"
  if rows is None:
    rows = records.read(source, kind, root=FIXTURES)
  return prepare_lib.prepare(
      kind,
      source_rows=rows,
      source=source,
      out_dir=str(out_dir),
      tokenizer=tokenizer,
      settings=dataclasses.replace(SETTINGS, **changes),
  )


def _read_all(out_dir, kind):
  return [
      row
      for split in splits.SPLITS
      for row in prepare_lib.open_split(str(out_dir), kind, split)
  ]


def _cleaned(kind, tokenizer):
  rows = records.read(f"jsonl:{kind}.jsonl", kind, root=FIXTURES)
  return cleaning.clean(kind, rows, tokenizer, SETTINGS)[0]


@pytest.mark.parametrize("kind", records.KINDS[1:])
def test_rows_come_back_as_they_were_cleaned(kind, tmp_path, tokenizer):
  report = _prepare(kind, tmp_path, tokenizer)
  rows = _read_all(tmp_path, kind)
  want = [row for s in splits.SPLITS for row in _cleaned(kind, tokenizer)[s]]
  assert len(rows) == len(want) == sum(report["rows_out"].values())
  for row, cleaned in zip(rows, want):
    fields = cleaned.record | {
        name: row[name]
        for name in records.optional_fields(kind)
        if name not in cleaned.record and row[name] == ""
    }
    responses = row.pop("response_tokens", [])
    if kind == "demonstrations":
      responses = [responses]
    if kind == "comparisons":
      fields.setdefault("metadata", None)
      row["ranks"] = row["ranks"].tolist()
    tokens = [row.pop("prompt_tokens"), *responses]
    assert row == fields
    for got, array in zip(tokens, cleaned.tokens, strict=True):
      assert got.dtype == np.int32
      np.testing.assert_array_equal(got, array)
    for text, array in zip(rows_lib.responses(cleaned.record), responses):
      assert array[-1] == tokenizer.eos_id
      assert tokenizer.decode(array) == " " + text
    assert tokenizer.decode(tokens[0]) == row["prompt"]


def test_windows_are_the_texts_one_after_the_other(tmp_path, tokenizer):
  report = _prepare("pretrain", tmp_path, tokenizer, window=7)
  for split, rows in _cleaned("pretrain", tokenizer).items():
    stream = []
    for row in rows:
      stream += tokenizer.encode(row.record["text"]) + [tokenizer.eos_id]
    windows = prepare_lib.open_split(str(tmp_path), "pretrain", split)
    packed = [t for window in windows for t in window["tokens"].tolist()]
    left = report["tokens_left"][split]
    assert all(w["tokens"].shape == (7,) for w in windows)
    assert packed == stream[: len(stream) - left]
    assert len(windows) == report["windows"][split] and 0 <= left < 7


def test_the_second_call_reads_nothing(tmp_path, tokenizer):
  def untouched():
    raise AssertionError("read again")
    yield

  report = _prepare("prompts", tmp_path, tokenizer)
  again = _prepare("prompts", tmp_path, tokenizer, rows=untouched(), window=99)
  assert again == report


def test_other_settings_are_refused_with_their_names(tmp_path, tokenizer):
  _prepare("prompts", tmp_path, tokenizer)
  with pytest.raises(DataError, match="prompts was .*_prompt_tokens: 64 -> 32"):
    _prepare("prompts", tmp_path, tokenizer, max_prompt_tokens=32)
  other = tokenizer_lib.train(["a"], 257)
  with pytest.raises(DataError, match="tokenizer: .*remove that folder"):
    _prepare("prompts", tmp_path, other)


def test_an_interrupted_preparation_is_done_again(tmp_path, tokenizer):
  _prepare("prompts", tmp_path, tokenizer)
  (tmp_path / "prompts" / "report.json").unlink()
  with pytest.raises(DataError, match="no prepared prompts"):
    prepare_lib.open_split(str(tmp_path), "prompts", "train")
  report = _prepare("prompts", tmp_path, tokenizer, max_prompts_per_user=1)
  assert len(_read_all(tmp_path, "prompts")) == sum(report["rows_out"].values())
  assert all(
      len([r for r in _read_all(tmp_path, "prompts") if r["user_id"] == u]) <= 1
      for u in ("u1", "u2")
  )


def test_nothing_left_says_what_took_it(tmp_path, tokenizer):
  with pytest.raises(DataError, match="'long_prompt': 6.*loosen"):
    _prepare("prompts", tmp_path, tokenizer, max_prompt_tokens=1,
             validation_fraction=0.0, test_fraction=0.0,
             rows=[({"prompt": "a b c"}, f"f:{n}") for n in range(6)])
  with pytest.raises(DataError, match="do not fill one window"):
    _prepare("pretrain", tmp_path, tokenizer, window=5000)
  assert not (tmp_path / "pretrain" / "report.json").exists()


def test_a_file_with_only_ties_is_an_error(tmp_path, tokenizer):
  tied = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}
  fine = tied | {"ranks": [1, 2]}
  rows = [(fine, "a.jsonl:1"), (tied, "a.jsonl:2"), (tied, "b.jsonl:1")]
  with pytest.raises(DataError, match="b.jsonl: each of the 1 rows ranks"):
    _prepare("comparisons", tmp_path, tokenizer, rows=rows)
  report = _prepare("comparisons", tmp_path, tokenizer, rows=rows[:2],
                    validation_fraction=0.0, test_fraction=0.0)
  assert report["dropped"]["all_tied"]["count"] == 1


def test_the_report_is_kept_and_printed(tmp_path, tokenizer):
  report = _prepare("comparisons", tmp_path, tokenizer)
  text = (tmp_path / "comparisons" / "report.json").read_text()
  assert json.loads(text) == report
  printed = prepare_lib.format_report(report)
  for part in ("all_tied", "comparisons.jsonl:5", "prompt p75", "generation"):
    assert part in printed
  report = _prepare("pretrain", tmp_path, tokenizer)
  assert "windows" in prepare_lib.format_report(report)


def test_tensorflow_is_never_imported(tmp_path):
  program = f"""
import sys
from tests.data import test_prepare as t
from rlhf_jax.data import batches, tokenizer
t._prepare("prompts", {str(tmp_path)!r}, tokenizer.train(["a"], 257))
assert t._read_all({str(tmp_path)!r}, "prompts")
assert "tensorflow" not in sys.modules
"""
  root = os.path.join(os.path.dirname(__file__), "..", "..")
  subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
