"""F1, exact match and final numbers, by hand."""

import pytest

from rlhf_jax.evals import answers


@pytest.mark.parametrize("text, references, f1", [
    ("the North Sea", ["North Sea."], 1.0),  # articles and points aside
    ("in the North Sea", ["North Sea"], 0.8),  # 2 * 2 / (3 + 2)
    ("North", ["South", "North Sea"], 2 / 3),  # the best reference
    ("sea sea", ["sea"], 2 / 3),  # a word counts as often as it is there
    ("oil", ["gas"], 0.0),
    ("", ["gas"], 0.0),
    ("The", ["a"], 1.0),  # nothing is left of either
])
def test_f1(text, references, f1):
  assert answers.token_f1(text, references) == pytest.approx(f1)


def test_exact_match_is_of_normalised_texts():
  assert answers.exact_match("The  Labour, Party", ["labour party"]) == 1
  assert answers.exact_match("Labour", ["labour party"]) == 0


@pytest.mark.parametrize("text, number", [
    ("9 * 2 = $18", "18"), ("so 5.\n#### 2,125", "2125"),
    ("#### -3.50 dollars in 7 days", "-3.5"), ("1,000.", "1000"),
    ("none", None), ("####", None),
])
def test_final_number(text, number):
  assert answers.final_number(text) == number


def test_numbers_are_compared_as_numbers():
  assert answers.same_number("It is 2,125.00", ["steps\n#### 2125"]) == 1
  assert answers.same_number("It is 2126", ["#### 2125"]) == 0
  assert answers.same_number("I do not know", ["#### 2125"]) == 0
