"""The curves of a run: metrics.jsonl, read once and thinned to be drawn."""

import collections
import dataclasses
import json

from etils import epath
import numpy as np

from rlhf_jax import storage

BUCKETS = 300
_NOT_METRICS = ("stage", "step", "seconds")


@dataclasses.dataclass(frozen=True)
class Series:
  """One metric of one stage.

  Attributes:
    steps: int64 [N], rising.
    values: float64 [N], NaN where the metric was not finite.
  """

  steps: np.ndarray
  values: np.ndarray


Curves = dict[str, dict[str, Series]]  # stage -> metric -> series


def read(path: epath.Path) -> Curves:
  """All series of a metrics.jsonl, which is never held whole.

  A last line that is cut, as a killed run leaves it, is left out.

  Raises:
    StorageError: another line is not JSON.
  """
  found = collections.defaultdict(
      lambda: collections.defaultdict(lambda: ([], [])))
  broken = None
  with path.open("r") as lines:
    for number, line in enumerate(lines, start=1):
      if broken is not None:
        raise storage.StorageError(
            f"{path}, line {broken} is not JSON: remove that line.")
      try:
        row = json.loads(line)
      except json.JSONDecodeError:
        broken = number
        continue
      step, by_metric = row["step"], found[row["stage"]]
      for metric, value in row.items():
        if metric not in _NOT_METRICS:
          steps, values = by_metric[metric]
          steps.append(step)
          values.append(value)
  return {
      stage: {
          metric: Series(np.array(steps, np.int64), np.array(values, float))
          for metric, (steps, values) in by_metric.items()}
      for stage, by_metric in found.items()}


def thin(series: Series, buckets: int = BUCKETS) -> Series:
  """At most three points in each of so many equal runs of rows.

  They are the least and the greatest, so that no spike is lost, and the first
  that is not finite, so that a gap stays one; and the first and the last row.
  """
  count = len(series.steps)
  if count <= 2 * buckets:
    return series
  kept = {0, count - 1}
  edges = np.linspace(0, count, buckets + 1).astype(int)
  for low, high in zip(edges, edges[1:]):
    part = series.values[low:high]
    is_finite = np.isfinite(part)
    if not is_finite.all():
      kept.add(low + int(np.argmin(is_finite)))
    if is_finite.any():
      kept |= {low + int(np.nanargmin(part)), low + int(np.nanargmax(part))}
  chosen = np.array(sorted(kept))
  return Series(series.steps[chosen], series.values[chosen])
