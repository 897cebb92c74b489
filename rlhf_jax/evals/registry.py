"""All evaluators by name, and the suites that list them.

To add one, write `measure(model, items) -> Iterator[Row]` in a module of this
folder, of what `model.Model` offers, and a function that reads its file; items
have `num_texts`, how many texts the model reads or writes for each. Then give
it a line in `EVALUATORS` with the file's place in the data folder, and its name
to a suite. To read any file of a known format, nothing need be added: it is
FAMILY:PATH, as in "multiple_choice:my_questions.jsonl".
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import importlib.util
import os
from typing import Any

from rlhf_jax.data.fields import DataError
from rlhf_jax.evals import (
    comparisons, contest, entropy, facts, generation, items as items_lib,
    judged, multiple_choice, perplexity, responses,
)

# Whom an evaluator is called with, beside its items: a `model.Model`; what a
# policy said to the held-out prompts; all policies together; a reward model.
MODEL, RESPONSES, CONTEST, REWARD_MODEL = (
    "model", "responses", "contest", "reward_model")


class LeftOut(Exception):
  """An evaluator cannot be run; says why, and what would help."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """A measurement.

  Attributes:
    about: what it measures, in a line.
    measure: yields Rows; of a subject and, with `read`, of items.
    scope: what its subject is.
    read: path -> items, where it reads a file.
    file: that file in the data folder; "" where it is given by name.
    package: what must be installed.
    data: the kind of the run's own prepared data that it needs; comparisons
      of each reward model.
    of_world: whether the run must be one of Smallworld.
  """

  about: str
  measure: Callable[..., Any]
  scope: str = MODEL
  read: Callable[[str], Sequence[Any]] | None = None
  file: str = ""
  package: str = ""
  data: str = ""
  of_world: bool = False

  def items(self, root: str, limit: int | None) -> list[Any]:
    """The items of its file, at most `limit`; [] where it reads none.

    Raises:
      LeftOut: a package, the data folder or the file is missing.
      DataError: a row of the file is not of its format.
    """
    if self.package and importlib.util.find_spec(self.package) is None:
      raise LeftOut("needs a package that is not installed: run 'pip install "
                    f"{self.package.replace('_', '-')}'")
    if self.read is None:
      return []
    path = items_lib.locate(self.file, root)
    if not os.path.exists(path):
      if not root and self in EVALUATORS.values():
        raise LeftOut(f"reads {self.file} of a data folder: give --data.root")
      raise LeftOut(f"there is no {path}" + (
          f"; relative paths are of --data.root={root}" if root else ""))
    return items_lib.spread(self.read(path), limit)


def _rows(parse) -> Callable[[str], list[Any]]:
  """Reads a file whose every row is an item."""
  return functools.partial(items_lib.read, parse=parse)


_f1, _rouge_l, _bleu = map(generation.make_measure, (
    generation.f1, generation.rouge_l, generation.bleu))
_number = generation.make_measure(generation.number, stop="\n\n")

# What reads any file: the formats are those of the functions named.
FAMILIES: dict[str, Evaluator] = {
    "perplexity": Evaluator(
        "perplexity of a text file, or of JSON lines {text}",
        perplexity.measure, read=perplexity.read),
    "multiple_choice": Evaluator(
        "accuracy on {context, choices[], label}",
        multiple_choice.measure, read=_rows(multiple_choice.parse)),
    "entropy_pairs": Evaluator(
        "entropy of pairs of sentences {first, second}",
        entropy.measure, read=_rows(entropy.parse)),
    "f1": Evaluator(
        "token F1 and exact match on {prompt, references[]}",
        _f1, read=_rows(generation.parse)),
    "bleu": Evaluator(
        "BLEU on {prompt, references[]}",
        _bleu, read=_rows(generation.parse), package="sacrebleu"),
    "rouge_l": Evaluator(
        "ROUGE-L on {prompt, references[]}",
        _rouge_l, read=_rows(generation.parse), package="rouge_score"),
    "final_number": Evaluator(
        "exact match of the final number on {prompt, references[]}",
        _number, read=_rows(generation.parse)),
    "comparisons": Evaluator(
        "accuracy of reward models on {prompt, responses[], ranks[]}",
        comparisons.measure, REWARD_MODEL, comparisons.read),
}


def _of_file(family: str, file: str, about: str, read) -> Evaluator:
  return dataclasses.replace(
      FAMILIES[family], about=about, read=read, file=f"evals/{file}.jsonl.gz")


def _samples(family: str, name: str, about: str, **settings) -> Evaluator:
  return _of_file(
      family, f"instructgpt_samples_{name}", about,
      functools.partial(generation.read_samples, **settings))


EVALUATORS: dict[str, Evaluator] = {
    # of the run's own data
    "win_rate": Evaluator(
        "how often it is preferred to the baseline, ties half",
        contest.win_rate, CONTEST, data="prompts"),
    "rating": Evaluator(
        "Likert rating by labelers, or a reward model's score",
        contest.rating, CONTEST, data="prompts"),
    "elo": Evaluator(
        "all policies of all runs on one scale",
        contest.elo, CONTEST, data="prompts"),
    "kl": Evaluator(
        "KL to the reference on own responses",
        responses.divergence, RESPONSES, data="prompts"),
    "style": Evaluator(
        "length, share that ends, distinct n-grams",
        responses.style, RESPONSES, data="prompts"),
    "gold": Evaluator(
        "Smallworld's gold score and its parts",
        judged.gold, RESPONSES, data="prompts", of_world=True),
    "metadata": Evaluator(
        "labels of Table 3 by Smallworld's rubric; Figure 4",
        judged.metadata, RESPONSES, data="prompts", of_world=True),
    "reward_model": Evaluator(
        "accuracy on validation comparisons, by group",
        comparisons.measure_held_out, REWARD_MODEL, data="comparisons"),
    "pretraining": Evaluator(
        "perplexity of held-out pretraining text",
        lambda model: perplexity.of_windows(model.held_out()), data="pretrain"),
    "facts": Evaluator(
        "Smallworld's facts as multiple choice",
        lambda model: facts.measure(model, model.facts()), of_world=True),
    # of the data folder
    "hellaswag": _of_file(
        "multiple_choice", "hellaswag", "HellaSwag, zero-shot",
        _rows(multiple_choice.parse_hellaswag)),
    "sst2": _of_file(
        "multiple_choice", "sst2", "SST-2, zero-shot",
        _rows(multiple_choice.parse_sst2)),
    "rte": _of_file(
        "multiple_choice", "rte", "RTE, zero-shot",
        _rows(multiple_choice.parse_rte)),
    "truthfulqa": Evaluator(
        "TruthfulQA MC1 and MC2", multiple_choice.measure_truths,
        read=_rows(multiple_choice.parse_truthfulqa),
        file="evals/truthfulqa.jsonl.gz"),
    "winogender": _of_file(
        "entropy_pairs", "winogender", "Winogender",
        entropy.read_winogender),
    "crows_pairs": _of_file(
        "entropy_pairs", "crows_pairs", "CrowS-Pairs",
        _rows(entropy.parse_crows_pairs)),
    "drop": _samples("f1", "drop", "DROP, zero-shot"),
    "squadv2": _samples("f1", "squadv2", "SQuADv2, zero-shot"),
    "quac": _samples("f1", "quac", "QuAC, zero-shot"),
    "fr_to_en": _samples("bleu", "fr_to_en", "WMT15 French to English"),
    "cnn_dm": _samples("rouge_l", "cnn_dm", "CNN/DM summaries"),
    "tldr": _samples("rouge_l", "tldr", "TL;DR summaries"),
    "gsm8k": _of_file(
        "final_number", "gsm8k_test", "GSM8K, zero-shot",
        _rows(generation.parse_gsm8k)),
}

# What the paper measures and nothing here can, with the reason.
UNMEASURED: Mapping[str, str] = {
    "real_toxicity": "needs a judge of toxicity (the paper asks the "
                     "Perspective API), and this package has none",
    "wsc": "its format is not known here; bring it as "
           "multiple_choice:FILE",
    "truthfulqa_generation": "needs a judge of truth (the paper asks people "
                             "and fine-tuned GPT-3 models)",
}

SUITES: dict[str, tuple[str, ...]] = {
    "paper": tuple(name for name in EVALUATORS if name != "gsm8k")
             + tuple(UNMEASURED),
    "run": tuple(name for name, of in EVALUATORS.items() if of.read is None),
    "all": (*EVALUATORS, *UNMEASURED),
}


def chosen(names: Sequence[str]) -> tuple[dict[str, Evaluator], set[str]]:
  """The evaluators that names mean.

  Args:
    names: of suites, of evaluators, or FAMILY:PATH.

  Returns:
    name -> evaluator, and those that were asked for by their own name, not by
    that of a suite.

  Raises:
    DataError: a name means nothing.
  """
  found: dict[str, Evaluator] = {}
  asked = set()
  for name in names:
    family, _, path = name.partition(":")
    if name in SUITES:
      found |= {n: EVALUATORS.get(n) for n in SUITES[name]}
    elif path and family in FAMILIES:
      found[name] = dataclasses.replace(FAMILIES[family], file=path)
      asked.add(name)
    elif name in EVALUATORS or name in UNMEASURED:
      found[name] = EVALUATORS.get(name)
      asked.add(name)
    else:
      raise DataError(
          f"--suite has no {name!r}; there are the suites "
          f"{', '.join(SUITES)}, the evaluators {', '.join(EVALUATORS)}, and "
          f"for a file of your own FAMILY:PATH with one of "
          f"{', '.join(FAMILIES)}")
  return found, asked
