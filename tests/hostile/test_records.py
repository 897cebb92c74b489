"""Any row: a checked record, or one message with its file and line."""

import json
import re
import tempfile

from hypothesis import strategies as st
import numpy as np
import pytest

from rlhf_jax.data import cleaning
from rlhf_jax.data import prepare as prepare_lib
from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data import splits
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.data.records import DataError
from tests.hostile.conftest import ACCEPTED, ANSWERED

SETTINGS = cleaning.Settings(
    window=4, max_prompt_tokens=400, max_response_tokens=300,
    dedup_prefix_tokens=8, max_prompts_per_user=3, validation_fraction=0.1,
    test_fraction=0.1, prompt_suffix="\n", response_prefix="")

texts = st.one_of(
    st.sampled_from((
        "", " ", "a", "b", "\x00", "\x1b[2J", "\ud800", "x\udfff", "\ufeff",
        "\u202e", "e\u0301", "\U0010ffff", "../../x", "/etc/passwd", "..",
        "<|endoftext|>", "x\nQ: y\nA:", "a@b.example", "1" * 5000, "x" * 5000)),
    st.text(alphabet=st.characters(), max_size=12))
good_texts = st.one_of(
    st.sampled_from((
        "a", "b", "a\x00", "\x1b[2J", "\ufeff", "\u202e", "e\u0301",
        "\U0010ffff", "../../x", "/etc/passwd", "..", "<|endoftext|>",
        "x\nQ: y\nA:", "a@b.example", "1" * 5000, "x" * 5000)),
    st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Z")),
            min_size=1, max_size=12))
numbers = st.one_of(
    st.sampled_from((0, -0.0, 1, 2, 2**31, 2**64, -1, 1.0, 1.5, True,
                     float("nan"), float("inf"), 10**4000)),
    st.integers(), st.floats())
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6)
ranks = st.one_of(
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.lists(st.one_of(numbers, texts), max_size=5), json_values)
responses = st.one_of(
    st.lists(texts, min_size=2, max_size=5), st.lists(json_values, max_size=3),
    json_values)
pairs = st.lists(
    st.one_of(st.fixed_dictionaries({"query": texts, "response": texts}),
              json_values), max_size=4)
often_texts = st.one_of(texts, texts, texts, json_values)
_FIELDS = {
    **dict.fromkeys(
        ("text", "prompt", "response", "user_id", "labeler_id", "labeler",
         "labeler_group", "category", "domain", "source", "use_case",
         "few_shot_set", "instruction"), often_texts),
    "responses": responses, "ranks": ranks, "metadata": json_values,
    "prompt_kind": st.one_of(
        st.sampled_from(records.PROMPT_KINDS), json_values),
    "examples": st.one_of(pairs, json_values, st.fixed_dictionaries(
        {"query": st.lists(texts, max_size=3),
         "response": st.lists(texts, max_size=3)})),
}
_USUAL = {
    "pretrain": ("text",), "demonstrations": ("prompt", "response"),
    "comparisons": ("prompt", "responses", "ranks"), "prompts": ("prompt",)}


@st.composite
def good_rows(draw, kind):
  """Rows of a kind with nothing wrong but what their texts are."""
  names = (*records.text_fields(kind), *draw(st.sets(st.sampled_from((
      "user_id", "labeler_id", "category", "source", "use_case",
      "few_shot_set")), max_size=3)))
  row = {name: draw(good_texts) for name in names}
  if kind == "comparisons":
    number = draw(st.integers(2, 5))
    row["responses"] = draw(st.lists(
        st.one_of(good_texts, st.just("")), min_size=number, max_size=number))
    row["ranks"] = draw(st.lists(
        st.integers(1, 9), min_size=number, max_size=number))
    row["metadata"] = draw(json_values)
  elif kind != "pretrain" and draw(st.booleans()):
    row |= {"prompt_kind": "few_shot", "instruction": draw(good_texts),
            "examples": draw(st.lists(
                st.fixed_dictionaries(
                    {"query": good_texts, "response": good_texts}),
                min_size=2, max_size=4,
                unique_by=lambda pair: pair["query"].strip()))}
    del row["prompt"]
  return row


@st.composite
def rows(draw, kind):
  """Rows of a kind, few-shot sets and anything else, good and bad."""
  shape = draw(st.sampled_from(
      ("good", "good", "good", "usual", "usual", "set", "any")))
  if shape == "good":
    return draw(good_rows(kind))
  if shape == "any":
    return draw(json_values)
  usual = ("instruction", "examples") if shape == "set" else _USUAL[kind]
  names = set(usual) | draw(st.sets(st.sampled_from(sorted(_FIELDS)),
                                    max_size=3))
  if draw(st.integers(0, 9)) == 0:
    names -= {draw(st.sampled_from(sorted(names)))}
  row = {name: draw(_FIELDS[name]) for name in sorted(names)}
  if shape == "set":
    row["prompt_kind"] = "few_shot"
    row.pop("prompt", None)
  return row


@st.composite
def lines(draw, kind):
  """JSON of a row, now and then spoilt as only text can be."""
  line = json.dumps(draw(rows(kind)), ensure_ascii=draw(st.booleans()))
  spoil = draw(st.integers(0, 19))
  if spoil == 0:
    depth = draw(st.sampled_from((33, 900, 980, 2000, 10**5)))
    line = '{"metadata":' + "[" * depth + "]" * depth + "," + line[1:]
  if spoil == 1:
    line = line.replace("}", ', "prompt": "again", "ranks": [2, 1]}', 1)
  if spoil == 2:
    line = line.replace("1", draw(st.sampled_from(
        ("1e400", "-0", "1" * 5000, "NaN", "01", "+1"))), 1)
  if spoil == 3:
    line = line[:draw(st.integers(0, len(line)))]
  return line.encode("utf-8", "surrogatepass")


def read(kind, data):
  """(records with origins or None, message or None) of a file's bytes."""
  with tempfile.NamedTemporaryFile(suffix=".jsonl") as f:
    f.write(data)
    f.flush()
    try:
      return list(sources.read(f"jsonl:{f.name}", kind)), None
    except DataError as error:
      check_message(str(error), f.name)
      return None, str(error)


def check_message(message, path):
  """One line that names file and line and can be printed anywhere."""
  assert re.match(re.escape(path) + r"(:[1-9]\d*)?: \S", message), message
  assert message.isprintable(), message
  assert len(message) < 600, message


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer():
  return tokenizer_lib.train(["hello world", "a b"] * 5, 280)


@pytest.mark.parametrize("kind", records.KINDS)
def test_a_line_is_a_record_or_a_message(attempt, kind):
  def law(line):
    found, message = read(kind, line + b"\n")
    if message:
      return ANSWERED
    for record, origin in found:
      assert origin.endswith(":1")
      assert records.check(record, kind, origin) == record
      for name in records.text_fields(kind):
        assert record[name].strip() and record[name].encode()
      if kind == "comparisons":
        assert len(record["ranks"]) == len(record["responses"]) >= 2
        assert all(type(rank) is int and 1 <= rank < 2**31
                   for rank in record["ranks"])
    return ACCEPTED

  attempt(lines(kind), law, 100)


@pytest.mark.parametrize("kind", records.KINDS)
def test_what_is_accepted_comes_back_as_it_was(attempt, kind, tokenizer):
  """Cleaned, written, opened: every text is one that came in."""
  def law(many):
    kept = [found for line in many for found in read(kind, line)[0] or ()]
    with tempfile.TemporaryDirectory() as folder:
      try:
        report = prepare_lib.prepare(
            kind, source_rows=iter(kept), source="jsonl:x", out_dir=folder,
            tokenizer=tokenizer, settings=SETTINGS)
      except DataError as error:
        assert str(error).isprintable()
        return ANSWERED
      assert prepare_lib.format_report(report).replace("\n", "").isprintable()
      check_splits(kind, folder, [record for record, _ in kept], tokenizer)
    return ACCEPTED

  attempt(st.lists(lines(kind), min_size=1, max_size=8), law, 25)


def check_splits(kind, folder, came_in, tokenizer):
  def inside(tokens):
    assert tokens.dtype == np.int32
    assert ((0 <= tokens) & (tokens < tokenizer.vocab_size)).all()

  for split in splits.SPLITS:
    for row in prepare_lib.open_split(folder, kind, split):
      if kind == "pretrain":
        inside(row["tokens"])
        continue
      inside(row["prompt_tokens"])
      told = tokenizer.decode(row["prompt_tokens"])
      assert told == row["prompt"] + SETTINGS.prompt_suffix
      names = records.text_fields(kind) + records.optional_fields(kind)
      fields = {name: row[name] for name in names}
      alike = [record for record in came_in if fields == {
          name: record.get(name, "") for name in names}]
      assert alike
      many = row.get("response_tokens", [])
      for tokens in many if kind == "comparisons" else [many] * bool(len(many)):
        inside(tokens)
        assert tokens[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in tokens[:-1]
      if kind == "comparisons":
        for response, tokens in zip(row["responses"], many, strict=True):
          assert tokenizer.decode(tokens) == response
        assert any(set(row["responses"]) <= set(record["responses"])
                   for record in alike)


@pytest.mark.parametrize("ranks_text,message", [
    ("[1, 2.0]", "rank 2.0"), ("[1, true]", "rank true"),
    ('[1, "2"]', "rank 2"), ("[1, 1e400]", "rank Infinity"),
    ("[1, NaN]", "rank NaN"), ("[1, -0]", "rank 0"), ("[1, 2, 3]", "3 ranks"),
    ("[1]", "1 ranks"), ("[]", "0 ranks"), ("[1, 2147483648]", "rank 2147"),
    ("[[1], [2]]", r"rank \[1\]"), ("null", "must be a list"),
    ('{"a": 1}', "must be a list")])
def test_ranks_are_whole_numbers(ranks_text, message):
  line = ('{"prompt": "p", "responses": ["a", "b"], "ranks": %s}\n'
          % ranks_text).encode()
  assert re.search(message, read("comparisons", line)[1])
  assert re.search(message, read(
      "demonstrations", line.replace(b"1", b"1", 1))[1])


@pytest.mark.parametrize("line,message", [
    ('{"prompt": "\\ud800"}', "half a surrogate pair"),
    ('{"prompt": "p", "user_id": "\\udfff"}', "half a surrogate pair"),
    ('{"prompt": "p", "prompt_kind": "\\u001b[2J"}', r"x1b\[2J"),
    ('{"prompt_kind": "few_shot", "instruction": "i", "examples":'
     ' {"query": ["a", "b", "c"], "response": ["x", "y"]}}', "must be a list")])
def test_what_no_file_or_terminal_should_get(line, message):
  assert re.search(message, read("prompts", line.encode() + b"\n")[1])


def test_metadata_too_deep_to_write_again():
  row = ('{"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2],'
         ' "metadata": %s%s}\n')
  for depth in (33, 500, 800):
    deep = (row % ("[" * depth, "]" * depth)).encode()
    message = read("comparisons", deep)[1]
    assert "'metadata' is nested more than 32 deep" in message
  assert read("comparisons", (row % ("[" * 32, "]" * 32)).encode())[0]
