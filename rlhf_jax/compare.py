"""Prints the figures of several runs side by side, with their median.

  python -m rlhf_jax.compare RUN_DIR [RUN_DIR ...]
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)

# pylint: disable=wrong-import-position
from collections.abc import Iterator, Sequence
import json
import statistics
from typing import Any

from absl import app
from etils import epath
import tabulate

from rlhf_jax import storage

# Headline figures: path in summary.json -> how it is shown.
FIGURES = {
    "rm.accuracy.train_labelers": "{:.3f}",
    "rm.accuracy.heldout_labelers": "{:.3f}",
    "rm.accuracy.all": "{:.3f}",
    "rm.longer_wins.all": "{:.3f}",
    "labelers.agreement": "{:.3f}",
    "labelers.agreement_heldout": "{:.3f}",
    "eval.win_rate_vs_sft.mean": "{:.3f}",
    "eval.win_rate_vs_sft.low": "{:.3f}",
    "eval.win_rate_vs_sft.high": "{:.3f}",
    "eval.win_rate_vs_sft.n": "{:.0f}",
    "eval.gold_score.pretrain": "{:.3f}",
    "eval.gold_score.sft": "{:.3f}",
    "eval.gold_score.rl_init": "{:.3f}",
    "eval.gold_score.ppo": "{:.3f}",
    "eval.kl_to_sft": "{:.2f}",
    "eval.pretrain_loss.pretrain": "{:.4f}",
    "eval.pretrain_loss.sft": "{:.4f}",
    "eval.pretrain_loss.rl_init": "{:.4f}",
    "eval.pretrain_loss.ppo": "{:.4f}",
    "eval.response_length.sft": "{:.1f}",
    "eval.response_length.ppo": "{:.1f}",
    "eval.ended.sft": "{:.3f}",
    "eval.ended.ppo": "{:.3f}",
    "stages.ppo.explained_variance": "{:.2f}",
    "stages.ppo.first_ratio_deviation_max": "{:.1e}",
    "seconds": "{:.0f}",
    "peak_rss_mb": "{:.0f}",
}


def lookup(summary: Any, path: str) -> float | None:
  """The number at "a.b.c" of nested objects, None where there is none."""
  for name in path.split("."):
    if not isinstance(summary, dict) or name not in summary:
      return None
    summary = summary[name]
  return summary


def rows(summaries: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
  """One line a figure: its path, a value a run, the median."""
  for path, form in FIGURES.items():
    values = [lookup(summary, path) for summary in summaries]
    known = [value for value in values if value is not None]
    if known:
      shown = [form.format(v) if v is not None else "-" for v in values]
      yield [path, *shown, form.format(statistics.median(known))]


def main(argv):
  if len(argv) < 2:
    raise app.UsageError("name at least one folder of a finished run")
  summaries = []
  for folder in argv[1:]:
    try:
      storage.check(folder, "folder", is_written=False)
    except storage.StorageError as error:
      raise app.UsageError(str(error)) from error
    path = epath.Path(folder) / "summary.json"
    if not path.exists():
      raise app.UsageError(f"{path} does not exist: that run did not finish")
    summaries.append(json.loads(path.read_text()))
  headers = ["figure", *argv[1:], "median"]
  print(tabulate.tabulate(
      rows(summaries), headers=headers, disable_numparse=True,
      tablefmt="github"))


if __name__ == "__main__":
  usage.run(main)
