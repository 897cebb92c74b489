"""docs/results.md says what the files beside it hold."""

import pathlib
import shutil

import pytest

from rlhf_jax.studies import registry, results
from tests import shared

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text()
FILES = sorted((DOCS / "results").glob("*.csv"))


def test_every_study_has_its_figures():
  assert [path.stem for path in FILES] == sorted(registry.STUDIES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tables_are_those_of_the_rows(path):
  rows = results.from_csv(path.read_text())
  assert results.as_csv(rows) == path.read_text()
  assert results.format_tables(registry.find(path.stem), rows) in PAGE
  assert f"](results/{path.stem}.svg)" in PAGE
  assert f"--config=experiments/studies/{path.stem}.py" in PAGE


def test_the_page_says_that_best_of_ns_kl_is_a_bound():
  section = PAGE.partition("\n## Best-of-n against PPO")[2]
  said, _, _ = section.partition("\n## ")
  for words in ("bound from above", "n of the first table is too small"):
    assert words in said


def test_another_seed_is_taken_in(tmp_path):
  """Beside those that are there; and one that is there is replaced."""
  docs, workdir = tmp_path / "docs", tmp_path / "studies"
  docs.mkdir()
  shutil.copy(DOCS / "results.md", docs)
  shutil.copytree(DOCS / "results", docs / "results")
  kept = docs / "results" / "behaviour.csv"
  before = results.from_csv(kept.read_text())
  first = [row for row in before if row["seed"] == 0]
  measured = [row | {"seed": seed, "mean": row["mean"] + seed}
              for seed in (7, 0) for row in first]
  (workdir / "behaviour").mkdir(parents=True)
  (workdir / "behaviour" / "rows.csv").write_text(results.as_csv(measured))
  maker = shared.module_at(DOCS / "make_results.py")
  for _ in range(2):  # the second changes nothing
    assert maker.update(workdir, docs) == ["behaviour"]
    found = results.from_csv(kept.read_text())
    assert [row for row in found if row["seed"] in (1, 2)] == [
        row for row in before if row["seed"] in (1, 2)]
    assert results.as_csv(
        row for row in found if row["seed"] in (0, 7)) == results.as_csv(
            measured[len(first):] + measured[:len(first)])
    tables = results.format_tables(registry.find("behaviour"), found)
    assert tables in (docs / "results.md").read_text()


def test_a_page_that_was_changed_by_hand_is_left_alone(tmp_path):
  docs, workdir = tmp_path / "docs", tmp_path / "studies"
  shutil.copytree(DOCS / "results", docs / "results")
  (docs / "results.md").write_text(PAGE.replace("| PPO ", "| P. "))
  (workdir / "behaviour").mkdir(parents=True)
  shutil.copy(DOCS / "results" / "behaviour.csv",
              workdir / "behaviour" / "rows.csv")
  with pytest.raises(ValueError, match="has not the tables of behaviour.csv"):
    shared.module_at(DOCS / "make_results.py").update(workdir, docs)
