"""A run's headline figures: `summary.json`, and the tables at its end."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import platform
import resource
from typing import Any

import jax
import tabulate

from rlhf_jax import checkpoint, config as config_lib
from rlhf_jax.run import Run

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain",
             "tensorflow-datasets", "tokenizers", "numpy")


def summarise(run: Run, seconds: float) -> dict[str, Any]:
  """The run's headline figures from what its stages left."""
  done = {
      stage: checkpoint.read_done(run.stage_dir(stage))
      for stage in run.config.stages
  }
  summary = {
      "name": run.config.name,
      "stages": {
          name: {"seconds": content["seconds"]}
          | ({} if config_lib.name_of(name) == "evaluate" else content["figures"])
          for name, content in done.items()
      },
      "seconds": round(sum(d["seconds"] for d in done.values()), 1),
      "seconds_this_call": round(seconds, 1),
      "peak_rss_mb": round(
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
      "devices": {"count": jax.device_count(),
                  "platform": jax.devices()[0].platform,
                  "mesh": dict(run.mesh.shape)},
      "seed": run.config.seed,
      "versions": {"python": platform.python_version()}
      | {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
  for content in done.values():
    if config_lib.name_of(content["stage"]) == "evaluate":
      summary |= content["figures"]
    if content["stage"] == "collect":
      summary["labelers"] = {
          name: content["figures"][key]
          for name, key in (("agreement", "agreement_train"),
                            ("agreement_heldout", "agreement_heldout"),
                            ("agreement_between", "agreement_between"))
          if key in content["figures"]}
  if len(by_round := rounds(run, done)) > 1:
    summary["rounds"] = by_round
  return summary


def rounds(run: Run, done: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A line for each evaluated PPO stage, in their order: its reward model's
  accuracy, its gold score and its win rate against SFT."""
  found = []
  for stage, content in done.items():
    if config_lib.name_of(stage) != "evaluate":
      continue
    figures = content["figures"]["eval"]
    for policy in run.config[stage].policies:
      if config_lib.name_of(policy) != "ppo":
        continue
      reward_model = run.config[policy].reward_model
      found.append({
          "policy": policy,
          "reward_model": reward_model,
          "comparisons": done[reward_model]["figures"]["prompts"],
          "validation_accuracy":
              done[reward_model]["figures"]["validation_accuracy"],
          "gold_score": figures.get("gold_score_intervals", {}).get(policy),
          "win_rate": figures["win_rate"].get(policy),
          "kl": figures["kl"][policy],
      })
  return found


def format_summary(run: Run, summary: dict[str, Any]) -> str:
  """The table at the end of a run, and where its files are."""
  rows = []
  for name, content in summary["stages"].items():
    shown = ", ".join(
        f"{key} {value:.4g}" for key, value in content.items()
        if key != "seconds" and isinstance(value, (int, float))
        and not key.endswith(("_pairs", "_sd")))
    rows.append((name, f"{content['seconds']:.0f} s", shown[:90]))
  parts = [tabulate.tabulate(rows, headers=("stage", "time", "figures"))]
  figures = summary.get("eval")
  if figures:
    parts.append(format_policies(figures))
    if "win_rate_vs_sft" in figures:
      rate = figures["win_rate_vs_sft"]
      parts.append(
          f"{run.config.evaluate.policies[-1]} is preferred to "
          f"{run.config.evaluate.baseline}: {interval(rate, percent=True)} "
          f"of {rate['n']} held-out prompts (95 % interval, ties half)")
  if "rounds" in summary:
    parts.append(format_rounds(summary["rounds"]))
  files = ("config.json", "metrics.jsonl", "tensorboard", "samples.jsonl",
           "summary.json")
  present = [str(run.workdir / f) for f in files
             if (run.workdir / f).exists() or f == "summary.json"]
  parts.append(
      f"{summary['seconds']:.0f} s in all, peak memory "
      f"{summary['peak_rss_mb']:.0f} MB\nwritten: " + "\n         ".join(
          present))
  return "\n" + "\n\n".join(parts)


def format_rounds(by_round: Sequence[Mapping[str, Any]]) -> str:
  """One line a round of comparisons, reward model and PPO."""
  rows = [{
      "round": number,
      "policy": row["policy"],
      "comparisons": row["comparisons"],
      "rm accuracy": f"{row['validation_accuracy']:.3f}",
      "gold score": interval(row["gold_score"]) if row["gold_score"] else "-",
      "win rate": interval(row["win_rate"], percent=True),
      "KL": f"{row['kl']:.2f}",
  } for number, row in enumerate(by_round, start=1)]
  return tabulate.tabulate(rows, headers="keys", disable_numparse=True)


def format_policies(figures: dict[str, Any]) -> str:
  """One line a policy."""
  rows = []
  for name in figures["score"]:
    row = {"policy": name}
    if "gold_score" in figures:
      row["gold score"] = interval(figures["gold_score_intervals"][name])
    row["rm score"] = interval(figures["score_intervals"][name])
    row["win rate"] = (
        interval(figures["win_rate"][name], percent=True)
        if name in figures["win_rate"] else "-")
    row["KL"] = f"{figures['kl'][name]:.2f}"
    row["pretrain loss"] = f"{figures['pretrain_loss'][name]:.4f}"
    row["tokens"] = f"{figures['response_length'][name]:.1f}"
    row["ended"] = f"{100 * figures['ended'][name]:.0f} %"
    rows.append(row)
  return tabulate.tabulate(rows, headers="keys", disable_numparse=True)


def interval(value: dict[str, float], percent: bool = False) -> str:
  scale, unit = (100, " %") if percent else (1, "")
  digits = 1 if percent else 3
  half = (value["high"] - value["low"]) / 2
  return f"{scale * value['mean']:.{digits}f} ± {scale * half:.{digits}f}{unit}"
