"""Any bytes: a result or one message, in bounded time and memory."""

import copy
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

from hypothesis import strategies as st
import pytest

from rlhf_jax import handoff, screening
from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.records import DataError
from tests import test_handoff
from tests.hostile.conftest import ACCEPTED, ANSWERED

_ROOT = pathlib.Path(__file__).parents[2]
_FIXTURES = _ROOT / "tests" / "data" / "fixtures"
_END = tokenizer_lib.END


@st.composite
def mutations(draw, good):
  """`good` with one to four bytes or slices flipped, cut, put in or doubled."""
  data = bytearray(good)
  for _ in range(draw(st.integers(1, 4))):
    start = draw(st.integers(0, len(data)))
    end = min(len(data), start + draw(st.integers(1, 40)))
    what = draw(st.sampled_from(("flip", "cut", "insert", "double", "end")))
    if what == "flip" and start < len(data):
      data[start] ^= draw(st.integers(1, 255))
    elif what == "cut":
      del data[start:end]
    elif what == "insert":
      data[start:start] = draw(st.one_of(
          st.binary(max_size=8), st.sampled_from((
              b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"{",
              b"[" * 2000, b"\\ud800", b"1e999", b"NaN", b"9" * 5000, b",",
              b"null"))))
    elif what == "double":
      data[start:start] = data[start:end]
    else:
      del data[start:]
  return bytes(data)


def _outcome(reader, data, suffix):
  """What reading a file of these bytes comes to; a message names the file."""
  with tempfile.NamedTemporaryFile(suffix=suffix) as f:
    f.write(data)
    f.flush()
    try:
      reader(f.name)
    except DataError as error:
      assert f.name in str(error), str(error)
      assert str(error).isprintable(), str(error)
      return ANSWERED
  return ACCEPTED


def _read_rows(kind):
  return lambda path: list(sources.read(f"jsonl:{path}", kind))


def _fixture(kind):
  """The first rows of a good file: small, so that mutations hit them all."""
  lines = (_FIXTURES / f"{kind}.jsonl").read_bytes().splitlines(keepends=True)
  return b"".join(lines[:3])


@pytest.mark.parametrize("kind", records.KINDS)
def test_rows(attempt, kind):
  good = _fixture(kind)
  attempt(st.one_of(mutations(good), st.binary(max_size=200)),
          lambda data: _outcome(_read_rows(kind), data, ".jsonl"), 80)


def test_packed_rows(attempt):
  kind = "demonstrations"
  packed = gzip.compress(_fixture(kind), mtime=0)
  spoilt = st.one_of(
      mutations(packed), mutations(_fixture(kind)).map(gzip.compress),
      st.binary(max_size=60), st.binary(max_size=60).map(
          lambda data: packed[:10] + data))
  attempt(spoilt, lambda data: _outcome(
      _read_rows(kind), data, ".jsonl.gz"), 100)


def _label_readers():
  tasks = test_handoff.tasks()
  ranked = b"".join(json.dumps(row | {
      "likert": [1, 7], "metadata": [{"hallucination": True}, {}],
      "seconds": 1.5, "demonstration_rating": 6}).encode() + b"\n"
                    for row in test_handoff.ranked())
  roster = b"".join(
      json.dumps({"labeler_id": name, "group": group}).encode() + b"\n"
      for name, group in test_handoff.ROSTER.items())
  with tempfile.NamedTemporaryFile(suffix=".jsonl") as f:
    f.write(ranked)
    f.flush()
    reference = screening.read_reference(f.name)
  return {
      "ranked": (ranked, lambda path: handoff.read_ranked(
          path, tasks, test_handoff.ROSTER)),
      "roster": (roster, handoff.read_roster),
      "reference": (ranked, screening.read_reference),
      "answers": (ranked, lambda path: screening.read_answers(
          [path], reference)),
  }


@pytest.mark.parametrize("name", ["ranked", "roster", "reference", "answers"])
def test_what_people_return(attempt, name):
  good, reader = _label_readers()[name]
  assert _outcome(reader, good, ".jsonl") == ACCEPTED
  attempt(st.one_of(mutations(good), st.binary(max_size=100)),
          lambda data: _outcome(reader, data, ".jsonl"), 80)


# ------------------------------------------------------------------ tokenizers


_TEXTS = ("Hello", _END, f"x {_END} y", "\u00e9\U0001f41d", "a" * 50, "", "\0")


@pytest.fixture(name="good", scope="module")
def _good():
  own = tokenizer_lib.train(["hello world", "ab abc"] * 5, 270)
  return json.loads(own.bpe.to_str())


def _use(spec):
  """Loads a tokenizer; one that loads must be fit for any text."""
  tokenizer = tokenizer_lib.load(spec)
  for text in _TEXTS:
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.eos_id not in ids
    tokenizer.decode(ids)
  many = tokenizer.encode_batch(_TEXTS)
  assert many == [tokenizer.encode(text) for text in _TEXTS]


def test_bytes_of_a_tokenizer(attempt, good):
  data = json.dumps(good, ensure_ascii=False).encode()
  small = json.dumps(good | {"model": good["model"] | {
      "merges": [], "vocab": {_END: 0, "a": 1}}}).encode()
  attempt(st.one_of(mutations(data), mutations(small), st.binary(max_size=99)),
          lambda data: _outcome(_use, data, ".json"), 120)


def _spots(tree, path=()):
  """The paths of all values in a JSON tree; of large ones of few entries."""
  items = (tree.items() if isinstance(tree, dict) else
           enumerate(tree) if isinstance(tree, list) else ())
  for key, value in list(items)[:12]:
    yield (*path, key)
    yield from _spots(value, (*path, key))


_PARTS = (
    None, 0, -1, 1, 2**32, 2**64, 0.5, 1e308, "", "a", "\u00e9", _END, "##", [],
    {}, True, False, [_END], [["<", "|"]], "\ud7ff" * 9,
    {"type": "Lowercase"}, {"type": "NFKC"}, {"type": "Nmt"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": _END},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""},
    {"type": "Prepend", "prepend": _END},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9},
    {"type": "FixedLength", "length": 0},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always",
     "split": True},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
     "invert": False},
    {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed",
     "invert": True},
    {"type": "WordLevel", "vocab": {_END: 0, "a": 1}, "unk_token": _END},
    {"type": "WordLevel", "vocab": {_END: 0, "a": 1}, "unk_token": "?"},
    {"type": "Unigram", "vocab": [[_END, 0.0], ["a", 0.0]], "unk_id": 0,
     "byte_fallback": False},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b",
     "cleanup": True},
    {"type": "TemplateProcessing", "special_tokens": {},
     "single": [{"Sequence": {"id": "B", "type_id": 0}}],
     "pair": [{"Sequence": {"id": "A", "type_id": 0}}]},
    {"max_length": 1, "stride": 5, "strategy": "LongestFirst",
     "direction": "Right"},
    {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": 0,
     "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
)


@st.composite
def _changed(draw, good):
  """A good tokenizer.json with another value in one to three places."""
  tree = copy.deepcopy(good)
  for _ in range(draw(st.integers(1, 2))):
    *parents, last = draw(st.one_of(
        st.sampled_from(tuple(_spots(tree))), st.sampled_from((
            ("normalizer",), ("pre_tokenizer",), ("decoder",),
            ("post_processor",), ("truncation",), ("padding",)))))
    inner = tree
    for key in parents:
      inner = inner[key]
    inner[last] = copy.deepcopy(draw(st.sampled_from(_PARTS)))
  return json.dumps(tree).encode()


def test_parts_of_a_tokenizer(attempt, good):
  attempt(_changed(good), lambda data: _outcome(_use, data, ".json"), 200)


def _set(*path):
  """(name, a change of one place)."""
  *parents, last, value = path

  def change(tree):
    for key in parents:
      tree = tree[key]
    tree[last] = value
  return change


def _hole(tree):
  tree["model"]["vocab"]["!"] = 9999


def _twice(tree):
  vocab = tree["model"]["vocab"]
  vocab[max(vocab, key=vocab.get)] = vocab["a"]


def _merged_end(tree):
  """Merges that build the end from its characters."""
  vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
  tree["pre_tokenizer"]["use_regex"] = False
  merges.clear()
  for name in [n for n in vocab if len(n) > 1 and n != _END]:
    del vocab[name]
  for size in range(1, len(_END)):
    merges.append([_END[:size], _END[size]])
    vocab.setdefault(_END[:size + 1], len(vocab))
  for number, name in enumerate(vocab):
    vocab[name] = number
  tree["added_tokens"][0]["id"] = vocab[_END]


@pytest.mark.parametrize("name,change,message", [
    ("text is the end", _set("added_tokens", 0, "special", False),
     "would become the end token"),
    ("merged to the end", _merged_end, "would become the end token"),
    ("hole", _hole, "is missing"),
    ("twice", _twice, "is there twice"),
    ("cut", _set("truncation", {
        "max_length": 1, "stride": 0, "strategy": "LongestFirst",
        "direction": "Right"}), "'truncation'"),
    ("filled", _set("padding", {
        "strategy": {"Fixed": 9}, "direction": "Left",
        "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "a"}), "'padding'"),
    ("by chance", _set("model", "dropout", 0.5), "'dropout' is 0.5"),
    ("panics when read", _set("model", "continuing_subword_prefix", "long"),
     "cannot be read .range"),
    ("panics when it encodes", _set("pre_tokenizer", {
        "type": "FixedLength", "length": 0}), "cannot encode"),
    ("doubles", _set("post_processor", {
        "type": "TemplateProcessing", "special_tokens": {},
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"Sequence": {"id": "B", "type_id": 0}}]}),
     "it does not read as such"),
    ("garbles", _set("decoder", {
        "type": "WordPiece", "prefix": "##", "cleanup": True}),
     "it does not read as such"),
])
def test_a_tokenizer_from_a_stranger(good, tmp_path, name, change, message):
  del name
  path = tmp_path / "tokenizer.json"
  tree = copy.deepcopy(good)
  path.write_text(json.dumps(tree))
  tokenizer_lib.load(str(path))
  change(tree)
  path.write_text(json.dumps(tree))
  with pytest.raises(DataError, match=message):
    tokenizer_lib.load(str(path))


def test_vocabularies_with_merges(attempt, good):
  vocab = json.dumps(good["model"]["vocab"]).encode()
  merges = "\n".join(
      ["#version: 0.2", *map(" ".join, good["model"]["merges"])]).encode()
  small = json.dumps({"a": 0, "b": 1, "ab": 2, _END: 3}).encode()

  def law(drawn):
    def reader(path):
      pathlib.Path(f"{path}.txt").write_bytes(drawn[1])
      try:
        _use(f"{path},{path}.txt")
      finally:
        os.remove(f"{path}.txt")
    return _outcome(reader, drawn[0], ".json")

  files = st.one_of(
      st.tuples(mutations(vocab), st.just(merges)),
      st.tuples(st.just(vocab), mutations(merges)),
      st.tuples(mutations(small), st.just(b"a b\n")))
  attempt(files, law, 100)


# ---------------------------------------------------------------------- bombs


_READ_BOMBS = textwrap.dedent("""
    import resource, sys, time
    from rlhf_jax.data import sources
    from rlhf_jax.data.records import DataError

    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + {room}
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sys.argv[1:]:
      began = time.process_time()
      try:
        for _ in sources.json_lines(path):
          pass
        said = "read"
      except DataError as error:
        assert path in str(error) and len(str(error)) < 600
        said = str(error).removeprefix(path)
      print(f"{{time.process_time() - began:.2f}} {{said}}")
""")
_MB = 2**20


def test_bombs_take_bounded_memory_and_time(tmp_path, account):
  """In a process that may have so much memory and no more."""
  zeros = tmp_path / "zeros.jsonl.gz"  # members: 1 GB packed in no time
  packed = gzip.compress(bytes(16 * _MB), 9, mtime=0)
  zeros.write_bytes(packed * 64)
  sparse = tmp_path / "line.jsonl"
  sparse.touch()
  os.truncate(sparse, 100 * _MB)
  texts = {"brackets": b"[" * 7 * _MB, "digits": b"1" * 7 * _MB,
           "quotes": b'"' + b"\\" * 7 * _MB,
           "keys": b'{"":' * (_MB // 4)}
  for name, text in texts.items():
    (tmp_path / f"{name}.jsonl").write_bytes(text + b"\n")
  lines_of = {"blank": b" " * 999 + b"\n", "rows": b'{"a":"%0999d"}\n' % 1}
  for name, line in lines_of.items():
    (tmp_path / f"{name}.jsonl.gz").write_bytes(
        gzip.compress(line * (_MB // 999), 9, mtime=0) * 17)
  paths = [
      str(zeros), str(sparse),
      *(str(tmp_path / f"{name}.jsonl.gz") for name in lines_of),
      *(str(tmp_path / f"{name}.jsonl") for name in texts)]
  found = subprocess.run(
      [sys.executable, "-c", _READ_BOMBS.format(room=160 * _MB), *paths],
      cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
  assert found.returncode == 0, found.stderr[-2000:]
  lines = found.stdout.splitlines()
  assert len(lines) == len(paths)
  for path, line in zip(paths, lines):
    seconds, said = line.split(" ", 1)
    assert float(seconds) < 30, (path, line)
    assert said.startswith(":"), (path, line)
  for place, message in ((0, "at least 2684354"), (1, "has 104857600 bytes"),
                         (2, "unpacks to more than"),
                         (3, "unpacks to more than"), (4, "too many brackets"),
                         (5, "thousands of digits")):
    assert message in lines[place], lines[place]
  account("bombs", tried=len(paths), accepted=0, answered=len(paths))
