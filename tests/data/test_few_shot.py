"""A few-shot set is K rows, each with the other K - 1 pairs in its prompt."""

import itertools
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rlhf_jax.data import few_shot
from rlhf_jax.data import records
from rlhf_jax.data import sources

PAIRS = [
    {"query": "It barks.", "response": "A dog."},
    {"query": "It gives milk.", "response": "A cow."},
    {"query": "It lays eggs.", "response": "A hen."},
]
SET = {
    "prompt_kind": "few_shot",
    "instruction": "Say which animal is meant.",
    "examples": PAIRS,
    "user_id": 7,
    "labeler_id": "ann",
    "category": "classification",
    "source": "hand",
    "license": "free",
}
FIRST = """Say which animal is meant.
Q: It gives milk.
A: A cow.
Q: It lays eggs.
A: A hen.
Q: It barks.
A:"""


def _read(tmp_path, kind, *rows):
  path = tmp_path / "f.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return list(sources.read(f"jsonl:{path}", kind))


def _set_name(row):
  return few_shot.expand(row, "prompts", "f:1")[0]["few_shot_set"]


def test_the_layout():
  assert few_shot.prompt_text(SET["instruction"], PAIRS, 0) == FIRST


def test_three_pairs_are_three_demonstrations(tmp_path):
  plain = {"prompt": "p", "response": "r"}
  rows = _read(tmp_path, "demonstrations", plain, SET)
  assert [origin for _, origin in rows[1:]] == [f"{tmp_path}/f.jsonl:2"] * 3
  sets = [record for record, _ in rows[1:]]
  assert [r["response"] for r in sets] == [p["response"] for p in PAIRS]
  for number, record in enumerate(sets):
    for place, pair in enumerate(PAIRS):
      assert pair["query"] in record["prompt"]
      assert (pair["response"] in record["prompt"]) == (place != number)
    assert few_shot.last_query(record["prompt"]) == PAIRS[number]["query"]
  shared = {
      "user_id": "7", "labeler_id": "ann", "category": "classification",
      "source": "hand", "prompt_kind": "few_shot",
      "few_shot_set": _set_name(SET),
  }
  assert sets[0] == {"prompt": FIRST, "response": "A dog."} | shared


def test_prompts_are_those_of_the_demonstrations_without_a_response(tmp_path):
  shown = [r for r, _ in _read(tmp_path, "demonstrations", SET)]
  asked = [r for r, _ in _read(tmp_path, "prompts", SET)]
  dropped = ("response", "labeler_id")
  assert asked == [
      {k: v for k, v in r.items() if k not in dropped} for r in shown
  ]


def test_an_expanded_row_stays_as_it_is(tmp_path):
  row = {"prompt": FIRST, "response": "A dog.", "prompt_kind": "few_shot"}
  assert _read(tmp_path, "demonstrations", row)[0][0] == row
  row = {"prompt": FIRST, "responses": ["a", "b"], "ranks": [1, 2],
         "prompt_kind": "few_shot", "few_shot_set": "s"}
  assert _read(tmp_path, "comparisons", row)[0][0] == row


def test_smallworld_rows_are_expanded_too():
  rows = sources.read(
      "smallworld", "prompts", smallworld=lambda kind: iter([SET]))
  assert [origin for _, origin in rows] == ["smallworld:0"] * 3


def test_tfds_rows_are_expanded_too(tmp_path):
  text = tfds.features.Text()

  class Sets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = "sets"
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=(
          tfds.features.FeaturesDict({
              "prompt_kind": text, "prompt": text, "instruction": text,
              "examples": tfds.features.Sequence(
                  {"query": text, "response": text}),
              "length": tfds.features.Scalar(np.int32),
          })))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield 0, {"prompt": "", "length": 3} | {
          k: SET[k] for k in ("prompt_kind", "instruction", "examples")}
      yield 1, {"prompt": "p", "prompt_kind": "plain", "instruction": "",
                "examples": [], "length": 0}

  builder = Sets(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare(download_dir=tmp_path / "downloads")
  rows = list(sources.read("tfds:sets/train", "prompts", root=str(tmp_path)))
  assert len(rows) == 4 and rows[0][0]["prompt"] == FIRST
  assert rows[3][0] == {"prompt": "p", "prompt_kind": "plain"}


def test_a_sets_name_goes_by_instruction_and_queries():
  answered = [pair | {"response": "A fox."} for pair in PAIRS]
  same = (SET | {"examples": PAIRS[::-1]}, SET | {"examples": answered},
          SET | {"user_id": "8", "labeler_id": "bob"})
  assert {_set_name(row) for row in same} == {_set_name(SET)}
  others = (SET | {"examples": PAIRS[:2]}, SET | {"instruction": "Say it."})
  names = [_set_name(row) for row in (SET, *others)]
  assert len(set(names)) == 3
  assert _set_name(SET | {"few_shot_set": "mine"}) == "mine"


@pytest.mark.parametrize("text", [
    "What is it?", "", "A:", "Q: What is it?", "Say it.\nQ: a\nA: b\nQ: c",
])
def test_other_prompts_have_no_last_query(text):
  assert few_shot.last_query(text) is None


def test_a_query_may_have_lines():
  pairs = [{"query": "a\nb ", "response": " c\nd"}, PAIRS[0]]
  for index in range(2):
    prompt = few_shot.prompt_text("Say it.\nWell.", pairs, index)
    query = pairs[index]["query"].strip()
    for end in "", "\n":
      assert few_shot.last_query(prompt + end) == query


def _without(row, name):
  return {k: v for k, v in row.items() if k != name}


@pytest.mark.parametrize("row,message", [
    (_without(SET, "instruction"), "no field 'instruction' among .*'examples'"),
    (_without(SET, "examples"), "no field 'examples' .*or else a 'prompt'"),
    (SET | {"instruction": 5}, r"'instruction' must be text, got 5 \(int\)"),
    (SET | {"instruction": " "}, "'instruction' is empty"),
    (SET | {"examples": "ab"}, "'examples' must be a list .* got ab"),
    (SET | {"examples": {"query": "a"}}, "'examples' must be a list"),
    (SET | {"examples": []}, r"0 example\(s\) .* at least 2: add"),
    (SET | {"examples": PAIRS[:1]}, r"1 example\(s\) .* write a 'prompt'"),
    (SET | {"examples": [*PAIRS, "Q"]}, r"examples\[3\] must be an .* got Q"),
    (SET | {"examples": [{"query": "a"}, *PAIRS]},
     r"no 'response' in examples\[0\], {\"query\": \"a\"}; each"),
    (SET | {"examples": [*PAIRS, {"response": "a"}]}, r"no 'query' in .*\[3\]"),
    (SET | {"examples": [*PAIRS, {"query": "a", "response": None}]},
     r"'examples\[3\].response' must be text, got null"),
    (SET | {"examples": [*PAIRS, {"query": "", "response": "a"}]},
     r"'examples\[3\].query' is empty"),
    (SET | {"examples": [*PAIRS, PAIRS[1]]},
     r"examples\[3\] has the query of examples\[1\], It gives milk"),
    (SET | {"prompt_kind": "plain"}, "'prompt_kind' is plain; .*'few_shot'"),
    (_without(SET, "prompt_kind"), "'prompt_kind' is null; .*'few_shot'"),
    (SET | {"few_shot_set": [1]}, "'few_shot_set' must be text"),
])
@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
def test_a_bad_set_is_named(tmp_path, kind, row, message):
  good = {"prompt": "p", "response": "r"}
  with pytest.raises(records.DataError, match=rf"f.jsonl:2: .*{message}"):
    _read(tmp_path, kind, good, row)


def test_a_set_is_no_comparison(tmp_path):
  with pytest.raises(records.DataError, match="f.jsonl:1: .*no ranked resp"):
    _read(tmp_path, "comparisons", SET)


@pytest.mark.parametrize("kind,value", list(itertools.product(
    records.KINDS[1:], ["customer", "Plain", 3, ["plain"], True])))
def test_an_unknown_kind_of_prompt_is_named(kind, value):
  row = {"prompt": "p", "response": "r", "responses": ["a", "b"],
         "ranks": [1, 2], "prompt_kind": value}
  with pytest.raises(records.DataError) as error:
    records.check(row, kind, "f:3")
  assert str(error.value).startswith(
      f"f:3: 'prompt_kind' is {records.short(value)};")
  for name in records.PROMPT_KINDS:
    assert name in str(error.value)


@pytest.mark.parametrize("kind", records.KINDS[1:])
def test_kinds_and_use_cases_are_carried(kind):
  row = {"prompt": "p", "response": "r", "responses": ["a", "b"],
         "ranks": [1, 2]}
  where = {"prompt_kind": "user_based", "use_case": "A shop wants names."}
  assert records.check(row | where, kind, "f:1").items() >= where.items()
  absent = records.check(row | dict(prompt_kind=None, use_case=""), kind, "f:1")
  assert not {"prompt_kind", "use_case"} & absent.keys()
