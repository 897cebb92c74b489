"""What came in, what each rule took, and what is left: a report of numbers.

All of it is the same for the rows in any order, but for the line numbers of
the examples.
"""

import collections
import heapq
import itertools
from typing import Any

import numpy as np
import py3langid

from rlhf_jax.data import personal
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data.rows import Row

_NUM_EXAMPLES = 3
_EXAMPLE_CHARS = 80
_NUM_LANGUAGE_ROWS = 2000
_LANGUAGE_CHARS = 4000  # Of each; more says no more about a language.
_NUM_GROUPS = 50  # Categories or sources with statistics of their own.
OTHER_GROUPS = "(others)"


class Account:
  """Counts rows while they are cleaned.

  Args:
    kind: one of `records.KINDS`.
  """

  def __init__(self, kind: str):
    self._kind = kind
    self._rows_in = 0
    self._long_responses = 0
    self._dropped = collections.Counter()
    self._examples = collections.defaultdict(lambda: _Lowest(_NUM_EXAMPLES))
    self._sample = _Lowest(_NUM_LANGUAGE_ROWS)

  def enter(self, row: Row, num_long_responses: int = 0) -> None:
    """A row comes in, without so many of its responses."""
    self._rows_in += 1
    self._long_responses += num_long_responses
    text = rows_lib.prompt(row.record)[:_LANGUAGE_CHARS]
    self._sample.add(row.content, text)

  def drop(self, rule: str, row: Row) -> None:
    """A row that came in goes."""
    self._dropped[rule] += 1
    self._examples[rule].add(row.content, row)

  def report(self, by_split: dict[str, list[Row]]) -> dict[str, Any]:
    """The account, given the kept rows of each split.

    Returns:
      A dict that JSON can hold:
        kind, rows_in
        dropped: rule -> count and three examples (origin, text), the text cut
          and without what looks like personal data.
        rows_out: split -> count. With those dropped, this makes up rows_in.
        languages: see `_languages`.
        users: split -> number of users and their mean number of prompts.
        categories: split -> category -> rows; "none" where a row has none.
        prompt_kinds: the same of kinds of prompts, "customer" where a row has
          none; not of pretraining text.
        tokens: split -> field -> statistics, as in the paper's Table 9.
        tokens_by_category, tokens_by_source: group -> field -> statistics
          over all splits (Tables 10 and 11); {} where no row has one.
        long_responses: of comparisons, the responses taken away.
    """
    kept = list(itertools.chain(*by_split.values()))
    each = lambda f: {name: f(rows) for name, rows in by_split.items()}
    report = {
        "kind": self._kind,
        "rows_in": self._rows_in,
        "dropped": {
            rule: {
                "count": self._dropped[rule],
                "examples": [
                    _example(rule, row) for row in self._examples[rule].values()
                ],
            }
            for rule in sorted(self._dropped)
        },
        "rows_out": each(len),
        "languages": _languages(self._sample.values()),
        "users": each(_users),
        "categories": each(lambda rows: _count(rows, "category", "none")),
        "tokens": each(self._lengths),
        "tokens_by_category": self._lengths_by("category", kept),
        "tokens_by_source": self._lengths_by("source", kept),
    }
    if self._kind != "pretrain":
      report["prompt_kinds"] = each(
          lambda rows: _count(rows, "prompt_kind", "customer"))
    if self._kind == "comparisons":
      report["long_responses"] = self._long_responses
    return report

  def _lengths(self, rows: list[Row]) -> dict[str, dict[str, float]]:
    """Statistics of the lengths in tokens of prompts (texts) and responses."""
    first = "text" if self._kind == "pretrain" else "prompt"
    lengths = {
        first: [len(row.tokens[0]) for row in rows],
        "response": [len(t) for row in rows for t in row.tokens[1:]],
    }
    return {name: _describe(values) for name, values in lengths.items()
            if values}

  def _lengths_by(self, field: str, rows: list[Row]):
    """Field's value -> statistics, of the most frequent values first."""
    groups = collections.defaultdict(list)
    for row in rows:
      groups[row.record.get(field, "none")].append(row)
    if groups.keys() <= {"none"}:
      return {}
    names = sorted(groups, key=lambda name: (-len(groups[name]), name))
    found = {name: self._lengths(groups[name]) for name in names[:_NUM_GROUPS]}
    others = [row for name in names[_NUM_GROUPS:] for row in groups[name]]
    return found | ({OTHER_GROUPS: self._lengths(others)} if others else {})


class _Lowest:
  """The so many values with the lowest keys, whatever order they come in."""

  def __init__(self, size: int):
    self._size = size
    self._heap = []  # (-key, -number, value): the highest key on top.
    self._number = itertools.count()

  def add(self, key: bytes, value: Any) -> None:
    item = (-int.from_bytes(key), -next(self._number), value)
    if len(self._heap) < self._size:
      heapq.heappush(self._heap, item)
    elif item > self._heap[0]:
      heapq.heapreplace(self._heap, item)

  def values(self) -> list[Any]:
    """Those values, by key; of equal keys the first to come."""
    return [value for _, _, value in sorted(self._heap, reverse=True)]


def _example(rule: str, row: Row) -> dict[str, str]:
  """Where a dropped row stands, and the beginning of its prompt or text.

  Of personal data the place where it was.
  """
  text = rows_lib.prompt(row.record)
  if rule == "personal_data":
    texts = [text] + rows_lib.responses(row.record)
    text = next(t for t in texts if personal.find(t))
    name = personal.find(text)
    text = personal.redact(text)
    start = max(0, text.index(f"[{name}]") - _EXAMPLE_CHARS // 8)
    text = "..." * bool(start) + text[start:]
  # Cut last: half an address would not be found.
  return {"origin": row.origin, "text": personal.redact(text)[:_EXAMPLE_CHARS]}


def _languages(texts: list[str]) -> dict[str, Any]:
  """The share of each language among a sample of the rows in.

  The paper reports 96 % English by langid.py (appendix A.4). The shortest
  texts are often given to a wrong language; "zxx" is no language.

  Args:
    texts: prompts, or pretraining texts.

  Returns:
    `sampled`, the number of texts, and `shares`: ISO 639 code -> share of
    them, in order of size.
  """
  counts = collections.Counter(
      py3langid.classify(text)[0] for text in texts
  )
  ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return {
      "sampled": len(texts),
      "shares": {code: round(n / len(texts), 4) for code, n in ordered},
  }


def _users(rows: list[Row]) -> dict[str, float]:
  """Users and their mean number of prompts (Table 8), of rows with a user."""
  prompts = {row.owner: row.record["user_id"] for row in rows
             if "user_id" in row.record}
  num_users = len(set(prompts.values()))
  mean = round(len(prompts) / num_users, 2) if num_users else 0.0
  return {"users": num_users, "prompts_per_user": mean}


def _count(rows: list[Row], field: str, absent: str) -> dict[str, int]:
  """How many rows have which value of a field."""
  found = collections.Counter(row.record.get(field, absent) for row in rows)
  return dict(sorted(found.items()))


def _describe(values: list[int]) -> dict[str, float]:
  """Count, mean, sample standard deviation, extremes and quartiles."""
  array = np.asarray(values, np.float64)
  low, p25, p50, p75, high = np.quantile(array, (0, 0.25, 0.5, 0.75, 1))
  return {
      "count": len(values),
      "mean": round(float(array.mean()), 1),
      "std": round(float(array.std(ddof=1)), 1) if len(values) > 1 else 0.0,
      "min": int(low),
      "p25": float(p25),
      "p50": float(p50),
      "p75": float(p75),
      "max": int(high),
  }
