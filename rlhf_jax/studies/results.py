"""A study's results as files: CSV, tables in Markdown, and the figure."""

from collections.abc import Sequence
import csv
import importlib.util
import io
import json

from etils import epath
import tabulate

from rlhf_jax.config import ConfigError
from rlhf_jax.studies.study import COLUMNS, Row, Study, Table


def check_drawing() -> None:
  """Raises a ConfigError where figures cannot be drawn."""
  if importlib.util.find_spec("matplotlib") is None:
    raise ConfigError("studies draw with matplotlib, which is not installed: "
                      "run pip install -e '.[studies]'")


def write(of: Study, rows: Sequence[Row], folder: epath.Path, digest: str
          ) -> str:
  """Writes rows.csv, rows.json, tables.md and figure.svg; returns the tables.

  Args:
    of: the study.
    rows: of all its seeds.
    folder: of those files.
    digest: of what all of the rows were measured with, as of `driver`.
  """
  import matplotlib  # pylint: disable=import-outside-toplevel
  from matplotlib import figure  # pylint: disable=import-outside-toplevel
  text = as_csv(rows)
  (folder / "rows.csv").write_text(text)
  (folder / "rows.json").write_text(json.dumps({"settings": digest}) + "\n")
  rows = from_csv(text)  # what follows can be made from the file again
  tables = format_tables(of, rows)
  (folder / "tables.md").write_text(f"# {of.about}\n\n{tables}\n")
  drawing = figure.Figure(layout="constrained")
  # the same bytes for the same figures, and text that can be searched
  with matplotlib.rc_context({"svg.hashsalt": "rlhf_jax",
                              "svg.fonttype": "none",
                              "font.family": "sans-serif"}):
    of.draw(rows, drawing)
    image = io.StringIO()
    drawing.savefig(image, format="svg", metadata={"Date": None},
                    facecolor="white")
  (folder / "figure.svg").write_text(image.getvalue())
  return tables


def as_csv(rows: Sequence[Row]) -> str:
  """A line a figure; what is not known is empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow({
        name: f"{row[name]:.6g}" if isinstance(row[name], float) else row[name]
        for name in COLUMNS})
  return text.getvalue()


def from_csv(text: str) -> list[Row]:
  """The rows of `as_csv`; None where one is empty."""
  number = lambda cell: float(cell) if cell else None
  return [
      {**row, "seed": int(row["seed"]), "n": int(row["n"]),
       **{name: number(row[name]) for name in ("mean", "low", "high")}}
      for row in csv.DictReader(io.StringIO(text))]


def format_tables(of: Study, rows: Sequence[Row]) -> str:
  """All that a study's rows show, and what its runs took."""
  return "\n\n".join(map(format_table, (*of.tables(rows), hours(rows))))


def format_table(table: Table) -> str:
  cells = [[f"{cell:.3f}" if isinstance(cell, float) else cell
            for cell in row] for row in table.rows]
  return f"{table.title}\n\n" + tabulate.tabulate(
      cells, table.headers, tablefmt="github", disable_numparse=True)


def hours(rows: Sequence[Row]) -> Table:
  """What the runs took, by run and seed."""
  seeds = sorted({row["seed"] for row in rows})
  found: dict[str, dict[int, float]] = {}
  for row in rows:
    if row["task"] == "stage":
      of = found.setdefault(row["run"], dict.fromkeys(seeds, 0.0))
      of[row["seed"]] += row["mean"] / 60
  total = {seed: sum(of[seed] for of in found.values()) for seed in seeds}
  return Table(
      "Minutes of each run's own stages",
      ("run", *(f"seed {seed}" for seed in seeds)),
      [(name, *(f"{of[seed]:.1f}" for seed in seeds))
       for name, of in (found | {"all": total}).items()])
