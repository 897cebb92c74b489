"""GPT-2's vocabulary and merges give the ids that transformers gives."""

import os
import pathlib

import pytest
import transformers

from rlhf_jax.data import tokenizer as tokenizer_lib

TEXTS = (
    "Hello world", "  two  blanks\n\n\tand a tab ",
    "caf\u00e9 na\u00efve \u4e2d\u6587 \U0001f41d",
    "def f(x):\n    return x ** 2  # code", "don't we'll they've 3.14 1,000",
    "\u00a0\u200b\ufeff", "A" * 70, "",
)
GPT2 = pathlib.Path(os.environ.get("RLHF_JAX_DATA", "")) / "gpt2_bpe"


def learnt(folder):
  """Two files of a vocabulary that is learnt here."""
  made = tokenizer_lib.train([*TEXTS, "the cat sat on the mat"] * 9, 400)
  made.bpe.model.save(str(folder))
  return folder / "vocab.json", folder / "merges.txt"


def gpt2s(folder):
  """OpenAI's own."""
  del folder
  return GPT2 / "encoder.json", GPT2 / "vocab.bpe"


@pytest.mark.parametrize(
    "files", [learnt] + [gpt2s] * ("RLHF_JAX_DATA" in os.environ))
def test_ids_are_those_of_transformers(files, tmp_path):
  vocab, merges = files(tmp_path)
  theirs = transformers.GPT2Tokenizer(vocab=str(vocab), merges=str(merges))
  ours = tokenizer_lib.load(f"{vocab},{merges}")
  for text in TEXTS:
    assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.decode(ours.encode(text)) == text
  assert ours.eos_id == theirs.eos_token_id
