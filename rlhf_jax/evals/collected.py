"""What a collection holds: ties, K, and how each policy was rated."""

from collections.abc import Mapping, Sequence
import collections
import itertools
import statistics as stats
from typing import Any

import tabulate

from rlhf_jax.evals import intervals


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Counts and ratings of comparisons.

  Args:
    rows: with `prompt`, `responses`, `ranks`, `policies`, and perhaps
      `likert`, `metadata` and `seconds`.

  Returns:
    `comparisons`; `pairs`, `tied` (share of them); `responses_per_prompt` (K
    -> comparisons); `seconds` a comparison, None where nobody's time was
    taken; `policies`: name -> responses, `likert` (mean with its interval, over
    prompts), `best` (share ranked first, ties included) and `metadata` (share
    of each field that anybody named; where others did not, it is false).
  """
  pairs = tied = 0
  for row in rows:
    for a, b in itertools.combinations(row["ranks"], 2):
      pairs, tied = pairs + 1, tied + (a == b)
  sizes = collections.Counter(len(row["ranks"]) for row in rows)
  seconds = [r["seconds"] for r in rows if r.get("seconds") is not None]
  names = dict.fromkeys(name for row in rows for name in row["policies"])
  return {
      "comparisons": len(rows),
      "pairs": pairs,
      "tied": tied / pairs if pairs else None,
      "responses_per_prompt": {str(k): sizes[k] for k in sorted(sizes)},
      "seconds": stats.fmean(seconds) if seconds else None,
      "policies": {name: of_policy(rows, name) for name in names},
  }


def of_policy(rows: Sequence[Mapping[str, Any]], policy: str
              ) -> dict[str, Any]:
  """How the responses of one policy were rated."""
  slots = [(row, k) for row in rows
           for k, name in enumerate(row["policies"]) if name == policy]
  likert = collections.defaultdict(list)
  for row, k in slots:
    if row.get("likert"):
      likert[row["prompt"]].append(row["likert"][k])
  marked = [row["metadata"][k] for row, k in slots if row.get("metadata")]
  fields = dict.fromkeys(
      name for row in rows for marks in row.get("metadata") or ()
      for name in marks) if marked else ()
  return {
      "responses": len(slots),
      "likert": intervals.ratio(
          [sum(of) for of in likert.values()],
          [len(of) for of in likert.values()]) if likert else None,
      "best": stats.fmean(row["ranks"][k] == 1 for row, k in slots),
      "metadata": {
          field: stats.fmean(bool(marks.get(field)) for marks in marked)
          for field in fields},
  }


def format_report(report: Mapping[str, Any]) -> str:
  """Agreement by group and ratings by policy, as tables to print."""
  number = lambda value: "-" if value is None else f"{value:.3f}"
  agreed = [
      (group, found["labelers"], found["pairwise"]["pairs"],
       number(found["pairwise"]["mean"]), number(found["alpha_ranks"]),
       number(found["alpha_likert"]))
      for group, found in report["agreement"].items()]
  rated = [
      (name, found["responses"],
       number(found["likert"] and found["likert"]["mean"]),
       number(found["best"]))
      for name, found in report["policies"].items()]
  return "\n\n".join((
      f"{report['comparisons']} comparisons, {report['pairs']} pairs, "
      f"{100 * (report['tied'] or 0):.1f} % tied",
      tabulate.tabulate(agreed, headers=(
          "labelers", "n", "pairs", "agreement", "alpha, ranks",
          "alpha, Likert"), disable_numparse=True),
      tabulate.tabulate(rated, headers=(
          "policy", "responses", "Likert", "ranked first"),
          disable_numparse=True)))
