"""What evaluators see of a policy: texts in, numbers and texts out.

An evaluator knows neither mesh nor config nor tokenizer. A test, or a model
that runs elsewhere, need only have these three methods.
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Of a text after a context.

  Attributes:
    total: its log-probability in nats.
    tokens: how many it has, at least 1.
    is_cut: whether the context's beginning did not fit.
  """

  total: float
  tokens: int
  is_cut: bool = False

  @property
  def mean(self) -> float:
    """Nats a token."""
    return self.total / self.tokens


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a policy wrote.

  Attributes:
    text: without the end.
    is_cut: whether the prompt's beginning did not fit.
  """

  text: str
  is_cut: bool = False


class Model(Protocol):
  """A policy of a run."""

  def likelihoods(
      self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | None]:
    """Of the second text of each pair after the first, which may be "": then
    it stands at the beginning of a document. None where it does not fit into
    the context, or has no token."""

  def text_likelihoods(
      self, texts: Sequence[str]) -> list[list[Likelihood]]:
    """Of each text, read as a document window by window."""

  def complete(self, prompts: Sequence[str]) -> list[Completion]:
    """The most likely next token, again and again, to the end or the most
    tokens that there may be."""
