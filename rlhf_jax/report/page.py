"""report.html: one file, for which nothing is fetched."""

import base64
import collections
from collections.abc import Iterable, Iterator, Sequence
import functools
import gzip
import importlib.resources
import json
from typing import Any

from etils import epath

from rlhf_jax import storage
from rlhf_jax.report import charts, findings, folder as folder_lib, tables

NAME = "report.html"
_SAMPLE_CHARS = 4_000_000  # of samples.jsonl that the page takes in


def write(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> None:
  """Writes the report of one run, or of several side by side.

  Raises:
    StorageError: one of them is not the folder of a run.
  """
  storage.write_text(out, render(folder_lib.read_all(workdirs)))


def render(folders: Sequence[folder_lib.Folder]) -> str:
  """The page."""
  import jinja2  # as plotly, only where a page is made

  environment = jinja2.Environment(
      loader=jinja2.PackageLoader("rlhf_jax.report", ""),
      autoescape=True, trim_blocks=True, lstrip_blocks=True)
  raw = {name: _own(f"page.{name}") for name in ("css", "js")}
  by_stage = charts.of_runs(folders)
  drawn = [chart for of in by_stage.values() for chart in of.charts]
  return environment.get_template("page.html").render(
      folders=folders,
      title=" and ".join(folder.name for folder in folders),
      runs=[_run(folder) for folder in folders],
      chart_of=charts.name_of,
      compared=tables.compared(folders),
      differing=tables.differing(folders),
      versions=tables.versions(folders),
      charts=by_stage,
      chart_ids={chart["id"] for chart in drawn},
      data={"runs": [folder.name for folder in folders], "charts": drawn},
      samples=samples(folders),
      plotly=_plotly(), **raw)


def _run(folder: folder_lib.Folder) -> dict[str, Any]:
  """What the page says of each run on its own."""
  looked = findings.look(folder.curves, folder.evaluation)
  flagged = list(findings.flagged(looked))
  bad = {(found.check.name, found.stage) for found in flagged}
  well = dict.fromkeys(
      f"{found.check.title} ({found.stage})" for found in looked
      if (found.check.name, found.stage) not in bad)
  return {
      "folder": folder,
      "flagged": flagged,
      "well": list(well),
      "results": tables.results(folder),
      "stages": tables.stages(folder),
      "figures": tables.stage_figures(folder),
      "account": tables.account(folder),
      "notes": tables.notes(folder),
      "config": json.dumps(folder.config, indent=2),
  }


def samples(folders: Sequence[folder_lib.Folder]) -> dict[str, Any]:
  """Prompts with the responses of all policies of all runs, for page.js.

  Runs that were shown the same prompt share a row; as many rows as fit. Of
  several runs the last policy of each is shown at first.
  """
  def name_of(folder, policy):
    return policy if len(folders) == 1 else f"{folder.name}: {policy}"

  rows = {}
  for folder in folders:
    seen = collections.Counter()
    for sample in folder.samples:
      prompt = sample["prompt"]
      seen[prompt] += 1
      row = rows.setdefault((prompt, seen[prompt]), {
          "prompt": prompt, "category": sample.get("category") or "",
          "responses": {}})
      for policy, response in sample["responses"].items():
        row["responses"][name_of(folder, policy)] = response
  fit = list(_that_fit(rows.values()))
  policies = dict.fromkeys(name for row in fit for name in row["responses"])
  last = [name_of(folder, list(folder.samples[0]["responses"])[-1])
          for folder in folders if folder.samples]
  return {"policies": list(policies), "rows": fit, "total": len(rows),
          "shown": list(policies) if len(folders) == 1 else last}


def _that_fit(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """The first of them, at least one."""
  size = 0
  for row in rows:
    if size > _SAMPLE_CHARS:
      return
    yield row
    size += len(json.dumps(row))


@functools.cache
def _plotly() -> str:
  """The plotting library, packed: page.js unpacks it."""
  from plotly import offline  # slow to import

  packed = gzip.compress(offline.get_plotlyjs().encode(), 6, mtime=0)
  return base64.b64encode(packed).decode()


def _own(name: str) -> str:
  return importlib.resources.files("rlhf_jax.report").joinpath(name).read_text()
