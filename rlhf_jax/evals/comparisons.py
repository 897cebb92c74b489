"""Does a reward model rank comparisons as their labelers did?

`accuracy/GROUP` is the share of untied pairs in the labeler's order, with
intervals over prompts; `longer_wins/GROUP` the same of the rule "the longer
response wins".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rlhf_jax.data import sources
from rlhf_jax.evals import ranking, results
from rlhf_jax.evals.results import Row


class RewardModel(Protocol):
  """What this module sees of one."""

  def scores(self, rows: ranking.Rows) -> ranking.Scores:
    """A score a response."""

  def held_out(self) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Comparisons that it did not learn from, and the group of each."""

  def prepared(self, row: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison of a file as `scores` takes it, with `is_cut`."""


def measure_held_out(model: RewardModel) -> Iterator[Row]:
  """Yields the rows of the run's own validation comparisons."""
  rows, groups = model.held_out()
  yield from of_scores(rows, model.scores(rows), groups)


def measure(
    model: RewardModel, items: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
  """Yields the rows of a file of comparisons, grouped by who or what the rows
  say they are from, and what did not fit."""
  rows = [model.prepared(row) for row in items]
  groups = [row.get("labeler_group") or row.get("source") or "unnamed"
            for row in rows]
  yield from of_scores(rows, model.scores(rows), groups)
  yield from results.fit(
      [row["is_cut"] for row in rows], [False] * len(rows))


def of_scores(rows: ranking.Rows, scores: ranking.Scores,
              groups: Sequence[str]) -> Iterator[Row]:
  """Yields accuracies by group, and those of "the longer response wins"."""
  for name, figure in (("accuracy", ranking.accuracy),
                       ("longer_wins", ranking.longer_wins)):
    found = ranking.by_group(rows, scores, groups, figure)
    for group, value in found.items():
      if group == "all" or len(set(groups)) > 1:
        yield results.row(f"{name}/{group}", value)


def read(path: str) -> list[dict[str, Any]]:
  """Comparisons as `rlhf_jax.data.records` describes them."""
  return [record for record, _ in sources.read(f"jsonl:{path}", "comparisons")]
