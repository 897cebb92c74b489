"""Puts what studies have measured into docs/results.md and docs/results/.

  python docs/make_results.py runs/studies [--without=0,1]

Seeds that the workdir has take the place of the same seeds here; the others
stay, but for those of --without. Tables and figures are made anew of all of
them; what is said about them is written by hand. Beside each CSV a JSON has the
digest of what its seeds were measured with: with others none is joined.
"""

import argparse
from collections.abc import Collection
import dataclasses
import json
import pathlib
import sys
import tempfile

from etils import epath

DOCS = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
  sys.path.insert(0, str(DOCS.parent))

# pylint: disable=wrong-import-position
from rlhf_jax.studies import registry, results
from rlhf_jax.studies.study import Row


@dataclasses.dataclass(frozen=True)
class Measured:
  """Seeds of a study.

  Attributes:
    rows: of all of them, in the seeds' order.
    digest: of what they were measured with.
  """

  rows: list[Row]
  digest: str

  @property
  def seeds(self) -> list[int]:
    return sorted({row["seed"] for row in self.rows})


def update(workdir: pathlib.Path, docs: pathlib.Path = DOCS,
           without: Collection[int] = ()) -> list[str]:
  """Takes in the studies of a workdir; returns which.

  Args:
    workdir: of the studies.
    docs: the folder of results.md.
    without: seeds that are in docs and are to go.

  Raises:
    ValueError: a file is not there, the page has not the tables of the rows
      beside it, or seeds were measured with other settings than others.
  """
  found = [name for name in registry.STUDIES
           if (workdir / name / "rows.csv").exists()]
  for name in found:
    kept = docs / "results" / f"{name}.csv"
    old = read(
        kept, f"bring it back, or name it as its study, {name}, is named")
    new = read(workdir / name / "rows.csv", "give the study's command again, "
               f"with --config=experiments/studies/{name}.py")
    page = docs / "results.md"
    rows = joined(name, old, new, without)
    text = _replaced(page.read_text(), name, old.rows, rows)
    with tempfile.TemporaryDirectory() as folder:
      folder = epath.Path(folder)
      results.write(registry.find(name), rows, folder, new.digest)
      for ours, theirs in ((".csv", "rows.csv"), (".json", "rows.json"),
                           (".svg", "figure.svg")):
        kept.with_suffix(ours).write_text((folder / theirs).read_text())
    page.write_text(text)
  return found


def read(path: pathlib.Path, way_out: str) -> Measured:
  """A CSV and the JSON beside it.

  Raises:
    ValueError: one is not there, or has no digest; says the way out.
  """
  digest = path.with_suffix(".json")
  for file in (path, digest):
    if not file.exists():
      raise ValueError(f"{file} does not exist: {way_out}")
  try:
    found = json.loads(digest.read_text())["settings"]
  except (ValueError, KeyError, TypeError):
    raise ValueError(f"{digest} does not say what the seeds of {path.name} "
                     f"were measured with: {way_out}") from None
  return Measured(results.from_csv(path.read_text()), found)


def joined(name: str, old: Measured, new: Measured, without: Collection[int]
           ) -> list[Row]:
  """The rows of all seeds, in their order; of one that both have the new.

  Raises:
    ValueError: those that stay were measured with other settings.
  """
  stay = [seed for seed in old.seeds if seed not in {*new.seeds, *without}]
  if stay and old.digest != new.digest:
    theirs, ours = (",".join(map(str, of)) for of in (new.seeds, stay))
    raise ValueError(
        f"docs/results/{name}.csv has seeds {ours}, which were measured with "
        f"other settings than the workdir's {theirs}: no figure may be of both."
        f" Measure them again with --config=experiments/studies/{name}.py "
        f"--seeds={ours}, or take them out of the CSV with --without={ours}.")
  rows = new.rows + [row for row in old.rows if row["seed"] in stay]
  return sorted(rows, key=lambda row: row["seed"])


def _replaced(page: str, name: str, old, new) -> str:
  of = registry.find(name)
  before = results.format_tables(of, old)
  if before not in page:
    raise ValueError(f"docs/results.md has not the tables of {name}.csv")
  return page.replace(before, results.format_tables(of, new))


def seeds(text: str) -> list[int]:
  return [int(seed) for seed in text.split(",")]


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--without", default=[], type=seeds, metavar="SEEDS")
  args = parser.parse_args()
  try:
    names = update(args.workdir, DOCS, args.without)
  except ValueError as error:
    parser.error(str(error))
  print(f"taken in: {', '.join(names) or 'nothing'}")


if __name__ == "__main__":
  main()
