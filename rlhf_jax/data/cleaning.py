"""Which rows stay, and in which split: InstructGPT's data rules (section 3.2).

The rules, in order; each row is dropped by the first that applies::

  empty            nothing is left of a text after tokenisation
  personal_data    train split only: see `personal.find`
  long_prompt      the prompt has more than `max_prompt_tokens`
  long_response    the response has more than `max_response_tokens`, its end
                   token counted; a comparison loses only the long responses,
                   and goes when fewer than two remain
  all_tied         every rank of a comparison is the same: nothing to learn
  duplicate_row    every field equals another row's; a comparison needs a
                   labeler_id for it, since two people may well agree
  duplicate_prompt another prompt starts with the same `dedup_prefix_tokens`; of
                   a few-shot set, another asks the same query, or the set, or
                   one with a query in common, is another user's
  over_user_cap    the user has `max_prompts_per_user` prompts already

Of pretraining text only empty and equal rows are dropped.
Rows are put in the order of a hash of their content before any rule picks one
of several: the result does not depend on the order of the input, and to clean
a clean set changes nothing. The split is a function of the user, else of the
few-shot set, else of the prompt, so that a row never changes side when others
come or go. A few-shot set is never divided between splits: its prompts hold
each other's responses. Who wrote a prompt, and what for, makes it no other row.
"""

from collections.abc import Iterable, Iterator
import collections
import dataclasses
import itertools
from typing import Any

import numpy as np

from rlhf_jax.data import account as account_lib
from rlhf_jax.data import few_shot
from rlhf_jax.data import personal
from rlhf_jax.data import records
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data import splits
from rlhf_jax.data.rows import Row

# Rows tokenised in one call, in the library's threads: so many, or fewer when
# they have more characters than that.
_CHUNK_ROWS = 1024
_CHUNK_CHARS = 2**20


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
    tokenizer: has `encode_batch`, `start_ids` and `eos_id`.
    settings: the limits.

  Returns:
    The kept rows of each split, and the report of `account.Account`.
  """
  account = account_lib.Account(kind)
  kept = []
  for record, origin, tokens in _tokenised(kind, rows, tokenizer, settings):
    record, tokens, num_long = _shorten(record, tokens, settings)
    row = Row(
        record, origin, tokens, _split(record, settings), rows_lib.order(record)
    )
    account.enter(row, num_long)
    rule = _row_rule(kind, row, settings)
    if rule:
      account.drop(rule, row)
    else:
      kept.append(row)
  kept.sort(key=lambda row: (row.order, row.origin))
  kept = _deduplicate(kind, kept, settings.dedup_prefix_tokens, account)
  if kind != "pretrain":
    kept = _cap(kept, settings.max_prompts_per_user, account)
  by_split = {name: [] for name in splits.SPLITS}
  for row in kept:
    by_split[row.split].append(row)
  return by_split, account.report(by_split)


def _tokenised(kind, rows, tokenizer, settings) -> Iterator[tuple]:
  """(record, origin, tokens as in `Row`) of each row."""
  for chunk in _chunks(kind, rows, settings):
    texts = list(itertools.chain(*(own for _, _, own in chunk)))
    ids = iter(tokenizer.encode_batch(texts))
    for record, origin, own in chunk:
      tokens = [list(next(ids)) for _ in own]
      if kind != "pretrain":
        tokens[0] = [*tokenizer.start_ids, *tokens[0]]
      for sequence in tokens[0 if kind == "pretrain" else 1 :]:
        sequence.append(tokenizer.eos_id)
      yield record, origin, [np.asarray(t, np.int32) for t in tokens]


def _chunks(kind, rows, settings) -> Iterator[list[tuple]]:
  """Lists of (record, origin, texts), as large as one call tokenises."""
  chunk, num_chars = [], 0
  for record, origin in rows:
    texts = _texts(kind, record, settings)
    chunk.append((record, origin, texts))
    num_chars += sum(len(text) for text in texts)
    if len(chunk) == _CHUNK_ROWS or num_chars > _CHUNK_CHARS:
      yield chunk
      chunk, num_chars = [], 0
  if chunk:
    yield chunk


def _texts(kind: str, record: records.Record, settings: Settings) -> list[str]:
  """The texts that become the model's tokens, the prompt first."""
  if kind == "pretrain":
    return [record["text"]]
  prompt = record["prompt"] + settings.prompt_suffix
  prefix = settings.response_prefix
  return [prompt] + [prefix + r for r in rows_lib.responses(record)]


def _split(record: records.Record, settings: Settings) -> str:
  group = (
      record.get("user_id")
      or record.get("few_shot_set")
      or rows_lib.prompt(record)
  )
  return splits.split_of(
      group,
      validation_fraction=settings.validation_fraction,
      test_fraction=settings.test_fraction,
  )


def _shorten(record, tokens, settings: Settings) -> tuple:
  """A comparison without its too long responses; other rows as they are.

  Returns:
    (record, tokens, number of responses taken away).
  """
  if "responses" not in record:
    return record, tokens, 0
  limit = settings.max_response_tokens
  stay = [k for k, t in enumerate(tokens[1:]) if len(t) <= limit]
  num_long = len(record["responses"]) - len(stay)
  if not num_long:
    return record, tokens, 0
  ranks = [record["ranks"][k] for k in stay]
  ladder = sorted(set(ranks))  # The best of those left has rank 1 again.
  marks = record.get("metadata")
  if isinstance(marks, list) and len(marks) == len(record["responses"]):
    record = record | {"metadata": [marks[k] for k in stay]}
  record = record | {
      "responses": [record["responses"][k] for k in stay],
      "ranks": [ladder.index(r) + 1 for r in ranks],
  }
  return record, [tokens[0]] + [tokens[1 + k] for k in stay], num_long


def _row_rule(kind: str, row: Row, settings: Settings) -> str | None:
  """The rule that drops a row by itself, or None."""
  prompt, *responses = row.tokens
  if kind == "pretrain":
    return "empty" if len(prompt) < 2 else None
  # A demonstration says something; a compared response may end at once.
  shortest = 2 if kind == "demonstrations" else 1
  if not len(prompt) or any(len(t) < shortest for t in responses):
    return "empty"
  if row.split == "train":
    texts = [row.record["prompt"]] + rows_lib.responses(row.record)
    if any(personal.find(text) for text in texts):
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


def _deduplicate(kind, rows, prefix_tokens, account) -> list[Row]:
  """One row a prefix; of comparisons every row of one user's one prompt."""
  if kind == "pretrain":
    prefix_tokens = 0  # Stories may well begin alike.
  kept, owners, users, overlapping = [], {}, {}, _overlapping_sets(rows)
  for row in rows:
    group, prefix = _likeness(row, prefix_tokens)
    user = row.record.get("user_id", "")
    is_anonymous = kind == "comparisons" and "labeler_id" not in row.record
    # Equal rows follow each other.
    if kept and kept[-1].content == row.content and not is_anonymous:
      account.drop("duplicate_row", row)
    elif (
        users.get(group, user) != user
        or (_home(row), group) in overlapping
        or (prefix in owners
            and (kind != "comparisons" or owners[prefix] != row.owner))
    ):
      account.drop("duplicate_prompt", row)
    else:
      users[group] = user
      owners[prefix] = row.owner
      kept.append(row)
  return kept


def _overlapping_sets(rows: list[Row]) -> set[tuple[str, str]]:
  """(home, few-shot set) of sets with a query that another home has as well.

  Two sets with a query in common hold each other's responses and may fall into
  different splits; of their homes the first by name keeps it.
  """
  asked = [
      (few_shot.question(row.record["prompt"]), _home(row),
       row.record["few_shot_set"])
      for row in rows if row.record.get("few_shot_set")
  ]
  homes = {}
  for query, home, _ in asked:
    homes[query] = min(homes.get(query, home), home)
  return {(home, name) for query, home, name in asked if homes[query] != home}


def _home(row: Row) -> str:
  """What the split of a few-shot prompt goes by."""
  return row.record.get("user_id") or row.record.get("few_shot_set", "")


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
  prefix = tokens[:prefix_tokens] if prefix_tokens else tokens
  prefix = rows_lib.short_hash(prefix.tobytes())
  return prefix, prefix


def _cap(rows, max_prompts_per_user, account) -> list[Row]:
  """At most so many different prompts of a user id."""
  prompts = collections.defaultdict(set)
  kept = []
  for row in rows:
    prompt, user = row.record["prompt"], row.record.get("user_id")
    if user and prompt not in prompts[user]:
      if len(prompts[user]) >= max_prompts_per_user:
        account.drop("over_user_cap", row)
        continue
      prompts[user].add(prompt)
    kept.append(row)
  return kept
