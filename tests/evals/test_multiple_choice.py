"""Which choice a policy finds most likely, by hand."""

import math

import pytest

from rlhf_jax.data.fields import DataError
from rlhf_jax.evals import multiple_choice
from rlhf_jax.evals.multiple_choice import Item, Truths
from tests.evals.models import ByRote, by_name

ITEMS = [Item("a", (" x", " y y y y"), 1), Item("b", (" x", " z"), 1)]
TOTALS = {
    # a: the long choice is less likely as a whole, more likely a token
    ("a", " x"): -2.0, ("a", " y y y y"): -4.0,
    ("b", " x"): -1.0, ("b", " z"): -3.0,
}


def test_the_choice_is_by_the_average_over_tokens():
  found = by_name(multiple_choice.measure(ByRote(TOTALS), ITEMS))
  assert (found["accuracy"].mean, found["accuracy"].n) == (0.5, 2)
  assert found["chance"].mean == 0.5
  assert found["cut"].mean == found["left_out"].mean == 0


def test_a_tie_is_shared():
  assert multiple_choice.credit([-1, -1, -2, -1], 0) == pytest.approx(1 / 3)
  assert multiple_choice.credit([-1, -1, -2, -1], 2) == 0
  assert multiple_choice.credit([-3, -1], 1) == 1


def test_what_does_not_fit_is_left_out_and_counted():
  model = ByRote(TOTALS, left_out=(" y y y y",), cut=("b",))
  found = by_name(multiple_choice.measure(model, ITEMS))
  assert (found["accuracy"].mean, found["accuracy"].n) == (0.0, 1)
  assert (found["left_out"].mean, found["cut"].mean) == (0.5, 0.5)
  assert found["left_out"].n == 2


def test_truthfulqa_by_hand():
  # mean logs: best -1, other truth -.5, untrue -1.5 and -0.75
  items = [Truths("q", (" a", " b b"), (" c c", " d d d d"))]
  model = ByRote({("q", " a"): -1.0, ("q", " b b"): -1.0,
                  ("q", " c c"): -3.0, ("q", " d d d d"): -3.0})
  found = by_name(multiple_choice.measure_truths(model, items))
  assert found["mc1"].mean == 0  # the second untrue answer is likelier
  assert found["mc1_total"].mean == 1
  true, untrue = (sum(map(math.exp, of)) for of in (
      (-1, -0.5), (-1.5, -0.75)))
  assert found["mc2"].mean == pytest.approx(true / (true + untrue))
  e = math.exp
  assert found["mc2_total"].mean == pytest.approx(
      2 * e(-1) / (2 * e(-1) + 2 * e(-3)))
  assert found["chance"].mean == pytest.approx(1 / 3)


def test_probabilities_that_vanish_still_have_shares():
  assert multiple_choice.share_of_first([-2000.0, -2000.0], 1) == 0.5


def test_formats():
  assert multiple_choice.parse_hellaswag(
      {"ctx": "He runs", "endings": ["up.", "down."], "label": "1"}, "f:1"
  ) == Item("He runs", (" up.", " down."), 1)
  assert multiple_choice.parse_truthfulqa({
      "Question": "Why?", "Best Answer": "So", "Correct Answers": "So; Thus;",
      "Incorrect Answers": "No; So"}, "f:1"
  ) == Truths("Q: Why?\nA:", (" So", " Thus"), (" No",))
  rte = multiple_choice.parse_rte(
      {"text": "It rained.", "hypothesis": "Rain.", "label": "not_entailment"},
      "f:1")
  assert (rte.choices[rte.label], rte.num_texts) == (" False", 2)
  sst = multiple_choice.parse_sst2({"sentence": "fine", "label": 1}, "f:1")
  assert sst.choices[sst.label] == " positive"


@pytest.mark.parametrize("row, message", [
    ({"choices": ["a", "b"], "label": 0}, "f:1: no field 'context' among"),
    ({"context": "c", "choices": ["a"], "label": 0},
     "f:1: 'choices' must be a list of at least 2"),
    ({"context": "c", "choices": ["a", 2], "label": 0},
     r"f:1: 'choices\[1\]' must be text"),
    ({"context": "c", "choices": ["a", "b"], "label": 2},
     r"f:1: 'label' is 2; it is one of \[0, 1\]"),
])
def test_a_bad_row_is_named(row, message):
  with pytest.raises(DataError, match=message):
    multiple_choice.parse(row, "f:1")
