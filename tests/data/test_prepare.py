"""Prepared once, read back as it was, refused when asked for otherwise."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from rlhf_jax.data import builders
from rlhf_jax.data import cleaning
from rlhf_jax.data import prepare as prepare_lib
from rlhf_jax.data import records
from rlhf_jax.data import sources
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
  rows = sources.read("jsonl:pretrain.jsonl", "pretrain", root=FIXTURES)
  texts = [record["text"] for record, _ in rows]
  return tokenizer_lib.train(texts + ["\n\nHuman: \n\nAssistant:"] * 9, 400)


def _prepare(kind, out_dir, tokenizer, rows=None, **changes):
  source = f"jsonl:{kind}.jsonl"
  if rows is None:
    rows = sources.read(source, kind, root=FIXTURES)
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
  rows = sources.read(f"jsonl:{kind}.jsonl", kind, root=FIXTURES)
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
      assert row.pop("file").endswith("demonstrations.jsonl")
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


_GOOD = b"".join(b'{"prompt": "number %d"}\n' % n for n in range(50))
_BAD_FILES = {
    "long": (_GOOD + b'{"prompt": "' + b"x" * 10**7 + b'"}\n',
             "f.jsonl:51: the line has 10000015 bytes"),
    "utf8": (_GOOD + b'{"prompt": "\xff"}\n' + _GOOD,
             "f.jsonl:51: byte 13 of the line is not UTF-8"),
    "null": (_GOOD + b"\0" * 512, "f.jsonl:51: byte 1 of the line is null"),
    "cut": (gzip.compress(_GOOD)[:-20], r"f.jsonl.gz:\d+: broken gzip file"),
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_a_refused_file_leaves_nothing_and_can_be_mended(
    name, tmp_path, tokenizer
):
  content, message = _BAD_FILES[name]
  is_zipped = content[:2] == b"\x1f\x8b"
  path = tmp_path / ("f.jsonl.gz" if is_zipped else "f.jsonl")

  def prepared(content, out_dir):
    path.write_bytes(content)
    rows = sources.read(f"jsonl:{path}", "prompts")
    return _prepare("prompts", out_dir, tokenizer, rows=rows)

  with pytest.raises(DataError, match=message):
    prepared(content, tmp_path / "data")
  assert not (tmp_path / "data" / "prompts").exists()
  with pytest.raises(DataError, match="no prepared prompts"):
    prepare_lib.open_split(str(tmp_path / "data"), "prompts", "train")
  good = gzip.compress(_GOOD) if is_zipped else _GOOD
  report = prepared(good, tmp_path / "data")
  assert report == prepared(good, tmp_path / "fresh")
  for mended, fresh in zip(_read_all(tmp_path / "data", "prompts"),
                           _read_all(tmp_path / "fresh", "prompts"),
                           strict=True):
    assert mended["prompt"] == fresh["prompt"]


def test_null_characters_that_a_model_wrote_are_kept(tmp_path, tokenizer):
  row = {"prompt": "p\0", "responses": ["a\0", "\0"], "ranks": [1, 2]}
  changes = {"validation_fraction": 0.0, "test_fraction": 0.0}
  _prepare("comparisons", tmp_path, tokenizer, rows=[(row, "f:1")], **changes)
  (read,) = _read_all(tmp_path, "comparisons")
  assert (read["prompt"], read["responses"]) == ("p\0", ["a\0", "\0"])


@pytest.mark.parametrize("kind", records.KINDS)
def test_rows_are_stored_as_tfds_would_store_them(kind, tokenizer):
  row = _cleaned(kind, tokenizer)["train"][0]
  if kind == "pretrain":
    row = row.tokens[0]
  features = tfds.features.FeaturesDict(builders._features(kind, row))
  stored = builders.example(kind, row)
  parse = tf_example_pb2.Example.FromString
  want = parse(features.serialize_example(features.encode_example(stored)))
  assert parse(builders.serialized(stored)) == want


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
  example = report["dropped"]["all_tied"]["examples"][0]["text"]
  example = " ".join(example.split())[:30]
  for part in ("all_tied", " comparisons.jsonl:5", example, "p75",
               "prompt, train", "generation", "English "):
    assert part in printed
  assert max(len(line) for line in printed.splitlines()) <= 110
  report = _prepare("pretrain", tmp_path, tokenizer)
  assert "windows" in prepare_lib.format_report(report)


def test_printed_sources_and_examples_are_cut(tmp_path, tokenizer):
  rows = [({"prompt": f"{n % 50} " + "a\nb " * 20, "response": "r",
            "user_id": f"u{n}", "source": f"source {n}" + "x" * 99},
           f"/somewhere/{'y' * 99}.jsonl:{n}") for n in range(60)]
  report = _prepare("demonstrations", tmp_path, tokenizer, rows=rows)
  printed = prepare_lib.format_report(report)
  assert "... and 30 more in the report" in printed
  assert "prompts per user" in printed and "/somewhere" not in printed
  assert max(len(line) for line in printed.splitlines()) <= 110


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
