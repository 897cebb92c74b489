"""Puts what studies have measured into docs/results.md and docs/results/.

  python docs/make_results.py runs/studies

Seeds that the workdir has take the place of the same seeds here; the others
stay. Tables and figures are made anew of all of them; what is said about them
is written by hand.
"""

import pathlib
import sys
import tempfile

from etils import epath

DOCS = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
  sys.path.insert(0, str(DOCS.parent))

# pylint: disable=wrong-import-position
from rlhf_jax.studies import registry, results


def update(workdir: pathlib.Path, docs: pathlib.Path = DOCS) -> list[str]:
  """Takes in the studies of a workdir; returns which.

  Raises:
    ValueError: the page has not the tables of the rows beside it.
  """
  page = (docs / "results.md").read_text()
  found = [name for name in registry.STUDIES
           if (workdir / name / "rows.csv").exists()]
  for name in found:
    kept = docs / "results" / f"{name}.csv"
    old = results.from_csv(kept.read_text())
    new = results.from_csv((workdir / name / "rows.csv").read_text())
    page = _replaced(page, name, old, rows := joined(old, new))
    with tempfile.TemporaryDirectory() as folder:
      folder = epath.Path(folder)
      results.write(registry.find(name), rows, folder)
      kept.write_text((folder / "rows.csv").read_text())
      kept.with_suffix(".svg").write_text((folder / "figure.svg").read_text())
    (docs / "results.md").write_text(page)
  return found


def joined(old: list[results.Row], new: list[results.Row]
           ) -> list[results.Row]:
  """The rows of all seeds, in their order; of one that both have the new."""
  seeds = {row["seed"] for row in new}
  rows = new + [row for row in old if row["seed"] not in seeds]
  return sorted(rows, key=lambda row: row["seed"])


def _replaced(page: str, name: str, old, new) -> str:
  of = registry.find(name)
  before = results.format_tables(of, old)
  if before not in page:
    raise ValueError(f"docs/results.md has not the tables of {name}.csv")
  return page.replace(before, results.format_tables(of, new))


def main() -> None:
  if len(sys.argv) != 2:
    raise SystemExit(__doc__)
  names = update(pathlib.Path(sys.argv[1]))
  print(f"taken in: {', '.join(names) or 'nothing'}")


if __name__ == "__main__":
  main()
