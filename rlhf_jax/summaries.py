"""A run's headline figures: `summary.json`, and the tables at its end."""

from collections.abc import Mapping, Sequence
import json
import resource
import statistics
from typing import Any

import jax
import tabulate

from rlhf_jax import checkpoint, config as config_lib, metrics
from rlhf_jax.evals import intervals
from rlhf_jax.run import Run, versions

COMPILED = "compiled.json"  # of a stage: `compilation.Compiled`


def summarise(run: Run, seconds: float) -> dict[str, Any]:
  """The run's headline figures from what its stages left."""
  done = {
      stage: checkpoint.read_done(run.stage_dir(stage))
      for stage in run.config.stages
  }
  summary = {
      "name": run.config.name,
      "stages": {
          name: {"seconds": content["seconds"]} | (
              {} if config_lib.name_of(name) == "evaluate"
              else content["figures"])
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
      "versions": versions(),
  }
  if compiled := compiled_by_stage(run):
    summary["compiled"] = compiled
  if notes := metrics.read_notes(run.workdir):
    summary["guards"] = notes
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
  if len(compared := reward_models(done)) > 1:
    summary["reward_models"] = compared
  if found := folds(done):
    summary["folds"] = found
  if len(by_round := rounds(run, done)) > 1:
    summary["rounds"] = by_round
  return summary


def compiled_by_stage(run: Run) -> dict[str, Any]:
  """What the calls that finished the stages of this run compiled for them."""
  paths = {stage: run.workdir / stage / COMPILED for stage in run.config.stages}
  return {stage: json.loads(path.read_text())
          for stage, path in paths.items() if path.exists()}


def folds(done: Mapping[str, Any]) -> dict[str, Any]:
  """Accuracy on the labelers whom the folds' reward models learnt from
  (`inside`) and on those left out (`heldout`), as in App. E.2: the mean, in
  which a fold weighs by its prompts, for a group of fewer labelers has fewer;
  the standard deviation over folds; and the folds' own."""
  by_fold = {
      stage: content["figures"]["fold_accuracy"]
      for stage, content in done.items()
      if "fold_accuracy" in content["figures"]}
  if len(by_fold) < 2:
    return {}
  found = {"folds": by_fold}
  for side in ("inside", "heldout"):
    means, prompts = zip(*(
        (of[side]["mean"], of[side]["n"]) for of in by_fold.values()))
    found[side] = {"mean": statistics.fmean(means, prompts),
                   "sd": statistics.stdev(means),
                   "pairs": sum(of[side]["pairs"] for of in by_fold.values())}
  return found


def reward_models(done: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A line a reward model: what it learnt from, its accuracy and loss on its
  own rounds' validation comparisons after each epoch, its accuracy by group at
  the end."""
  return [
      {"reward_model": stage,
       "comparisons": content["figures"]["comparisons"],
       "by_epoch": content["figures"]["validation_by_epoch"],
       "by_group": content["figures"]["validation_accuracy_by_group"]}
      for stage, content in done.items()
      if config_lib.name_of(stage) in config_lib.REWARD_MODELS
      and "validation_by_epoch" in content["figures"]  # not in older runs
  ]


def rounds(run: Run, done: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A line for each PPO stage of the run that was evaluated, in their order:
  its reward model's accuracy on the validation comparisons of all rounds, its
  gold score and its win rate against SFT."""
  found = []
  for stage, content in done.items():
    if config_lib.name_of(stage) != "evaluate":
      continue
    figures = content["figures"]["eval"]
    accuracy = content["figures"]["rm"]["accuracy_by_model"]
    for policy in run.config[stage].policies:
      if config_lib.name_of(policy) != "ppo" or policy not in done:
        continue
      reward_model = run.config[policy].reward_model
      learnt = checkpoint.read_done(run.stage_dir(reward_model))["figures"]
      found.append({
          "policy": policy,
          "reward_model": reward_model,
          "comparisons": learnt.get("comparisons"),
          "reward_model_accuracy": accuracy[reward_model],
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
    parts.append(format_rows(policy_rows(figures)))
    if "win_rate_vs_sft" in figures:
      parts.append(format_win_rate(
          figures["win_rate_vs_sft"], run.config.evaluate))
  if "reward_models" in summary:
    parts.append(format_rows(reward_model_rows(summary["reward_models"])))
  if "folds" in summary:
    parts.append(format_folds(summary["folds"]))
  if "rounds" in summary:
    parts.append(format_rows(round_rows(summary["rounds"])))
  if "compiled" in summary:
    parts.append(format_rows(compiled_rows(summary["compiled"])))
  if "guards" in summary:
    names = sorted({note["guard"] for note in summary["guards"]})
    parts.append(f"{len(summary['guards'])} warning(s) of guards "
                 f"({', '.join(names)}): see guards.jsonl")
  files = ("report.html", "config.json", "metrics.jsonl", "tensorboard",
           "samples.jsonl", "guards.jsonl", "summary.json")
  present = [str(run.workdir / f) for f in files
             if (run.workdir / f).exists() or f == "summary.json"]
  parts.append(
      f"{summary['seconds']:.0f} s in all, peak memory "
      f"{summary['peak_rss_mb']:.0f} MB\nwritten: " + "\n         ".join(
          present))
  return "\n" + "\n\n".join(parts)


def format_win_rate(rate: Mapping[str, Any], settings) -> str:
  """`settings` are those of the evaluation."""
  return (f"{settings['policies'][-1]} is preferred to "
          f"{settings['baseline']}: {intervals.percent(rate)} "
          f"of {rate['n']} held-out prompts (95 % interval, ties half)")


def format_rows(rows: Sequence[Mapping[str, str]]) -> str:
  """A table of rows that all have the columns of the first."""
  return tabulate.tabulate(rows, headers="keys", disable_numparse=True)


def reward_model_rows(
    compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Accuracy and loss on validation comparisons, one row a reward model."""
  rows = []
  for model in compared:
    row = {"reward model": model["reward_model"],
           "comparisons": model["comparisons"]}
    for epoch, found in enumerate(model["by_epoch"], start=1):
      row[f"epoch {epoch}"] = (
          f"{intervals.percent(found)}, {found['loss']:.3f}")
    for group, found in model["by_group"].items():
      if group != "all":
        row[group.replace("_", " ")] = intervals.percent(found)
    rows.append(row)
  return rows


def compiled_rows(
    by_stage: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One row a stage, and the function that took longest."""
  rows = []
  for stage, found in by_stage.items():
    slowest = next(iter(found["seconds_by_function"].items()), None)
    rows.append({
        "compiled for": stage,
        "programs": found["programs"],
        "from the cache": found["from_cache"],
        **{name: f"{found[f'{name}_seconds']:.1f} s"
           for name in ("tracing", "lowering", "compiling")},
        "slowest": "{} {:.1f} s".format(*slowest) if slowest else "-"})
  return rows


def format_folds(found: Mapping[str, Any]) -> str:
  inside, heldout = (
      f"{100 * of['mean']:.1f} ± {100 * of['sd']:.1f} %"
      for of in (found["inside"], found["heldout"]))
  return (f"accuracy on labelers learnt from {inside}, on labelers left out "
          f"{heldout} (mean over prompts, SD of {len(found['folds'])} folds)")


def round_rows(by_round: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One row a round of comparisons, reward model and PPO."""
  return [{
      "round": number,
      "policy": row["policy"],
      "comparisons": row["comparisons"],
      "rm accuracy": intervals.percent(row["reward_model_accuracy"]),
      "gold score":
          intervals.shown(row["gold_score"]) if row["gold_score"] else "-",
      "win rate": intervals.percent(row["win_rate"]),
      "KL": f"{row['kl']:.2f}",
  } for number, row in enumerate(by_round, start=1)]


def policy_rows(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One row a policy."""
  rows = []
  for name in figures["score"]:
    row = {"policy": name}
    if "gold_score" in figures:
      row["gold score"] = intervals.shown(
          figures["gold_score_intervals"][name])
    row["rm score"] = intervals.shown(figures["score_intervals"][name])
    row["win rate"] = (
        intervals.percent(figures["win_rate"][name])
        if name in figures["win_rate"] else "-")
    row["KL"] = f"{figures['kl'][name]:.2f}"
    row["pretrain loss"] = f"{figures['pretrain_loss'][name]:.4f}"
    row["tokens"] = f"{figures['response_length'][name]:.1f}"
    row["ended"] = f"{100 * figures['ended'][name]:.0f} %"
    rows.append(row)
  return rows
