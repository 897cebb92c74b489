"""Perplexity of texts, and of a run's held-out pretraining text.

Texts are read window by window, each token after those before it in its
window. A tokenizer of larger tokens has fewer of them, each less likely:
between models of different tokenizers compare bits a byte.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math

from rlhf_jax.data.fields import DataError
from rlhf_jax.evals import intervals, items as items_lib, results
from rlhf_jax.evals.model import Likelihood, Model
from rlhf_jax.evals.results import Row


@dataclasses.dataclass(frozen=True)
class Text:
  text: str

  @property
  def num_texts(self) -> int:
    return 1


def measure(model: Model, items: Sequence[Text]) -> Iterator[Row]:
  """Yields the rows of `of_windows`, and `bits_per_byte` over texts."""
  found = model.text_likelihoods([item.text for item in items])
  yield from of_windows([window for of in found for window in of])
  yield results.row("bits_per_byte", intervals.ratio(
      [-sum(window.total for window in of) / math.log(2) for of in found],
      [len(item.text.encode()) for item in items]))


def of_windows(windows: Sequence[Likelihood]) -> Iterator[Row]:
  """Yields `loss`, nats a token, and `perplexity`, its exponential; intervals
  are over windows."""
  found = intervals.ratio(
      [-window.total for window in windows],
      [window.tokens for window in windows])
  yield results.row("loss", found)
  yield results.exponential("perplexity", found)


def read(path: str) -> list[Text]:
  """{text} a row of JSON lines; any other file is one text.

  Raises:
    DataError: it cannot be read, is no text, or empty.
  """
  if path.removesuffix(".gz").endswith((".jsonl", ".json")):
    return items_lib.read(
        path, lambda row, origin: Text(items_lib.text(row, "text", origin)))
  try:
    with open(path, encoding="utf-8") as file:
      text = file.read()
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror})") from None
  except UnicodeDecodeError as error:
    raise DataError(
        f"{path}: byte {error.start + 1} is not UTF-8; convert the file, or "
        "name one of JSON lines .jsonl or .jsonl.gz") from None
  if not text.strip():
    raise DataError(f"{path}: the file is empty")
  return [Text(text)]
