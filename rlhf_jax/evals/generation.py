"""Tasks whose answers are written, and compared with references.

Greedy, and cut at the first newline, as in InstructGPT's appendix D; problems
whose answers have several lines are cut where the next problem would start.
BLEU is sacrebleu's and ROUGE-L rouge-score's, both of the extra "evals".
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from rlhf_jax.evals import answers, intervals, items as items_lib, results
from rlhf_jax.evals.model import Model
from rlhf_jax.evals.results import Row


@dataclasses.dataclass(frozen=True)
class Item:
  """A prompt, and the answers that are right."""

  prompt: str
  references: tuple[str, ...]
  num_texts: int = 1


Texts = Sequence[str]
References = Sequence[Sequence[str]]


def make_measure(
    metric: Callable[[Texts, References], Iterator[Row]], stop: str = "\n"
) -> Callable[[Model, Sequence[Item]], Iterator[Row]]:
  """Builds `measure(model, items)` of a metric of (texts, references).

  Args:
    metric: yields its rows.
    stop: where a text is cut; what it begins with is stripped before.
  """

  def measure(model: Model, items: Sequence[Item]) -> Iterator[Row]:
    written = model.complete([item.prompt for item in items])
    texts = [of.text.strip().partition(stop)[0].strip() for of in written]
    yield from metric(texts, [item.references for item in items])
    yield results.share("empty", [float(not text) for text in texts])
    yield from results.fit(
        [of.is_cut for of in written], [False] * len(written))

  return measure


# --------------------------------------------------------------------- metrics


def f1(texts: Texts, references: References) -> Iterator[Row]:
  """Yields `f1` of tokens and `exact_match`, as SQuAD has them."""
  pairs = list(zip(texts, references, strict=True))
  yield results.mean("f1", [answers.token_f1(*pair) for pair in pairs])
  yield results.share(
      "exact_match", [answers.exact_match(*pair) for pair in pairs])


def number(texts: Texts, references: References) -> Iterator[Row]:
  """Yields `exact_match` of the final number."""
  yield results.share("exact_match", [
      answers.same_number(*pair)
      for pair in zip(texts, references, strict=True)])


def bleu(texts: Texts, references: References) -> Iterator[Row]:
  """Yields `bleu` of the corpus, 0 to 100, as sacrebleu's BLEU() gives it; the
  interval is a bootstrap over texts."""
  from sacrebleu.metrics import BLEU  # of an extra, and slow to import

  metric = BLEU(effective_order=True)  # of a sentence; its counts are the same
  found = [metric.sentence_score(text, list(of))
           for text, of in zip(texts, references, strict=True)]
  counts, totals = (np.array([getattr(of, name) for of in found])
                    for name in ("counts", "totals"))  # [N, 4]
  lengths = np.array([(of.sys_len, of.ref_len) for of in found])

  def of_weights(weights) -> float:
    correct, total = (list(map(int, weights @ x)) for x in (counts, totals))
    size, reference_size = map(int, weights @ lengths)
    return metric.compute_bleu(
        correct, total, size, reference_size,
        smooth_method=metric.smooth_method,
        max_ngram_order=metric.max_ngram_order).score

  n = len(found)
  low, high = intervals.bootstrap(of_weights, n)
  mean = of_weights(np.ones(n, int))
  yield results.row("bleu", dict(mean=mean, low=low, high=high, n=n))


def rouge_l(texts: Texts, references: References) -> Iterator[Row]:
  """Yields `rouge_l`, the F-measure of rouge-score's rougeL without stemming,
  the best one over a text's references."""
  from rouge_score import rouge_scorer  # of an extra, and slow to import

  scorer = rouge_scorer.RougeScorer(["rougeL"])
  yield results.mean("rouge_l", [
      max(scorer.score(reference, text)["rougeL"].fmeasure for reference in of)
      for text, of in zip(texts, references, strict=True)])


# --------------------------------------------------------------------- formats


def parse(row, origin: str) -> Item:
  """{prompt, references[]}."""
  return Item(items_lib.text(row, "prompt", origin),
              items_lib.texts(row, "references", origin))


def read_samples(path: str, separator: str = "|") -> list[Item]:
  """The published samples of InstructGPT (context, ref_text): each context is
  an item once, however many models answered it."""

  def parse_one(row, origin):
    return Item(
        items_lib.text(row, "context", origin),
        items_lib.parts(row, "ref_text", origin, separator))

  found = items_lib.read(path, parse_one)
  return list({item.prompt: item for item in found}.values())


def parse_gsm8k(row, origin: str) -> Item:
  """GSM8K's own fields: question, answer, which ends in "#### NUMBER"."""
  return Item(
      f"Question: {items_lib.text(row, 'question', origin)}\nAnswer:",
      (items_lib.text(row, "answer", origin),))
