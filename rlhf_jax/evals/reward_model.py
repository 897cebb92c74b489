"""The whole account of a reward model on validation comparisons."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import tabulate

from rlhf_jax import labelers
from rlhf_jax.evals import calibration, lengths, ranking
from rlhf_jax.evals.intervals import percent
from rlhf_jax.run import Run


def score_rows(
    scorer: Callable[..., Any], params: Any, rows: ranking.Rows
) -> list[list[float]]:
  """A score a response; a text that several labelers ranked is read once.

  Args:
    scorer: a `scoring.Scorer`; call it under `sharding.use`.
    params: of the reward model.
    rows: prepared comparisons.
  """
  texts = {
      (row["prompt"], response): (row["prompt_tokens"], tokens)
      for row in rows
      for response, tokens in zip(row["responses"], row["response_tokens"])
  }
  scores = dict(zip(texts, scorer(params, list(texts.values())).tolist()))
  return [[scores[row["prompt"], response] for response in row["responses"]]
          for row in rows]


def comparison_groups(run: Run, rows: ranking.Rows) -> list[str]:
  """The group of each row: that of its labeler where the row or Smallworld
  knows it, its source otherwise."""
  known = {}
  if run.world is not None:
    known = {x.labeler_id: group
             for group, of in zip(labelers.GROUPS, labelers.of_run(run))
             for x in of}

  def group_of(row):
    # rows that were prepared earlier have no labeler_group
    group = row.get("labeler_group") or known.get(row["labeler_id"])
    return f"{group}_labelers" if group else row["source"] or "unnamed"

  return [group_of(row) for row in rows]


def evaluate(
    rows: ranking.Rows, scores: ranking.Scores, groups: Sequence[str]
) -> dict[str, Any]:
  """All figures of (rows, scores), as JSON can hold them.

  Args:
    rows: comparisons.
    scores: one a response of each row.
    groups: the name of each row's group, as of `comparison_groups`.

  Returns:
    `accuracy`, `longer_wins` and their difference `above_longer_wins`, each
    for all rows and for each group; `accuracy` by rank distance, use case and
    whether the longer response is the better one; the calibration curve and
    its expected error; the correlations with length. Shares have `mean`, `low`
    and `high` (95 %), `n` prompts and `pairs`.
  """
  of_groups = lambda figure: ranking.by_group(rows, scores, groups, figure)
  pairs = ranking.pairs(rows, scores)
  bins = calibration.curve(pairs)
  return {
      "rows": len(rows),
      "prompts": pairs.num_prompts,
      "pairs": len(pairs),
      "accuracy": of_groups(ranking.accuracy),
      "longer_wins": of_groups(ranking.longer_wins),
      "above_longer_wins": of_groups(ranking.above_longer_wins),
      "accuracy_by_rank_distance": ranking.by_distance(pairs),
      "accuracy_by_use_case": ranking.by_group(
          rows, scores, [row["category"] or "none" for row in rows],
          ranking.accuracy),
      "accuracy_by_length": ranking.by_length(pairs),
      "calibration": {
          "bins": bins, "expected_error": calibration.expected_error(bins)},
      "length_correlation": lengths.correlations(rows, scores),
  }


def fold_accuracy(
    rows: ranking.Rows, scores: ranking.Scores,
    inside: Collection[str], heldout: Collection[str],
) -> dict[str, dict[str, float]]:
  """Accuracy on the rows of two groups of labeler ids (App. E.2): of those
  whom the reward model learnt from, and of those left out."""
  groups = ["inside" if row["labeler_id"] in inside else
            "heldout" if row["labeler_id"] in heldout else "others"
            for row in rows]
  found = ranking.by_group(rows, scores, groups, ranking.accuracy)
  return {name: found[name] for name in ("inside", "heldout")}


def format_report(name: str, found: dict[str, Any]) -> str:
  """The figures of `evaluate` as tables to print."""
  parts = [f"{name}: {found['rows']} validation comparisons of "
           f"{found['prompts']} prompts, {found['pairs']} untied pairs; 95 % "
           "intervals"]
  headers = ("pairs of", "pairs", "accuracy", "longer wins", "difference")
  parts.append(_table(headers, (
      (group, accuracy["pairs"], percent(accuracy),
       percent(found["longer_wins"][group]),
       percent(found["above_longer_wins"][group]))
      for group, accuracy in found["accuracy"].items())))
  shares = {f"{distance} ranks apart": value for distance, value
            in found["accuracy_by_rank_distance"].items()}
  shares |= {use_case: value for use_case, value
             in found["accuracy_by_use_case"].items() if use_case != "all"}
  shares |= {side.replace("_", " "): value for side, value
             in found["accuracy_by_length"].items()}
  parts.append(_table(headers[:3], (
      (name, value["pairs"], percent(value))
      for name, value in shares.items())))
  parts.append(_table(("predicted", "pairs", "observed"), (
      (f"{100 * of['predicted']:.1f} %", of["observed"]["pairs"],
       percent(of["observed"])) for of in found["calibration"]["bins"])))
  parts.append(
      "expected calibration error "
      f"{100 * found['calibration']['expected_error']:.1f} points")
  parts.append(_table(("length and", "overall", "within a prompt"), (
      (name, _correlation(value["overall"]),
       _correlation(value["within_prompt"] and value["within_prompt"]["mean"]))
      for name, value in found["length_correlation"].items())))
  return "\n\n".join(parts)


def _correlation(value: float | None) -> str:
  return "-" if value is None else f"{value:+.3f}"


def _table(headers, rows) -> str:
  return tabulate.tabulate(rows, headers=headers, disable_numparse=True)
