"""How far a reward model can be optimised before the gold score falls.

Gao et al. 2022, arXiv:2210.10760, Figure 1: best-of-n and RL without a KL
penalty, on reward models of several sizes and numbers of comparisons. All
gains are over the policy at the start, in SDs of its samples' scores, so that
gold and proxy, and one reward model and another, can be held against each
other. The KL of best-of-n is a bound from above (`evals.best_of_n.kl`), as in
the paper, that of RL an estimate. The gold score of best-of-n is on held-out
prompts, that of RL on the prompts of each iteration, both against the start on
the same kind of prompts.

The start of RL is the mean over the models' first iterations, which the start
samples. A stage's key and order of prompts are of its name, so that the RL of
the two smaller reward models, both named `ppo`, share their noise: in the first
iteration they have the same samples, which the mean has twice, and their later
curves are not independent of each other.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rlhf_jax import checkpoint, metrics
from rlhf_jax.evals import (
    best_of_n, finished, intervals, overoptimisation, results,
)
from rlhf_jax.evals.overoptimisation import BEST_OF_N, RL, Fit, Form
from rlhf_jax.evals.results import Row
from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import charts, measuring
from rlhf_jax.studies.study import Row as CsvRow, Study, Table

START = "main", "rl_init"  # whose samples best-of-n takes
NUM_PROMPTS = 96
NUM_SAMPLES = 256
WIDTH = 5  # iterations whose mean is a point of figures and tables
# What RL may lose before its gold score is near the floor of 0, as a share of
# what the start scores on held-out prompts: its score on RL's own prompts,
# which its gains are over, is in no row.
MOST_LOST = 0.9

Stage = tuple[str, str]  # run, stage


@dataclasses.dataclass(frozen=True)
class Model:
  """A reward model and the PPO that optimised it."""

  label: str
  reward_model: Stage
  ppo: Stage


# "all" are those that cleaning leaves of 4,500 prompts, some 4,320.
MODELS = (
    Model("940 k, 250 comparisons", ("counts", "rm@n250"),
          ("gao", "ppo@n250")),
    Model("940 k, 1,000 comparisons", ("counts", "rm@n1000"),
          ("gao", "ppo@n1000")),
    Model("940 k, all comparisons", ("main", "rm"), ("gao", "ppo@n4500")),
    Model("220 k, all comparisons", ("gao_220k", "rm"), ("gao_220k", "ppo")),
    Model("60 k, all comparisons", ("gao_60k", "rm"), ("gao_60k", "ppo")),
)


# -------------------------------------------------------------------- measure


def measure(runs: Mapping[str, Run]) -> Iterator[Result]:
  """Yields best-of-n of every reward model, then RL on it: gains by n and by
  iteration, and the fitted forms."""
  models = [model for model in MODELS if all(
      _is_done(runs, *stage) for stage in (model.reward_model, model.ppo))]
  run = runs[START[0]]
  samples = best_of_n.sample_many(run, START[1], NUM_PROMPTS, NUM_SAMPLES)
  gold = best_of_n.gold(run, samples)
  yield Result(*START, "start", results.mean("gold", gold.mean(axis=1)))
  yield Result(*START, "start", results.constant(
      "gold_sd", gold.std(), len(gold)))
  sds = {}
  for model in metrics.track("scores", models, "model"):
    name, stage = model.reward_model
    scores = best_of_n.scores(runs[name], stage, samples)
    sds[model] = float(scores.std())
    for policy, task, row in best_of(scores / sds[model], gold / gold.std()):
      yield Result(name, f"{stage}{policy}", task, row)
  curves = {model: read_curve(runs, model) for model in models}
  # runs of one stage name share their noise, and count it more than once
  start = np.mean([curve.gold[0] for curve in curves.values()])
  for model, curve in curves.items():
    name, stage = model.ppo
    for policy, task, row in trained(
        curve.gains(start, float(gold.std()), sds[model])):
      yield Result(name, f"{stage}{policy}", task, row)


def _is_done(runs: Mapping[str, Run], run: str, stage: str) -> bool:
  return run in runs and finished.is_done(runs[run], stage)


Found = Iterator[tuple[str, str, Row]]  # what follows the stage; task; Row


def best_of(proxy: np.ndarray, gold: np.ndarray) -> Found:
  """Yields the gains of the best of n, and the fit with its interval over
  prompts.

  Args:
    proxy: float [P, N], scores over their SD.
    gold: float [P, N], likewise.
  """
  sizes = best_of_n.powers_of_two(proxy.shape[1] // 2)
  gains = {name: np.stack([
      best_of_n.expected_best(proxy, values, n) - values.mean(1)
      for n in sizes]) for name, values in (("gold", gold), ("proxy", proxy))}
  for number, n in enumerate(sizes):
    row = results.constant("kl", best_of_n.kl(n), len(gold))
    yield f"/best_of_{n}", "best_of_n", row
    for name, of in gains.items():
      yield f"/best_of_{n}", "best_of_n", results.mean(
          f"{name}_gain", of[number])
  d = np.sqrt(best_of_n.kl(np.array(sizes)))

  def fitted(weights):
    return overoptimisation.fit(
        BEST_OF_N, d, gains["gold"] @ weights / weights.sum())

  if (d > 0).sum() >= overoptimisation.MIN_POINTS:
    for row in fit_rows(fitted, gold.shape[0]):
      yield "", "fit", row


@dataclasses.dataclass(frozen=True)
class Curve:
  """What PPO logged, float [iterations] each.

  Attributes:
    steps: the iterations, from 1.
    kl: to the start, the mean log-ratio of the samples.
    gold: mean gold score.
    proxy: mean score as the reward model gives it.
    episodes: of an iteration.
  """

  steps: np.ndarray
  kl: np.ndarray
  gold: np.ndarray
  proxy: np.ndarray
  episodes: int

  def gains(self, start: float, gold_sd: float, proxy_sd: float) -> "Curve":
    """Over the gold score of the start, and over the first iteration's proxy,
    which the start made."""
    return dataclasses.replace(
        self, gold=(self.gold - start) / gold_sd,
        proxy=(self.proxy - self.proxy[0]) / proxy_sd)


def read_curve(runs: Mapping[str, Run], model: Model) -> Curve:
  """Of a model's PPO."""
  name, stage = model.ppo
  rows = metrics.read(runs[name].workdir, stage)
  of = lambda key: np.array([row[f"train/ppo/{key}"] for row in rows], float)
  # PPO scales what it is given; undone, so that it is as best-of-n sees it
  figures = lambda run, of: checkpoint.read_done(
      runs[run].stage_dir(of))["figures"]
  unit = (figures(*model.reward_model)["score_sd"]
          / figures(name, stage)["score_unit"])
  return Curve(np.array([row["step"] for row in rows]), of("kl"), of("gold"),
               of("score") * unit, runs[name].config[stage].batch_size)


def trained(curve: Curve) -> Found:
  """Yields the gains of every iteration, and the fit to all of them with its
  interval over iterations."""
  for step, *values in zip(curve.steps, curve.kl, curve.gold, curve.proxy):
    for name, value in zip(("kl", "gold_gain", "proxy_gain"), values):
      yield f"/iteration_{step}", "rl", Row(
          name, float(value), np.nan, np.nan, curve.episodes)
  d = roots(curve.kl)
  fitted = lambda weights: overoptimisation.fit(RL, d, curve.gold, weights)
  if (d > 0).sum() < 4 * WIDTH:  # too few to say anything
    return
  for row in fit_rows(fitted, len(d)):
    yield "", "fit", row
  means = binned(d), binned(curve.gold)
  yield "", "fit", results.constant(
      "r2_of_means", overoptimisation.r2(fitted(np.ones(len(d))), *means),
      len(means[0]))


def fit_rows(fitted, n: int) -> Iterator[Row]:
  """Yields a fit as Rows.

  Args:
    fitted: (float [n], how often each prompt or iteration was drawn) -> Fit.
    n: of those.
  """
  found: Fit = fitted(np.ones(n))
  low, high = intervals.bootstrap(
      lambda weights: np.array(_coefficients(fitted(weights))), n)
  for name, *of in zip(("alpha", "beta"), _coefficients(found), low, high):
    mean, least, most = map(float, of)
    yield Row(name, mean, least, most, n)
  yield results.constant("r2", found.r2, n)
  yield results.constant("max_d", found.max_d, n)
  yield results.constant("peak_is_inside", found.has_peak_inside, n)
  if found.peak and found.peak[0] < 10 * found.max_d:  # else it says nothing
    for name, value in zip(("peak_d", "peak_gain"), found.peak):
      yield results.constant(name, value, n)


def _coefficients(found: Fit) -> tuple[float, float]:
  return found.alpha, found.beta


def roots(kl: np.ndarray) -> np.ndarray:
  """sqrt(KL); an estimate below 0 is of a KL that is about 0."""
  return np.sqrt(np.maximum(kl, 0.0))


def binned(values: np.ndarray, width: int = WIDTH) -> np.ndarray:
  """Means of `width` values after each other, fewer at the end."""
  return np.array([np.mean(values[start:start + width])
                   for start in range(0, len(values), width)])


# ------------------------------------------------------------ tables, figure


@dataclasses.dataclass(frozen=True)
class Line:
  """One model by one method, float [points] each, means over the seeds.

  Attributes:
    method: "best-of-n" or "RL".
    d: ROOT.
    gold, proxy: gains.
    seeds: seed -> its gold gains.
  """

  label: str
  method: str
  stage: Stage
  d: np.ndarray
  gold: np.ndarray
  proxy: np.ndarray
  seeds: Mapping[Any, np.ndarray]


ROOT = "sqrt(KL), of best-of-n the root of a bound of it from above"
# Of each method's panel.
AXES = {"best-of-n": "sqrt of a bound of the KL to the start",
        "RL": "sqrt(KL) to the start"}
METHODS: dict[str, tuple[str, Form]] = {
    "best-of-n": ("best_of_n", BEST_OF_N), "RL": ("rl", RL)}


def lines(rows: Sequence[CsvRow]) -> list[Line]:
  """All that was measured; RL's are means of WIDTH iterations."""
  found = []
  for method, (task, _) in METHODS.items():
    for model in MODELS:
      stage = model.reward_model if method == "best-of-n" else model.ppo
      seeds = points(rows, task, stage)
      if method == "RL":
        seeds = {name: {seed: binned(of) for seed, of in those.items()}
                 for name, those in seeds.items()}
      if seeds:
        d, gold, proxy = (
            np.mean(list(seeds[name].values()), axis=0)
            for name in ("d", "gold_gain", "proxy_gain"))
        found.append(Line(model.label, method, stage, d, gold, proxy,
                          seeds["gold_gain"]))
  return found


def points(rows: Sequence[CsvRow], task: str, stage: Stage
           ) -> dict[str, dict[Any, np.ndarray]]:
  """Name -> seed -> float [points], in the order of n or of iterations; {}
  where there are none."""
  found: dict[str, dict[Any, list[float]]] = {}
  for row in rows:
    if (row["task"], row["run"]) == (task, stage[0]) and (
        row["policy"].startswith(f"{stage[1]}/")):
      of = found.setdefault(row["name"], {})
      of.setdefault(row["seed"], []).append(row["mean"])
  arrays = {name: {seed: np.array(of, float) for seed, of in seeds.items()}
            for name, seeds in found.items()}
  if arrays:
    arrays["d"] = {seed: roots(of) for seed, of in arrays.pop("kl").items()}
  return arrays


def tables(rows: Sequence[CsvRow]) -> list[Table]:
  """The coefficients, and where the gold score falls."""
  found = lines(rows)
  return [
      Table("Fitted forms: mean and range of the seeds; gains in SDs of the "
            f"start's samples, d = {ROOT}",
            ("reward model", "method", "alpha", "beta", "R²", "R² of means",
             "largest d", "peak d", "peak gain", "seeds with a peak",
             "peak inside"),
            [_fit_cells(rows, line) for line in found]),
      Table("Where the proxy rises and the gold score falls: means of the "
            f"seeds, of RL over {WIDTH} iterations; d = {ROOT}",
            ("reward model", "method", "d at best gold", "gold", "proxy",
             "d at the end", "gold", "proxy", "seeds that fall"),
            [_fall_cells(line) for line in found]),
      Table("RL before the gold score nears its floor of 0, which the form "
            f"does not know: up to where {WIDTH} iterations have lost more "
            f"than {MOST_LOST:.0%} of what the start scores on held-out "
            "prompts",
            ("reward model", "iterations", "alpha", "beta", "R²",
             "R² of means", "largest d", "peak d", "peak gain",
             "seeds with that peak inside"),
            [_floor_cells(rows, line) for line in found
             if line.method == "RL"]),
  ]


@dataclasses.dataclass(frozen=True)
class AboveFloor:
  """RL's form by the iterations before MOST_LOST is lost.

  Attributes:
    number: of those iterations.
  """

  number: int
  fit: Fit
  r2_of_means: float


def above_floor(rows: Sequence[CsvRow], line: Line) -> list[AboveFloor]:
  """A fit a seed, where there are enough iterations.

  The cut is at a loss of gold, which the rows have: the gains of RL are over
  the start on RL's prompts, and lost is as much as MOST_LOST of the start's
  score on held-out ones.
  """
  start = {name: measuring.values(
      rows, run=START[0], policy=START[1], task="start", name=name)
           for name in ("gold", "gold_sd")}
  of, found = points(rows, "rl", line.stage), []
  for seed, gold in of["gold_gain"].items():
    lost = MOST_LOST * start["gold"][seed] / start["gold_sd"][seed]
    is_lost = binned(gold) < -lost
    number = WIDTH * int(is_lost.argmax()) if is_lost.any() else len(gold)
    d, gold = of["d"][seed][:number], gold[:number]
    if (d > 0).sum() >= 4 * WIDTH:
      fit = overoptimisation.fit(RL, d, gold)
      found.append(AboveFloor(number, fit, overoptimisation.r2(
          fit, binned(d), binned(gold))))
  return found


def _floor_cells(rows: Sequence[CsvRow], line: Line) -> list[str]:
  """A peak outside of the iterations says nothing of them."""
  found = above_floor(rows, line)
  fits = [of.fit for of in found]
  peaks = [fit.peak for fit in fits if fit.has_peak_inside]
  return [line.label, *(measuring.shown(values, digits) for values, digits in (
      ([of.number for of in found], 0), ([fit.alpha for fit in fits], 2),
      ([fit.beta for fit in fits], 2), ([fit.r2 for fit in fits], 2),
      ([of.r2_of_means for of in found], 2), ([fit.max_d for fit in fits], 2),
      ([d for d, _ in peaks], 2), ([gain for _, gain in peaks], 2))),
          f"{len(peaks)} of {len(found)}"]


def _of_fit(line: Line, name: str) -> dict[str, str]:
  run, policy = line.stage
  return dict(run=run, policy=policy, task="fit", name=name)


def _fit_cells(rows: Sequence[CsvRow], line: Line) -> list[str]:
  """Of a form without a peak, or with one far away, no seed has a row."""
  names = ("alpha", "beta", "r2", "r2_of_means", "max_d", "peak_d", "peak_gain")
  inside, peaks = (measuring.values(rows, **_of_fit(line, name))
                   for name in ("peak_is_inside", "peak_d"))
  return [line.label, line.method,
          *(measuring.spread(rows, 2, **_of_fit(line, name))
            for name in names),
          f"{len(peaks)} of {len(inside)}",
          f"{sum(inside.values()):.0f} of {len(inside)}"]


def _fall_cells(line: Line) -> list[str | float]:
  """The best is that of the mean of all seeds; then each seed may say whether
  it lies higher there than in the end."""
  best = int(line.gold.argmax())
  fall = sum(of[best] > of[-1] for of in line.seeds.values())
  return [line.label, line.method, *(
      f"{of[at]:.2f}" for at in (best, -1)
      for of in (line.d, line.gold, line.proxy)),
          f"{fall} of {len(line.seeds)}"]


def draw(rows: Sequence[CsvRow], figure: Any) -> None:
  """Gold (solid: the fitted form through its points, RL's above its floor) and
  proxy (dashed) over sqrt(KL)."""
  figure.set_size_inches(10, 5)
  panels = dict(zip(METHODS, figure.subplots(1, 2)))
  colors = dict(zip((model.label for model in MODELS), charts.COLORS))
  for line in lines(rows):
    panel, color = panels[line.method], colors[line.label]
    panel.plot(line.d, line.proxy, "--", color=color, linewidth=1)
    spread = np.stack(list(line.seeds.values()))
    panel.errorbar(
        line.d, line.gold, np.abs([
            spread.min(0) - line.gold, spread.max(0) - line.gold]),
        color=color, fmt="o", markersize=3, linewidth=0.8)
    _draw_form(panel, rows, line, color)
  for method, panel in panels.items():
    panel.set(title=method, xlabel=AXES[method])
    panel.axhline(0, color=charts.GREY, linewidth=0.8)
  panels["best-of-n"].set_ylabel("gain over the start, SDs of its samples")
  _legend(figure, panels["RL"], colors)


def _draw_form(panel: Any, rows: Sequence[CsvRow], line: Line, color: str
               ) -> None:
  """The mean of the seeds' curves, drawn nowhere where there is no fit."""
  form, end = METHODS[line.method][1], float(line.d.max())
  if line.method == "RL":
    fits = [of.fit for of in above_floor(rows, line)]
    if not fits:
      return
    found = np.mean([_coefficients(fit) for fit in fits], axis=0)
    end = min(fit.max_d for fit in fits)
  else:
    found = np.array([measuring.value(rows, **_of_fit(line, name))
                      for name in ("alpha", "beta")])
  d = np.linspace(0, end, 200)
  panel.plot(d, form.terms(d) @ found, color=color)


def _legend(figure: Any, panel: Any, colors: Mapping[str, str]) -> None:
  handles = [panel.plot([], [], color=color, label=label)[0]
             for label, color in colors.items()]
  handles += panel.plot([], [], "o-", color=charts.GREY, label="gold, fitted")
  handles += panel.plot([], [], "--", color=charts.GREY, label="proxy")
  figure.legend(handles=handles, loc="outside lower center", ncols=4)


STUDY = Study(
    "How far can a reward model be optimised before the gold score falls?",
    measure, tables, draw, settings={
        "num_prompts": NUM_PROMPTS, "num_samples": NUM_SAMPLES,
        "width": WIDTH})
