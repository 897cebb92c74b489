"""Records: what a row of data may hold, checked field by field.

A record is a dict of one of four kinds::

  pretrain        {text, source?}
  demonstrations  {prompt, response, user_id?, labeler_id?, category?, source?}
  comparisons     {prompt, responses[], ranks[], user_id?, labeler_id?,
                   labeler_group?, category?, source?, metadata?}
                   1 = best, equal = tie
  prompts         {prompt, user_id?, category?, source?}

All but pretraining text may say where a prompt is from (InstructGPT 3.2)::

  prompt_kind?    "plain", "few_shot" or "user_based" for a prompt that a
                  labeler wrote; absent for a customer's
  use_case?       of a user-based prompt: the application it was written for
  few_shot_set?   of a few-shot prompt: rows with the same name stay together

A few-shot prompt is one row for all its examples, see `few_shot`, or has its
whole text as `prompt`, as any other row.

`labeler` is read as labeler_id, and `scenario` or `domain` as category, where
the row has no such field itself. Other fields are ignored. A comparison given
as a demonstration stands for its best-ranked response. A row that is not of
its kind ends the run with one message: file and line, the value, and what to
do.
"""

from typing import Any

from rlhf_jax.data import few_shot
from rlhf_jax.data import fields
from rlhf_jax.data.fields import DataError, short

KINDS = ("pretrain", "demonstrations", "comparisons", "prompts")
PROMPT_KINDS = ("plain", few_shot.FEW_SHOT, "user_based")
# Where a prompt is from.
PROVENANCE = ("prompt_kind", "use_case", "few_shot_set")

# Kind -> (required text fields, optional fields carried along as text).
_FIELDS = {
    "pretrain": (("text",), ("source",)),
    "demonstrations": (
        ("prompt", "response"),
        ("user_id", "labeler_id", "category", "source", *PROVENANCE),
    ),
    "comparisons": (
        ("prompt",),
        ("user_id", "labeler_id", "labeler_group", "category", "source",
         *PROVENANCE),
    ),
    "prompts": (
        ("prompt",),
        ("user_id", "category", "source", *PROVENANCE),
    ),
}

# Optional field -> what others call it.
_ALIASES = {"labeler_id": ("labeler",), "category": ("scenario", "domain")}

_MAX_DEPTH = 32  # Of metadata; a list of flat objects has 2.

Record = dict[str, Any]


def text_fields(kind: str) -> tuple[str, ...]:
  """The required text fields of a kind, without a comparison's responses."""
  return _FIELDS[kind][0]


def optional_fields(kind: str) -> tuple[str, ...]:
  """The optional text fields that a kind carries."""
  return _FIELDS[kind][1]


def check(row: Any, kind: str, origin: str) -> Record:
  """The fields of `kind` in `row`, checked.

  Args:
    row: a parsed JSON value.
    kind: one of `KINDS`.
    origin: where the row stands, for messages.

  Returns:
    The required fields and those optional ones that are there; ids as text.

  Raises:
    DataError: the row is not of its kind.
  """
  if not isinstance(row, dict):
    raise DataError(
        f"{origin}: expected a JSON object, got {short(row)}; a row of"
        f" {kind} has the fields {_wanted(kind)}"
    )
  required, optional = _FIELDS[kind]
  if kind == "demonstrations" and "responses" in row and "response" not in row:
    row = _best_response(row, origin)
  record = {}
  for name in required:
    record[name] = fields.text(_field(row, name, kind, origin), name, origin)
  if kind == "comparisons":
    record |= _ranking(row, origin)
  for name in optional:
    key = _present(row, name)
    if key is None:
      continue
    value = row[key]
    if name == "prompt_kind" and value not in PROMPT_KINDS:
      raise DataError(
          f"{origin}: 'prompt_kind' is {short(value)}; it is one of"
          f" {PROMPT_KINDS}, or absent where a customer wrote the prompt"
      )
    if isinstance(value, int) and not isinstance(value, bool):
      value = str(value)
    record[name] = fields.text(value, key, origin)
  if kind == "comparisons" and row.get("metadata") is not None:
    record["metadata"] = _shallow(row["metadata"], "metadata", origin)
  return record


def _shallow(value: Any, name: str, origin: str) -> Any:
  """`value`, if what writes and reads it again does not run out of stack."""
  level = [value]
  for _ in range(_MAX_DEPTH):
    level = [
        inner for outer in level if isinstance(outer, (dict, list))
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]
  if any(isinstance(inner, (dict, list)) for inner in level):
    raise DataError(
        f"{origin}: {name!r} is nested more than {_MAX_DEPTH} deep; write it"
        " flatter, or leave it out"
    )
  return value


def _present(row: Record, name: str) -> str | None:
  """Under which name a row has an optional field: its own comes first."""
  keys = (name, *_ALIASES.get(name, ()))
  return next((key for key in keys if row.get(key) not in (None, "")), None)


def _best_response(row: Record, origin: str) -> Record:
  """A comparison as a demonstration: its first response of rank 1."""
  ranked = _ranking(row, origin)
  best = ranked["ranks"].index(min(ranked["ranks"]))
  return row | {"response": ranked["responses"][best]}


def _wanted(kind: str) -> str:
  required, _ = _FIELDS[kind]
  ranked = ("responses", "ranks") if kind == "comparisons" else ()
  return ", ".join(required + ranked)


def _field(row: Record, name: str, kind: str, origin: str) -> Any:
  if name not in row:
    raise DataError(
        f"{origin}: no field {name!r} among {short(str(sorted(row)))}; a row of"
        f" {kind} has the fields {_wanted(kind)}"
    )
  return row[name]


def _ranking(row: Record, origin: str) -> Record:
  """The `responses` and `ranks` of a comparison."""
  responses = _field(row, "responses", "comparisons", origin)
  ranks = _field(row, "ranks", "comparisons", origin)
  for name, value in (("responses", responses), ("ranks", ranks)):
    if not isinstance(value, list):
      raise DataError(f"{origin}: {name!r} must be a list, got {short(value)}")
  if len(responses) < 2:
    raise DataError(
        f"{origin}: {len(responses)} response(s); a comparison needs at least"
        " 2, remove the row"
    )
  if len(ranks) != len(responses):
    raise DataError(
        f"{origin}: {len(responses)} responses but {len(ranks)} ranks"
        f" ({short(ranks)}); give one rank a response"
    )
  for rank in ranks:
    if type(rank) is not int or not 1 <= rank < 2**31:
      raise DataError(
          f"{origin}: rank {short(rank)} in {short(ranks)}; ranks are whole"
          " numbers from 1 (the best), equal for a tie"
      )
  # A policy may end at once: an empty response is ranked like any other.
  responses = [
      fields.text(response, f"responses[{index}]", origin, may_be_empty=True)
      for index, response in enumerate(responses)
  ]
  return {"responses": responses, "ranks": list(ranks)}
