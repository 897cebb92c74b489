"""How near a text comes to reference answers."""

from collections.abc import Sequence
import collections
import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def normalised(text: str) -> str:
  """As SQuAD compares answers (Rajpurkar et al. 2016): lower case, without
  punctuation and articles, single blanks."""
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(text: str, references: Sequence[str]) -> float:
  """1 where the text is one of the references, normalised; else 0."""
  return float(normalised(text) in map(normalised, references))


def token_f1(text: str, references: Sequence[str]) -> float:
  """The best F1 of words shared with a reference, both normalised.

  Where either has no word left, 1 if both have none, else 0, as SQuAD 2.0 has
  it.
  """
  return max(_f1(normalised(text).split(), normalised(reference).split())
             for reference in references)


def _f1(ours: list[str], theirs: list[str]) -> float:
  if not ours or not theirs:
    return float(ours == theirs)
  shared = sum((collections.Counter(ours) & collections.Counter(theirs)
                ).values())
  return 2 * shared / (len(ours) + len(theirs))


def final_number(text: str) -> str | None:
  """What follows "####", else the last number of a text, without commas."""
  _, mark, answer = text.rpartition("####")
  found = _NUMBER.findall(answer if mark else text)
  if not found:
    return None
  number = found[0 if mark else -1].replace(",", "")
  return number.rstrip("0").rstrip(".") if "." in number else number


def same_number(text: str, references: Sequence[str]) -> float:
  """1 where the text's final number is that of a reference; else 0."""
  number = final_number(text)
  return float(number is not None
               and number in map(final_number, references))
