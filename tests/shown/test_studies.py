"""Every study by its command, as the pages have it, with one seed.

With tests/shown/test_commands.py `pytest tests/shown` runs all commands; these
need nothing of the others, and are run beside them.
"""

import csv
import pathlib

import pytest

from rlhf_jax.studies import registry
from tests.shown.reader import ROOT, STUDY, config_of, quick, run, steps

SHOWN = [
    (page, text) for page, language, text in steps()
    if language == "bash" and text.startswith(STUDY)]


def study_of(command):
  return pathlib.Path(config_of(command)).stem


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory):
  """A folder like a checkout; its studies share their runs."""
  place = tmp_path_factory.mktemp("reader")
  (place / "experiments").symlink_to(ROOT / "experiments")
  return place


def test_all_are_shown():
  assert {study_of(text) for _, text in SHOWN} == set(registry.STUDIES)


@pytest.mark.parametrize(
    "page, text", SHOWN, ids=[f"{page}: {study_of(text)}"
                              for page, text in SHOWN])
def test_a_study_leaves_rows_tables_and_a_figure(page, text, place):
  printed = run(quick(text), place)
  left = place / "runs/studies" / study_of(text)
  with open(left / "rows.csv", newline="") as f:
    rows = list(csv.DictReader(f))
  assert {row["seed"] for row in rows} == {"0"}
  about, *blocks = (left / "tables.md").read_text().strip().split("\n\n")
  assert about == f"# {registry.find(study_of(text)).about}"
  assert "\n\n".join(blocks) in printed
  for title, table in zip(blocks[::2], blocks[1::2], strict=True):
    assert len(table.splitlines()) > 2, title  # its head, and rows
  assert (left / "figure.svg").read_text().lstrip().startswith("<?xml")
