"""Figures, times, data and settings of runs, as tables of text."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
from typing import Any

from rlhf_jax import compare, config as config_lib, summaries
from rlhf_jax.report.folder import Folder

Rows = list[dict[str, Any]]
_NOTHING = "-"
_PARTS = ("tracing_seconds", "lowering_seconds", "compiling_seconds")
_TOKENS = ("mean", "std", "p50", "max")


@dataclasses.dataclass(frozen=True)
class Table:
  """A heading, rows with the same columns, and a sentence below."""

  title: str
  rows: Rows
  note: str = ""


# ------------------------------------------------------------------- results


def results(folder: Folder) -> list[Table]:
  """What the end of the run prints, as far as the run came."""
  found = []
  summary = folder.summary
  figures = folder.evaluation
  if figures and "score_intervals" in figures:  # not in the oldest runs
    settings = folder.config["evaluate"]
    note = ""
    if "win_rate_vs_sft" in figures:
      note = summaries.format_win_rate(figures["win_rate_vs_sft"], settings)
    found.append(Table(
        f"Policies on {figures.get('n', 'the')} held-out prompts",
        summaries.policy_rows(figures), note))
  if "reward_models" in summary:
    found.append(Table("Reward models", summaries.reward_model_rows(
        summary["reward_models"])))
  if "folds" in summary:
    found.append(Table("Folds of labelers", [], summaries.format_folds(
        summary["folds"])))
  if "rounds" in summary:
    found.append(Table("Rounds", summaries.round_rows(summary["rounds"])))
  return found


def compared(folders: Sequence[Folder]) -> Table:
  """Headline figures side by side; those of unfinished runs are absent."""
  columns = ("figure", *(folder.name for folder in folders), "median")
  return Table("Figures side by side", [
      dict(zip(columns, row))
      for row in compare.rows([folder.summary for folder in folders])])


# -------------------------------------------------------------------- stages


def stages(folder: Folder) -> Table:
  """A row a stage, done or not: time and compilation."""
  own = [stage for stage in folder.stages if not _is_taken(folder, stage)]
  done = [stage for stage in own if stage in folder.done]
  seconds = sum(folder.done[stage]["seconds"] for stage in done)
  return Table(
      "Times", [_stage(folder, stage) for stage in folder.stages],
      f"{len(done)} of {len(own)} stages are finished, in "
      f"{duration(seconds)}. Compiling is part of a stage's time.")


def stage_figures(folder: Folder) -> Table:
  """What each finished stage says of itself."""
  shown = {
      stage: ", ".join(
          f"{name} {_number(value)}"
          for name, value in content["figures"].items()
          if isinstance(value, (int, float)) and not name.endswith("_pairs"))
      for stage, content in folder.done.items()}
  return Table("Figures", [{"stage": stage, "figures": text}
                           for stage, text in shown.items() if text])


def _stage(folder: Folder, stage: str) -> dict[str, str]:
  done, compiled = folder.done.get(stage), folder.compiled.get(stage)
  row = {"stage": stage, "state": _state(folder, stage),
         "time": duration(done["seconds"]) if done else _NOTHING,
         "compiling": _NOTHING, "programs": _NOTHING}
  if compiled:
    row["compiling"] = duration(sum(compiled[part] for part in _PARTS))
    row["programs"] = (
        f"{compiled['programs']}, {compiled['from_cache']} from the cache")
  return row


def _number(value: float) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_taken(folder: Folder, stage: str) -> bool:
  return bool(folder.config.get("inputs", {}).get(stage))


def _state(folder: Folder, stage: str) -> str:
  if _is_taken(folder, stage):
    return "taken from another run"
  if stage in folder.done:
    return "finished"
  steps = [series.steps[-1] for series in folder.curves.get(stage, {}).values()]
  return f"at step {max(steps)}" if steps else "not begun"


def duration(seconds: float) -> str:
  """As 35 s, 12 min or 3.4 h."""
  if seconds < 100:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
  if seconds < 6000:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------------- data


def account(folder: Folder) -> list[Table]:
  """What came in, what each rule took, what is left (data/account.py)."""
  if not folder.account:
    return []
  overview = [_kind(name, found) for name, found in folder.account.items()]
  tables = [Table("Rows", overview, (
      "Rows that came in are those dropped and those of the splits."))]
  dropped = list(_dropped(folder.account))
  if dropped:
    tables.append(Table("Rows dropped, by rule", dropped))
  tables += [
      Table("Lengths in tokens", _lengths(folder.account)),
      Table("Use cases", _use_cases(folder.account))]
  return [table for table in tables if table.rows]


def _kind(name: str, found: Mapping[str, Any]) -> dict[str, str]:
  count = sum(of["count"] for of in found["dropped"].values())
  languages = list(found["languages"]["shares"].items())[:2]
  return {
      "data": name,
      "came in": f"{found['rows_in']:,}",
      "dropped": f"{count:,}",
      **{split: f"{rows:,}" for split, rows in found["rows_out"].items()},
      "users": " / ".join(
          str(of["users"]) for of in found["users"].values()),
      "languages": ", ".join(
          f"{code} {100 * share:.1f} %" for code, share in languages)}


def _dropped(accounts) -> Iterator[dict[str, str]]:
  for name, found in accounts.items():
    for rule, of in found["dropped"].items():
      example = of["examples"][0] if of["examples"] else None
      yield {"data": name, "rule": rule.replace("_", " "),
             "rows": f"{of['count']:,}",
             "an example": example["text"] if example else ""}


def _lengths(accounts) -> Rows:
  return [
      {"data": name, "split": split, "of": field,
       **{key: f"{of[key]:g}" for key in _TOKENS}}
      for name, found in accounts.items()
      for split, fields in found["tokens"].items()
      for field, of in fields.items()]


def _use_cases(accounts) -> Rows:
  """Of prompts, for the other kinds follow them."""
  splits = accounts.get("prompts", {}).get("categories", {})
  names = sorted({name for counts in splits.values() for name in counts})
  return [{"use case": name, **{split: f"{counts.get(name, 0):,}"
                                for split, counts in splits.items()}}
          for name in names]


# ------------------------------------------------------------------ settings


def versions(folders: Sequence[Folder]) -> Table:
  found = [folder.summary.get("versions", {}) for folder in folders]
  names = dict.fromkeys(name for of in found for name in of)
  return Table("Versions", [
      {"package": name,
       **{folder.name: of.get(name, _NOTHING)
          for folder, of in zip(folders, found)}} for name in names])


def differing(folders: Sequence[Folder]) -> Table:
  """The keys of config.json that are not the same in all runs."""
  found = [config_lib.flat(folder.config) for folder in folders]
  keys = sorted({key for of in found for key in of})
  rows = []
  for key in keys:
    values = [json.dumps(of[key]) if key in of else "(absent)" for of in found]
    if len(set(values)) > 1:
      rows.append({"key": key, **{
          folder.name: value for folder, value in zip(folders, values)}})
  return Table("Settings that differ", rows, "" if rows else "None.")


def notes(folder: Folder) -> Table:
  """What guards had to say."""
  return Table("Notes of guards", [
      {name: str(note[name]) for name in ("stage", "step", "guard", "message")}
      for note in folder.notes])
