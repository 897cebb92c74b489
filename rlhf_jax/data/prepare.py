"""From a source to prepared splits on disk, once, with an account of it."""

from collections.abc import Iterable
import dataclasses
import hashlib
import itertools
import json
import os
from typing import Any

from etils import epath
import numpy as np
import tabulate

from rlhf_jax import storage
from rlhf_jax.data import builders
from rlhf_jax.data import cleaning
from rlhf_jax.data import fields
from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data import splits
from rlhf_jax.data.records import DataError

_PROMPT_SETTINGS = (
    "max_prompt_tokens",
    "dedup_prefix_tokens",
    "max_prompts_per_user",
    "validation_fraction",
    "test_fraction",
    "prompt_suffix",
)
_RESPONSE_SETTINGS = ("max_response_tokens", "response_prefix")
_PRINTED_GROUPS = 20  # The report has more.
# A changed setting refuses only the kinds that it touches.
_USED_SETTINGS = {
    "pretrain": ("window", "validation_fraction", "test_fraction"),
    "demonstrations": _PROMPT_SETTINGS + _RESPONSE_SETTINGS,
    "comparisons": _PROMPT_SETTINGS + _RESPONSE_SETTINGS,
    "prompts": _PROMPT_SETTINGS,
}


def prepare(
    kind: str,
    *,
    source_rows: Iterable[tuple[records.Record, str]],
    source: str,
    out_dir: str,
    tokenizer,
    settings: cleaning.Settings,
    root: str = "",
) -> dict[str, Any]:
  """Cleans, tokenises and stores the rows of one kind in `out_dir/kind/`.

  A second call with the same source, tokenizer and settings returns the stored
  report and does not touch `source_rows`. One process writes; others wait and
  then call it too, or only `open_split`.

  Args:
    kind: one of `records.KINDS`.
    source_rows: records with origins, as from `sources.read`.
    source: names the rows, as `sources.fingerprint` does; with everything
      that they depend on, such as Smallworld's seed.
    out_dir: the folder for all kinds.
    tokenizer: a `tokenizer.Tokenizer`.
    settings: the limits.
    root: folder that the files of the origins are named from.

  Returns:
    The report of `account.Account.report`, with `files` (rows in and in each
    split of each file) where there are several; for pretraining also `windows`
    and `tokens_left` (too few for a window) of each split.

  Raises:
    DataError: bad rows, none left to train on, or the folder holds rows
      prepared otherwise.
  """
  made_from = {
      "source": source,
      "tokenizer": tokenizer.digest,
      "settings": _used_settings(kind, settings),
  }
  path = epath.Path(out_dir) / kind / "report.json"
  if path.exists():
    return _stored_report(path, made_from)
  if kind == "comparisons":
    source_rows = _with_an_order(source_rows)
  files = {}
  source_rows = _counted(source_rows, root, files)
  rows, report = cleaning.clean(kind, source_rows, tokenizer, settings)
  if len(files) > 1:
    report["files"] = _by_file(files, rows, root)
  if kind == "pretrain":
    rows = _windows(rows, settings.window, report)
  if not len(rows["train"]):
    raise DataError(_nothing_left(kind, source, report))
  builders.write(kind, rows, out_dir, root)
  report |= {"made_from": made_from, "digest": _digest(made_from)}
  storage.write_text(path, json.dumps(report, indent=2))
  return report


def open_split(out_dir: str, kind: str, split: str) -> builders.Split:
  """The prepared rows of a split, by index.

  Rows are dicts: `tokens` for pretraining; for the others the text fields (""
  where absent), `prompt_tokens`, and `response_tokens` (of comparisons a list
  with the tokens of each response, besides `responses`, `ranks`, `metadata`);
  of demonstrations also the `file`. Tokens are int32 arrays; each response ends
  in the end token.
  """
  if split not in splits.SPLITS:
    raise DataError(f"unknown {split=}; one of {splits.SPLITS}")
  if not (epath.Path(out_dir) / kind / "report.json").exists():
    raise DataError(f"no prepared {kind} in {str(out_dir)!r}; prepare them")
  return builders.Split(kind, out_dir, split)


def num_rows(out_dir: str, kind: str, split: str) -> int | None:
  """How many rows `open_split` has, without opening it; None where the kind is
  not prepared."""
  path = epath.Path(out_dir) / kind / "report.json"
  if not path.exists():
    return None
  report = json.loads(path.read_text())
  return report.get("windows", report["rows_out"])[split]


def format_report(report: dict[str, Any]) -> str:
  """The report as tables to print, about 100 columns wide."""
  parts = [
      _dropped_table(report),
      _languages_line(report),
      _splits_table(report),
      _lengths_table(report),
      _groups_table(report, "category"),
      _groups_table(report, "source"),
      _kinds_table(report.get("prompt_kinds", {})),
      _files_table(report),
  ]
  return "\n\n".join(part for part in parts if part)


def _dropped_table(report) -> str:
  table = [["rows in", report["rows_in"], "", ""]]
  for rule, entry in report["dropped"].items():
    table += [
        ["", "", _one_line(e["text"], 40), _short_origin(e["origin"])]
        for e in entry["examples"]
    ]
    table[-len(entry["examples"])][:2] = [f"- {rule}", -entry["count"]]
  table.append(["rows out", sum(report["rows_out"].values()), "", ""])
  headers = [report["kind"], "rows", "such as", "from"]
  return tabulate.tabulate(table, headers=headers)


def _one_line(text: str, limit: int) -> str:
  text = fields.printable(" ".join(text.split()))
  return text if len(text) <= limit else text[: limit - 3] + "..."


def _short_origin(origin: str) -> str:
  """An origin without its folders, which the report keeps."""
  if not origin.startswith("tfds:"):
    origin = os.path.basename(origin)
  return origin if len(origin) <= 36 else "..." + origin[-33:]


def _languages_line(report) -> str:
  """English first, then the others that are most frequent."""
  shares = dict(report["languages"]["shares"])
  english = shares.pop("en", 0.0)
  found = [f"{code} {share:.1%}" for code, share in shares.items()]
  others = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
  what = "texts" if report["kind"] == "pretrain" else "prompts"
  return (
      f"English {english:.1%} of {report['languages']['sampled']} {what}"
      + (f" (others: {others})" if others else "")
  )


def _splits_table(report) -> str:
  table = []
  for split, count in report["rows_out"].items():
    line = {"split": split, "rows": count}
    if any(of["users"] for of in report["users"].values()):
      line |= report["users"][split]
    if "windows" in report:
      line["windows"] = report["windows"][split]
      line["tokens left"] = report["tokens_left"][split]
    table.append({name.replace("_", " "): n for name, n in line.items()})
  return tabulate.tabulate(table, headers="keys")


def _lengths_table(report) -> str:
  """One line a field and split."""
  table = [
      {"tokens of": f"{name}, {split}"} | numbers
      for split, lengths in report["tokens"].items()
      for name, numbers in lengths.items()
  ]
  table.sort(key=lambda line: line["tokens of"].partition(",")[0])
  return tabulate.tabulate(table, headers="keys")


def _groups_table(report, field: str) -> str:
  """Rows of each source, or category (and split), and how long they are."""
  table = []
  groups = report[f"tokens_by_{field}"]
  for name, lengths in itertools.islice(groups.items(), _PRINTED_GROUPS):
    rows = next(iter(lengths.values()))["count"]
    share = rows / sum(report["rows_out"].values())
    line = {field: _one_line(name, 28), "rows": rows, "share": f"{share:.1%}"}
    if field == "category":
      lengths = {"prompt": lengths["prompt"]}
      line |= {s: of.get(name, 0) for s, of in report["categories"].items()}
    for of, numbers in lengths.items():
      line |= {f"{of} {k}": numbers[k] for k in ("mean", "p50")}
    table.append(line)
  num_more = len(groups) - len(table)
  more = f"\n... and {num_more} more in the report" if num_more else ""
  return tabulate.tabulate(table, headers="keys") + more


def _kinds_table(counts: dict[str, dict[str, int]]) -> str:
  """Rows of each kind of prompt, a column a split; "" if there is one kind."""
  kinds = sorted({kind for of in counts.values() for kind in of})
  if len(kinds) < 2:
    return ""
  lines = [[k] + [of.get(k, 0) for of in counts.values()] for k in kinds]
  return tabulate.tabulate(lines, headers=["kind of prompt", *counts])


def _files_table(report) -> str:
  """Rows in and kept of each file; "" if there is one file."""
  lines = [[name, *of.values()] for name, of in report.get("files", {}).items()]
  headers = ["file", "rows in", *report["rows_out"]]
  return tabulate.tabulate(lines, headers=headers) if lines else ""


def _used_settings(kind: str, settings: cleaning.Settings) -> dict[str, Any]:
  if kind not in _USED_SETTINGS:
    raise DataError(f"unknown {kind=}; one of {records.KINDS}")
  values = dataclasses.asdict(settings)
  return {name: values[name] for name in _USED_SETTINGS[kind]}


def _digest(made_from: dict[str, Any]) -> str:
  text = json.dumps(made_from, sort_keys=True)
  return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stored_report(path: epath.Path, made_from: dict[str, Any]):
  report = json.loads(path.read_text())
  if report["digest"] == _digest(made_from):
    return report
  old, new = _flat(report["made_from"]), _flat(made_from)
  changes = [
      f"{key}: {old.get(key)!r} -> {new[key]!r}"
      for key in new
      if old.get(key) != new[key]
  ]
  raise DataError(
      f"{path.parent} was prepared otherwise ({'; '.join(changes)}); remove"
      " that folder, use another one, or set the old values again"
  )


def _flat(made_from: dict[str, Any]) -> dict[str, Any]:
  flat = made_from | made_from["settings"]
  del flat["settings"]
  return flat


def _with_an_order(rows):
  """`rows`, unless every row of one file has only ties: a wrong field."""
  num_rows, num_tied = {}, {}
  for record, origin in rows:
    path = origin.rpartition(":")[0]
    num_rows[path] = num_rows.get(path, 0) + 1
    num_tied[path] = num_tied.get(path, 0) + (len(set(record["ranks"])) == 1)
    yield record, origin
  for path, count in num_rows.items():
    if num_tied[path] == count:
      raise DataError(
          f"{path}: each of the {count} rows ranks all its responses the same;"
          " nothing can be learnt from ties, check the field 'ranks'"
      )


def _counted(rows, root: str, files: dict[str, int]):
  """`rows`; how many there are of each file goes into `files`."""
  for record, origin in rows:
    name = sources.file_of(origin, root)
    files[name] = files.get(name, 0) + 1
    yield record, origin


def _by_file(files: dict[str, int], rows, root: str):
  """File -> its rows in, and of each split those kept."""
  found = {
      name: {"in": count} | dict.fromkeys(rows, 0)
      for name, count in files.items()
  }
  for split, kept in rows.items():
    for row in kept:
      found[sources.file_of(row.origin, root)][split] += 1
  return found


def _windows(rows, window: int, report) -> dict[str, np.ndarray]:
  """Cuts each split's texts, one after the other, into windows [N, window].

  A text ends in the end token and may go on in the next window. What is too
  little for a last window is left out. Counts go into `report`.
  """
  if window < 2:
    raise DataError(f"{window=} is too short; a window predicts its next token")
  report |= {"windows": {}, "tokens_left": {}}
  packed = {}
  for split in splits.SPLITS:
    texts = [row.tokens[0] for row in rows[split]]
    stream = np.concatenate(texts) if texts else np.zeros(0, np.int32)
    num_windows = len(stream) // window
    report["windows"][split] = num_windows
    report["tokens_left"][split] = len(stream) - num_windows * window
    packed[split] = stream[: num_windows * window].reshape(-1, window)
  return packed


def _nothing_left(kind: str, source: str, report: dict[str, Any]) -> str:
  dropped = {k: v["count"] for k, v in report["dropped"].items()}
  message = (
      f"no {kind} left to train on from {source!r}: {report['rows_in']} rows"
      f" in, dropped {dropped}, rows out {report['rows_out']}"
  )
  if "windows" in report:
    tokens = report["tokens_left"]["train"]
    message += f", but {tokens} training tokens do not fill one window"
  return message + "; loosen the rule that takes most, or bring more rows"
