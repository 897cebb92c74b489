"""docs/results.md says what the files beside it hold."""

import pathlib

import pytest

from rlhf_jax.studies import registry, results

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
