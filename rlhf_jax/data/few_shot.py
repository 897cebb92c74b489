"""Few-shot sets: one row with K query/response pairs is K examples.

A labeler who writes a few-shot prompt gives an instruction and several pairs
for it (InstructGPT, sections 3.2 and A.1). One row holds such a set:

  {"prompt_kind": "few_shot", "instruction": "Say which animal is meant.",
   "examples": [{"query": "It barks.", "response": "A dog."},
                {"query": "It gives milk.", "response": "A cow."},
                {"query": "It lays eggs.", "response": "A hen."}]}

with `user_id`, `labeler_id`, `category` and `source` as any row may have them.
It stands for K rows; the prompt of each has the other K - 1 pairs before its
own query, in their given order. This is the first of the three:

  Say which animal is meant.
  Q: It gives milk.
  A: A cow.
  Q: It lays eggs.
  A: A hen.
  Q: It barks.
  A:

As demonstrations the rows have each its own response, as prompts none. All
carry the same `few_shot_set`, a name made of the instruction and the queries:
since they hold each other's responses they must not be in two splits.
"""

import hashlib
import json
from typing import Any

from rlhf_jax.data import fields
from rlhf_jax.data.fields import DataError, short

FEW_SHOT = "few_shot"  # As `prompt_kind`.
MIN_EXAMPLES = 2
_QUERY, _RESPONSE = "\nQ: ", "\nA:"

Row = dict[str, Any]
Pair = dict[str, str]


def expand(row: Any, kind: str, origin: str) -> list[Any]:
  """The rows that one row stands for: K of a few-shot set, else itself.

  Args:
    row: a parsed JSON value.
    kind: what it is read as, one of `records.KINDS`.
    origin: where the row stands, for messages.

  Returns:
    Rows with `prompt`, `response` and `few_shot_set`, their other fields as
    they were and unchecked.

  Raises:
    DataError: a set lacks a part of it, or is to be a comparison.
  """
  if not _is_set(row, kind):
    return [row]
  if row.get("prompt_kind") != FEW_SHOT:
    raise DataError(
        f"{origin}: 'examples', but 'prompt_kind' is"
        f" {short(row.get('prompt_kind'))}; a few-shot set says"
        f" {FEW_SHOT!r} there, any other row has a 'prompt'"
    )
  if kind == "comparisons":
    raise DataError(
        f"{origin}: a few-shot set has no ranked responses; a comparison"
        " needs its whole 'prompt', with 'responses' and 'ranks'"
    )
  instruction = fields.text(
      _part(row, "instruction", origin), "instruction", origin
  )
  pairs = _pairs(row, origin)
  name = row.get("few_shot_set") or _name(instruction, pairs)
  shared = row | {"few_shot_set": name}
  return [
      shared | {
          "prompt": prompt_text(instruction, pairs, index),
          "response": pair["response"],
      }
      for index, pair in enumerate(pairs)
  ]


def prompt_text(instruction: str, pairs: list[Pair], index: int) -> str:
  """The prompt of the `index`-th pair, laid out as above."""
  context = "".join(
      f"{_QUERY}{pair['query'].strip()}{_RESPONSE} {pair['response'].strip()}"
      for place, pair in enumerate(pairs)
      if place != index
  )
  query = pairs[index]["query"].strip()
  return f"{instruction.strip()}{context}{_QUERY}{query}{_RESPONSE}"


def last_query(prompt: str) -> str | None:
  """The query that a prompt in the layout asks; None for any other prompt."""
  text = prompt.rstrip()
  if not text.endswith(_RESPONSE):
    return None
  _, found, query = text.removesuffix(_RESPONSE).rpartition(_QUERY)
  return query if found else None


def question(prompt: str) -> tuple[str, str]:
  """(instruction, query) that a prompt in the layout asks; ("", prompt) for any
  other prompt."""
  query = last_query(prompt)
  if query is None:
    return "", prompt
  return prompt.partition(_QUERY)[0], query


def _is_set(row: Any, kind: str) -> bool:
  """Whether a row is a set; one with a prompt has been expanded already."""
  if not isinstance(row, dict) or kind == "pretrain" or "prompt" in row:
    return False
  return "examples" in row or row.get("prompt_kind") == FEW_SHOT


def _part(row: Row, name: str, origin: str) -> Any:
  if name not in row:
    raise DataError(
        f"{origin}: no field {name!r} among {short(str(sorted(row)))}; a"
        " few-shot set has 'instruction' and 'examples', or else a 'prompt'"
        " with all of it"
    )
  return row[name]


def _pairs(row: Row, origin: str) -> list[Pair]:
  """The checked `examples` of a set."""
  examples = _as_list(_part(row, "examples", origin))
  if not isinstance(examples, list):
    raise DataError(
        f"{origin}: 'examples' must be a list of objects with 'query' and"
        f" 'response', got {short(examples)}"
    )
  if len(examples) < MIN_EXAMPLES:
    raise DataError(
        f"{origin}: {len(examples)} example(s) in 'examples'; a few-shot set"
        f" needs at least {MIN_EXAMPLES}: add some, or write a 'prompt'"
    )
  pairs = [
      _pair(example, f"examples[{index}]", origin)
      for index, example in enumerate(examples)
  ]
  queries = [pair["query"].strip() for pair in pairs]
  for index, query in enumerate(queries):
    if (first := queries.index(query)) != index:
      raise DataError(
          f"{origin}: examples[{index}] has the query of examples[{first}],"
          f" {short(query)}; its response would stand in its own prompt,"
          " remove one"
      )
  return pairs


def _as_list(examples: Any) -> Any:
  """TFDS gives a sequence of objects as one object of sequences."""
  if isinstance(examples, dict) and all(
      isinstance(column, list) for column in examples.values()
  ):
    if len({len(column) for column in examples.values()}) > 1:
      return examples  # Some would be lost; refused, as it is no list.
    columns = zip(*examples.values())
    return [dict(zip(examples, values)) for values in columns]
  return examples


def _pair(example: Any, place: str, origin: str) -> Pair:
  if not isinstance(example, dict):
    raise DataError(
        f"{origin}: {place} must be an object with 'query' and 'response',"
        f" got {short(example)}"
    )
  for name in ("query", "response"):
    if name not in example:
      raise DataError(
          f"{origin}: no {name!r} in {place}, {short(example)}; each example"
          " has a 'query' and a 'response'"
      )
  return {
      name: fields.text(example[name], f"{place}.{name}", origin)
      for name in ("query", "response")
  }


def _name(instruction: str, pairs: list[Pair]) -> str:
  """A set's name; the order of its pairs does not matter."""
  queries = sorted(pair["query"].strip() for pair in pairs)
  content = json.dumps([instruction.strip(), *queries])
  return hashlib.blake2b(content.encode("utf-8"), digest_size=8).hexdigest()
