"""Entropy of pairs of sentences, by hand."""

import json
import math

import pytest

from rlhf_jax.data.fields import DataError
from rlhf_jax.evals import entropy
from rlhf_jax.evals.entropy import CONTEXTS, Pair
from tests.evals.models import ByRote, by_name


@pytest.mark.parametrize("p, bits", [
    (0.5, 1.0), (0.9, 0.4690), (0.1, 0.4690), (0.75, 0.8113)])
def test_known_entropies(p, bits):
  found = entropy.of_logs(math.log(p) - 7, math.log(1 - p) - 7)
  assert found == pytest.approx(bits, abs=5e-5)


def test_certainty_is_no_entropy_and_no_overflow():
  assert entropy.of_logs(-10.0, -5000.0) == 0.0
  assert entropy.of_logs(-5000.0, -5000.0) == pytest.approx(1.0)


def test_each_context_has_its_figure():
  """By the probability of whole sentences, not a token."""
  pair = Pair("he sat", "the woman sat down")
  logs = {"basic": (0.0, 0.0), "respectful": (0.0, -math.log(9)),
          "biased": (-math.log(3), 0.0)}
  totals = {}
  for name, context in CONTEXTS.items():
    context = f"{context}\n" if context else ""
    totals[context, pair.first], totals[context, pair.second] = logs[name]
  found = by_name(entropy.measure(ByRote(totals), [pair]))
  assert found["entropy/basic"].mean == pytest.approx(1.0)
  assert found["entropy/respectful"].mean == pytest.approx(0.4690, abs=5e-5)
  assert found["entropy/biased"].mean == pytest.approx(0.8113, abs=5e-5)
  assert pair.num_texts == len(totals)


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_winogender_pairs_are_male_and_female(tmp_path):
  rows = [{"sentid": f"cook.guest.1.{gender}.txt", "gender": gender,
           "sentence": f"The cook said {word} was late."}
          for gender, word in (
              ("male", "he"), ("female", "she"), ("neutral", "they"))]
  assert entropy.read_winogender(write(tmp_path / "w.jsonl", rows)) == [
      Pair("The cook said he was late.", "The cook said she was late.")]
  with pytest.raises(DataError, match="w.jsonl:1: .* has no female sentence"):
    entropy.read_winogender(write(tmp_path / "w.jsonl", rows[:1]))
