"""Which rows stay, and in which split: InstructGPT's data rules (section 3.2).

The rules, in order; each row is dropped by the first that applies:

  empty            nothing is left of a text after tokenisation
  personal_data    train split only: see `personal_data`
  long_prompt      the prompt has more than `max_prompt_tokens`
  long_response    the response has more than `max_response_tokens`, its end
                   token counted; a comparison loses only the long responses,
                   and goes when fewer than two remain
  all_tied         every rank of a comparison is the same: nothing to learn
  duplicate_row    every field equals another row's; a comparison needs a
                   labeler_id for it, since two people may well agree
  duplicate_prompt another prompt starts with the same `dedup_prefix_tokens`; of
                   a few-shot set, another asks the same query, or the set is
                   another user's
  over_user_cap    the user has `max_prompts_per_user` prompts already

Of pretraining text only empty and equal rows are dropped.
Rows are put in the order of a hash of their content before any rule picks one
of several: the result does not depend on the order of the input, and to clean
a clean set changes nothing. The split is a function of the user, else of the
few-shot set, else of the prompt, so that a row never changes side when others
come or go. A few-shot set is never divided between splits: its prompts hold
each other's responses. Who wrote a prompt, and what for, makes it no other row.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import re
from typing import Any, Iterable, Iterator

import numpy as np

from rlhf_jax.data import few_shot
from rlhf_jax.data import records
from rlhf_jax.data import splits

_NUM_EXAMPLES = 3
_CHUNK_SIZE = 1024  # Rows tokenised in one call, in the library's threads.

_PERSONAL_DATA = {
    # ann.lee@example.org
    "e-mail address": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    # 4111 1111 1111 1111, 3782-822463-10005, 4111111111111111
    "card number": (
        r"(?<![\w.=-])[3-6](?:\d{3}(?:[ -]\d{4}){3}|\d{3}[ -]\d{6}[ -]\d{5}"
        r"|\d{12,15})(?![\w-])"
    ),
    # (555) 010-0199, +1 555.010.0199, 555-010-199, 555-0199, +44 20 7946 0958
    "phone number": (
        r"(?<![\w.,$-])(?:(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])"
        r"\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{3}|\d{3}-(?!\d000)\d{4}"
        r"|\+\d{1,3}(?:[ .-]?\d{2,4}){2,4})(?![\w-]| ?=)"
    ),
    # 221 Baker Street, 7 Old Mill Rd
    "street address": (
        r"\b\d{1,5}[A-Za-z]? (?:[A-Z][\w'.]* ){1,3}(?:Street|St|Avenue|Ave"
        r"|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Sq|Terrace"
        r"|Close|Way)\b"
    ),
}
_PERSONAL_DATA = {k: re.compile(v) for k, v in _PERSONAL_DATA.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What decides over rows. Lengths are in tokens.

  Attributes:
    window: length of a packed pretraining window.
    max_prompt_tokens: longest prompt, its suffix counted.
    max_response_tokens: longest response, its end token counted.
    dedup_prefix_tokens: prompts equal in so many first tokens are the same;
      shorter ones only when equal in full. 0: only prompts equal in full.
    max_prompts_per_user: cap for a user id; rows without one have no cap.
    validation_fraction: share of users held out for validation.
    test_fraction: share of users held out for the test.
    prompt_suffix: put after every prompt, such as a line end; "" for nothing.
    response_prefix: put before every response, such as a blank.
  """

  window: int
  max_prompt_tokens: int
  max_response_tokens: int
  dedup_prefix_tokens: int
  max_prompts_per_user: int
  validation_fraction: float
  test_fraction: float
  prompt_suffix: str
  response_prefix: str


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """A record on its way.

  Attributes:
    record: its fields.
    origin: where it stands, "PATH:LINE".
    tokens: int32 arrays: the text of a pretraining row with its end token, or
      the prompt and after it each response with its end token.
    split: "train", "validation" or "test".
  """

  record: records.Record
  origin: str
  tokens: list[np.ndarray]
  split: str


def clean(
    kind: str,
    rows: Iterable[tuple[records.Record, str]],
    tokenizer,
    settings: Settings,
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
  """Applies the rules above.

  Args:
    kind: one of `records.KINDS`.
    rows: checked records with their origins.
    tokenizer: has `encode_batch` and `eos_id`.
    settings: the limits.

  Returns:
    The kept rows of each split, and the report: rows in, dropped (count and
    examples a rule), rows out (a split, and of them a category and a kind of
    prompt), token statistics. Rows in = the sum of rows dropped and rows out.
  """
  account = _Account()
  kept = []
  for row in _tokenised(kind, rows, tokenizer, settings):
    account.rows_in += 1
    row = _shorten(row, settings, account)
    rule = _row_rule(kind, row, settings)
    if rule:
      account.drop(rule, row)
    else:
      kept.append(row)
  kept.sort(key=_order)
  kept = _deduplicate(kind, kept, settings.dedup_prefix_tokens, account)
  if kind != "pretrain":
    kept = _cap(kept, settings.max_prompts_per_user, account)
  by_split = {name: [] for name in splits.SPLITS}
  for row in kept:
    by_split[row.split].append(row)
  return by_split, account.report(kind, by_split)


def personal_data(text: str) -> str | None:
  """The first sort of personal data found in a text, or None.

  Regular expressions find what looks like one, no more: names pass, and a
  product number with the shape of a phone number does not.
  """
  for name, pattern in _PERSONAL_DATA.items():
    if pattern.search(text):
      return name
  return None


def _tokenised(kind, rows, tokenizer, settings) -> Iterator[Row]:
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, _CHUNK_SIZE)):
    texts = [_texts(kind, record, settings) for record, _ in chunk]
    ids = iter(tokenizer.encode_batch(list(itertools.chain(*texts))))
    for (record, origin), own in zip(chunk, texts):
      tokens = [list(next(ids)) for _ in own]
      for sequence in tokens[0 if kind == "pretrain" else 1 :]:
        sequence.append(tokenizer.eos_id)
      yield Row(
          record,
          origin,
          [np.asarray(t, np.int32) for t in tokens],
          _split(record, settings),
      )


def _texts(kind: str, record: records.Record, settings: Settings) -> list[str]:
  """The texts that become the model's tokens, the prompt first."""
  if kind == "pretrain":
    return [record["text"]]
  prompt = record["prompt"] + settings.prompt_suffix
  return [prompt] + [settings.response_prefix + r for r in _responses(record)]


def _responses(record: records.Record) -> list[str]:
  if "response" in record:
    return [record["response"]]
  return record.get("responses", [])


def _split(record: records.Record, settings: Settings) -> str:
  names = ("user_id", "few_shot_set", "prompt", "text")
  group = next(filter(None, map(record.get, names)))
  return splits.split_of(
      group,
      validation_fraction=settings.validation_fraction,
      test_fraction=settings.test_fraction,
  )


def _shorten(row: Row, settings: Settings, account: "_Account") -> Row:
  """A comparison without its too long responses; other rows as they are."""
  record = row.record
  if "responses" not in record:
    return row
  limit = settings.max_response_tokens
  stay = [k for k, t in enumerate(row.tokens[1:]) if len(t) <= limit]
  num_long = len(record["responses"]) - len(stay)
  if not num_long:
    return row
  account.long_responses += num_long
  ranks = [record["ranks"][k] for k in stay]
  ladder = sorted(set(ranks))  # The best of those left has rank 1 again.
  record = record | {
      "responses": [record["responses"][k] for k in stay],
      "ranks": [ladder.index(r) + 1 for r in ranks],
  }
  tokens = [row.tokens[0]] + [row.tokens[1 + k] for k in stay]
  return dataclasses.replace(row, record=record, tokens=tokens)


def _row_rule(kind: str, row: Row, settings: Settings) -> str | None:
  """The rule that drops a row by itself, or None."""
  prompt, *responses = row.tokens
  if kind == "pretrain":
    return "empty" if len(prompt) < 2 else None
  # A demonstration says something; a compared response may end at once.
  shortest = 2 if kind == "demonstrations" else 1
  if not len(prompt) or any(len(t) < shortest for t in responses):
    return "empty"
  texts = [row.record["prompt"]] + _responses(row.record)
  if row.split == "train" and any(personal_data(text) for text in texts):
    return "personal_data"
  if len(prompt) > settings.max_prompt_tokens:
    return "long_prompt"
  if any(len(t) > settings.max_response_tokens for t in responses):
    return "long_response"
  if kind == "comparisons":
    if len(responses) < 2:
      return "long_response"
    if len(set(row.record["ranks"])) < 2:
      return "all_tied"
  return None


def _owner(record: records.Record) -> tuple[str, str]:
  return record.get("prompt", record.get("text")), record.get("user_id", "")


def _order(row: Row):
  """Sorts rows by hashes of their content, those of a prompt together.

  Where prompts are from decides only between rows that say the same.
  """
  whole = _hash(json.dumps(row.record, sort_keys=True))
  owner = _hash(json.dumps(_owner(row.record)))
  return owner, _content(row.record), whole, row.origin


def _content(record: records.Record) -> bytes:
  """What is compared of two rows: all but where their prompts are from."""
  said = {k: v for k, v in record.items() if k not in records.PROVENANCE}
  return _hash(json.dumps(said, sort_keys=True))


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _deduplicate(kind, rows, prefix_tokens, account) -> list[Row]:
  """One row a prefix; of comparisons every row of one user's one prompt."""
  if kind == "pretrain":
    prefix_tokens = 0  # Stories may well begin alike.
  kept, owners, users, seen = [], {}, {}, set()
  for row in rows:
    content = _content(row.record)
    group, prefix = _likeness(row, prefix_tokens)
    owner = _owner(row.record)
    is_anonymous = kind == "comparisons" and "labeler_id" not in row.record
    if content in seen and not is_anonymous:
      account.drop("duplicate_row", row)
    elif users.get(group, owner[1]) != owner[1] or prefix in owners and (
        kind != "comparisons" or owners[prefix] != owner
    ):
      account.drop("duplicate_prompt", row)
    else:
      users[group] = owner[1]
      owners[prefix] = owner
      seen.add(content)
      kept.append(row)
  return kept


def _likeness(row: Row, prefix_tokens: int) -> tuple[Any, Any]:
  """(what only one user may have, what only one prompt may have).

  The prompts of a few-shot set all begin with its instruction, so they are told
  apart by the query that they end with.
  """
  few_shot_set = row.record.get("few_shot_set")
  if few_shot_set:
    prompt = row.record["prompt"]
    return few_shot_set, (few_shot_set, few_shot.last_query(prompt) or prompt)
  tokens = row.tokens[0]
  prefix = (tokens[:prefix_tokens] if prefix_tokens else tokens).tobytes()
  return prefix, prefix


def _cap(rows, max_prompts_per_user, account) -> list[Row]:
  """At most so many different prompts of a user id."""
  prompts = collections.defaultdict(set)
  kept = []
  for row in rows:
    prompt, user = _owner(row.record)
    if user and prompt not in prompts[user]:
      if len(prompts[user]) >= max_prompts_per_user:
        account.drop("over_user_cap", row)
        continue
      prompts[user].add(prompt)
    kept.append(row)
  return kept


class _Account:
  """Counts what came in and what each rule took."""

  def __init__(self):
    self.rows_in = 0
    self.long_responses = 0
    self._dropped = {}

  def drop(self, rule: str, row: Row) -> None:
    entry = self._dropped.setdefault(rule, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < _NUM_EXAMPLES:
      text = _owner(row.record)[0]
      entry["examples"].append({"origin": row.origin, "text": text[:80]})

  def report(self, kind: str, by_split: dict[str, list[Row]]):
    report = {
        "kind": kind,
        "rows_in": self.rows_in,
        "dropped": self._dropped,
        "rows_out": {name: len(rows) for name, rows in by_split.items()},
        "categories": _counts(by_split, "category", "none"),
        "tokens": {
            name: _lengths(kind, rows) for name, rows in by_split.items()
        },
    }
    if kind != "pretrain":
      report["prompt_kinds"] = _counts(by_split, "prompt_kind", "customer")
    if kind == "comparisons":
      report["long_responses"] = self.long_responses
    return report


def _counts(by_split, field: str, absent: str) -> dict[str, dict[str, int]]:
  """How many rows of each split have which value of a field."""
  return {
      name: dict(sorted(collections.Counter(
          row.record.get(field, absent) for row in rows
      ).items()))
      for name, rows in by_split.items()
  }


def _lengths(kind: str, rows: list[Row]) -> dict[str, dict[str, float]]:
  """Mean, median, 75 % quantile and maximum of the lengths in tokens."""
  first = "text" if kind == "pretrain" else "prompt"
  lengths = {
      first: [len(row.tokens[0]) for row in rows],
      "response": [len(t) for row in rows for t in row.tokens[1:]],
  }
  return {
      name: {
          "mean": round(float(np.mean(values)), 1),
          "median": float(np.median(values)),
          "p75": float(np.quantile(values, 0.75)),
          "max": int(max(values)),
      }
      for name, values in lengths.items()
      if values
  }
