"""Written answers: cut, compared, and the metric libraries' own numbers."""

import json
import sys

import pytest
import sacrebleu

from rlhf_jax.evals import generation, registry
from rlhf_jax.evals.generation import Item
from tests.evals.models import ByRote, by_name

ITEMS = [Item("q1", ("North Sea",)), Item("q2", ("gas", "oil"))]
TEXTS = ["the cat sat on the mat today", "a dog ran", "it is cold outside now",
         "no"]
REFERENCES = [["the cat sat on a mat today"], ["a dog ran away"],
              ["it is very cold outside now"], ["yes"]]


def test_a_text_ends_at_the_first_newline():
  model = ByRote(answers={"q1": "\n North Sea\nQ: next", "q2": "\n"},
                 cut=("q2",))
  measure = generation.make_measure(generation.f1)
  found = by_name(measure(model, ITEMS))
  assert (found["f1"].mean, found["exact_match"].mean) == (0.5, 0.5)
  assert (found["empty"].mean, found["cut"].mean) == (0.5, 0.5)
  assert found["f1"].n == 2


def test_reasoning_may_have_several_lines():
  model = ByRote(answers={"q": "2 + 2 = 4\n#### 4\n\nQuestion: 5 and 6?"})
  measure = registry.FAMILIES["final_number"].measure
  found = by_name(measure(model, [Item("q", ("#### 4",))]))
  assert found["exact_match"].mean == 1


def test_bleu_is_that_of_the_corpus():
  row, = generation.bleu(TEXTS, REFERENCES)
  whole = sacrebleu.corpus_bleu(TEXTS, [[of[0] for of in REFERENCES]])
  assert row.mean == pytest.approx(whole.score, abs=1e-9)
  assert 20 < row.mean < 90 and row.low < row.mean < row.high
  (again,) = generation.bleu(TEXTS, REFERENCES)
  assert row == again


def test_bleu_of_nothing_right_is_zero():
  row, = generation.bleu(["x", "y"], [["a b"], ["c d"]])
  assert row.mean == row.low == row.high == 0


def test_rouge_l_by_hand():
  # the longest common subsequence of 4 and 5 words is "the cat on mat"
  row, = generation.rouge_l(
      ["the cat on mat"], [["dogs", "the cat sat on mat"]])
  assert row.mean == pytest.approx(8 / 9)


def test_each_context_of_published_samples_is_asked_once(tmp_path):
  rows = [{"context": context, "ref_text": "a|b | a", "sample": "s"}
          for context in ("c1", "c1", "c2")]
  path = tmp_path / "s.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert generation.read_samples(str(path)) == [
      Item("c1", ("a", "b")), Item("c2", ("a", "b"))]


def test_a_missing_library_is_named_with_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "sacrebleu", None)
  evaluator = registry.EVALUATORS["fr_to_en"]
  with pytest.raises(registry.LeftOut, match="run 'pip install sacrebleu'"):
    evaluator.items("", None)
