"""Rows come in whole, and a bad one is named by file and line."""

import gzip
import json
import os
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rlhf_jax.data import records
from rlhf_jax.data import sources

FIXTURES = os.path.join(os.path.dirname(__file__), "fixtures")
PAIR = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}


def _read(path, kind, **kwargs):
  return list(sources.read(f"jsonl:{path}", kind, **kwargs))


def _write(path, *lines):
  path.write_bytes(b"\n".join(lines) + b"\n")
  return path


@pytest.mark.parametrize("kind", records.KINDS)
def test_fixtures_of_every_kind_are_read_with_their_lines(kind):
  rows = _read(f"{kind}.jsonl", kind, root=FIXTURES)
  path = os.path.join(FIXTURES, f"{kind}.jsonl")
  with open(path, encoding="utf-8") as f:
    raw = [json.loads(line) for line in f]
  assert [origin for _, origin in rows] == [
      f"{path}:{n + 1}" for n in range(len(raw))
  ]
  for (record, _), row in zip(rows, raw):
    for name in ("text", "prompt", "response", "responses", "ranks"):
      assert record.get(name) == row.get(name)
    assert "license" not in record


def test_globs_lists_and_gzip_name_the_same_rows(tmp_path):
  for name in ("a", "b"):
    with open(os.path.join(FIXTURES, "prompts.jsonl"), "rb") as f:
      (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(f.read()))
  root = str(tmp_path)
  by_glob = _read("*.gz", "prompts", root=root)
  assert by_glob == _read("a.jsonl.gz, b.jsonl.gz", "prompts", root=root)
  assert len(by_glob) == 2 * 7


def test_ids_become_text_and_null_is_absent():
  row = {"prompt": "p", "user_id": 7, "category": None, "other": []}
  assert records.check(row, "prompts", "f:1") == {"prompt": "p", "user_id": "7"}


@pytest.mark.parametrize("field,value,name", [
    ("labeler", "w1", "labeler_id"), ("labeler", 3, "labeler_id"),
    ("scenario", "chat", "category"), ("domain", "Law", "category"),
])
def test_other_names_of_a_field_are_read_where_its_own_is_absent(
    field, value, name):
  record = records.check(PAIR | {field: value}, "comparisons", "f:1")
  assert record == PAIR | {name: str(value)}
  both = PAIR | {field: value, name: "own"}
  assert records.check(both, "comparisons", "f:1") == PAIR | {name: "own"}
  empty = PAIR | {field: value, name: ""}
  assert records.check(empty, "comparisons", "f:1") == record
  with pytest.raises(records.DataError, match=f"'{field}' must be text"):
    records.check(PAIR | {field: ["x"]}, "comparisons", "f:1")


def test_smallworld_rows_come_from_the_given_function():
  rows = sources.read(
      "smallworld", "pretrain", smallworld=lambda kind: iter([{"text": kind}])
  )
  assert list(rows) == [({"text": "pretrain"}, "smallworld:0")]


def test_tfds_rows_equal_json_rows(tmp_path):
  class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = "pairs"
    code_path = None

    def _info(self):
      texts = tfds.features.Sequence(tfds.features.Text())
      return tfds.core.DatasetInfo(builder=self, features=(
          tfds.features.FeaturesDict({
              "prompt": tfds.features.Text(),
              "user_id": tfds.features.Text(),
              "responses": texts,
              "ranks": tfds.features.Sequence(np.int32),
          })))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield 0, PAIR | {"user_id": ""}

  builder = Pairs(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare(download_dir=tmp_path / "downloads")
  rows = sources.read("tfds:pairs/train", "comparisons", root=str(tmp_path))
  assert list(rows) == [(PAIR, "tfds:pairs/train:0")]
  for name in ("nothing/train", "pairs/nothing", "pairs"):
    with pytest.raises(records.DataError, match="tfds:|TFDS dataset"):
      list(sources.read(f"tfds:{name}", "comparisons", root=str(tmp_path)))


@pytest.mark.parametrize(
    "kind,line,message",
    [
        ("prompts", b'{"prompt": "p"', "not JSON .*column .*one JSON object"),
        ("prompts", b'{"' + b"x" * 10**6 + b'": 1}', "among .{,80}; a row of"),
        ("prompts", b'{"prompt": "' + b" " * 10**6 + b'"}', "is empty .{,90};"),
        ("prompts", b'["p"]', r"expected a JSON object, got \[\"p\"\]"),
        ("prompts", b'{"text": "p"}', "no field 'prompt' among .'text'."),
        ("prompts", b'{"prompt": 5}', r"'prompt' must be text, got 5 \(int\)"),
        ("prompts", b'{"prompt": " \\n"}', "'prompt' is empty"),
        ("prompts", b'{"prompt": "\\ud800"}', "half a surrogate pair"),
        ("prompts", b'{"prompt": "\xff"}', "byte 13 of the line is not UTF-8"),
        ("prompts", b'{"prompt": "a\0b"}', "byte 14 of the line is null"),
        ("prompts", b"\0" * 99, "byte 1 of the line is null; the file is dam"),
        ("prompts", "{}".encode("utf-16"), "byte 1 of the line is not UTF-8"),
        ("prompts", "{}".encode("utf-16-le"), "null; .* convert it with iconv"),
        ("prompts", b"[" * 99999, "not JSON .too many brackets"),
        ("prompts", b'{"prompt": ' + b"9" * 9999 + b"}", "not JSON .*digits"),
        ("prompts", b'{"prompt": "p", "user_id": true}', "'user_id' must be"),
        ("pretrain", b'{"text": ""}', "'text' is empty"),
        ("demonstrations", b'{"prompt": "p", "response": ""}', "'response' is"),
    ],
)
def test_a_bad_row_is_named(tmp_path, kind, line, message):
  good = {"text": "t", "prompt": "p", "response": "r"}
  path = _write(tmp_path / "f.jsonl", json.dumps(good).encode(), line)
  with pytest.raises(records.DataError, match=f"f.jsonl:2: .*{message}"):
    _read(path, kind)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"ranks": [1]}, r"2 responses but 1 ranks \(\[1\]\)"),
        ({"ranks": [0, 1]}, r"rank 0 in \[0, 1\]; ranks are whole numbers"),
        ({"ranks": [1, 1.5]}, "rank 1.5"),
        ({"ranks": [1, True]}, "rank true"),
        ({"ranks": [1, 2**31]}, "rank 2147483648 in"),
        ({"ranks": "12"}, "'ranks' must be a list, got 12"),
        ({"responses": "ab"}, "'responses' must be a list"),
        ({"responses": ["a"], "ranks": [1]}, "at least 2"),
        ({"responses": ["a", 1]}, r"'responses\[1\]' must be text"),
        ({"responses": ["a", 2]}, r"'responses\[1\]' must be text"),
    ],
)
def test_a_bad_ranking_is_named(change, message):
  with pytest.raises(records.DataError, match=f"f:3: .*{message}"):
    records.check(PAIR | change, "comparisons", "f:3")


def test_bad_files_are_named(tmp_path):
  _write(tmp_path / "empty.jsonl", b"")
  text = b"".join(b'{"prompt": "%d"}\n' % n for n in range(20000))
  (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(text)[:-20000])
  (tmp_path / "not.jsonl.gz").write_bytes(text)
  for name, message in (
      ("empty.jsonl", "empty.jsonl: the file is empty"),
      ("cut.jsonl.gz", r"cut.jsonl.gz:\d+: broken gzip file"),
      ("not.jsonl.gz", "not.jsonl.gz:1: broken gzip file"),
      ("none*.jsonl", "no file matches '.*none.*relative paths start from"),
      ("none.jsonl", "no file matches"),
  ):
    with pytest.raises(records.DataError, match=message):
      _read(name, "prompts", root=str(tmp_path))


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_a_row_of_ten_megabytes_is_named_with_its_size(tmp_path, opener):
  path = str(tmp_path / ("f.jsonl.gz" if opener is gzip.open else "f.jsonl"))
  with opener(path, "wb") as f:
    f.write(b'{"prompt": "p"}\n{"prompt": "' + b"x" * 10**7 + b'"}\n')
  message = "f.jsonl.*:2: the line has 10000015 bytes, more than the 8388608"
  with pytest.raises(records.DataError, match=message + ".*split its text"):
    _read(path, "prompts")


@pytest.mark.parametrize("end", [b"", b"\n", b"\n{}\n"])
def test_the_limit_of_a_line_is_exact(tmp_path, monkeypatch, end):
  line = b'{"prompt": "p"}'
  path = tmp_path / "f.jsonl"
  path.write_bytes(line + end)
  size = len(line) + bool(end)
  monkeypatch.setattr(sources, "MAX_LINE_BYTES", size)
  rows = sources.read(f"jsonl:{path}", "prompts")
  assert next(rows)[0] == {"prompt": "p"}
  monkeypatch.setattr(sources, "MAX_LINE_BYTES", size - 1)
  message = f"f.jsonl:1: the line has {size} bytes, more than the {size - 1}"
  with pytest.raises(records.DataError, match=message):
    _read(path, "prompts")


def test_an_endless_line_takes_bounded_memory(tmp_path):
  path = tmp_path / "f.jsonl.gz"
  with gzip.open(path, "wb", compresslevel=1) as f:
    for _ in range(200):
      f.write(b"x" * 10**6)
  tracemalloc.start()
  try:
    with pytest.raises(records.DataError, match="has 200000000 bytes"):
      _read(path, "prompts")
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 5 * sources.MAX_LINE_BYTES


@pytest.mark.parametrize("source", ["", "jsonl:", "csv:a", "a.jsonl", "tfds:"])
def test_an_unknown_source_lists_the_known_forms(source):
  with pytest.raises(records.DataError, match="'jsonl:PATH"):
    list(sources.read(source, "prompts"))


def test_a_fingerprint_changes_with_the_content(tmp_path):
  path = _write(tmp_path / "f.jsonl", b'{"prompt": "p"}')
  before = sources.fingerprint("jsonl:f.jsonl", root=str(tmp_path))
  assert before == sources.fingerprint("jsonl:f.jsonl", root=str(tmp_path))
  _write(path, b'{"prompt": "q"}')
  assert before != sources.fingerprint("jsonl:f.jsonl", root=str(tmp_path))
  assert sources.fingerprint("smallworld") == "smallworld"


def test_a_comparison_as_a_demonstration_is_its_best_response():
  row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}
  record = records.check(row, "demonstrations", "x:1")
  assert record == {"prompt": "p", "response": "b"}
