"""Best-of-n against PPO at PPO's KL to the policy that both start from.

Best-of-n takes, of the start's samples, that which the reward model scores
highest: nothing is trained, and n is its only setting. Every PPO policy that
optimised the same reward model answers the same held-out prompts, and is held
against the best of as many samples as have its KL at most. That of best-of-n is
known by a bound from above (`evals.best_of_n.kl`), that of PPO exactly: where
samples are alike best-of-n could have more of them at PPO's KL.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from rlhf_jax import metrics, sampler, sharding
from rlhf_jax.evals import (
    best_of_n, contest, divergence, finished, preferences, responses, results,
)
from rlhf_jax.evals.best_of_n import Samples
from rlhf_jax.evals.results import Row
from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import charts, measuring
from rlhf_jax.studies.study import Row as CsvRow, Study, Table

MAIN, START, BASELINE, REWARD_MODEL = "main", "rl_init", "sft", "rm"
NUM_PROMPTS = 96
NUM_SAMPLES = 256  # of the start; n goes up to half of them
NUM_ANSWERS = 16  # of each PPO policy, a prompt
NUM_JUDGED = 4  # of them, and of best-of-n, held against the baseline's
JUDGED_SIZES = (1, 4, 16, 64)


# -------------------------------------------------------------------- measure


@dataclasses.dataclass(frozen=True)
class Scored:
  """Answers to P prompts, N each.

  Attributes:
    samples: the answers.
    gold: float [P, N].
    proxy: float [P, N], the reward model's scores.
  """

  samples: Samples
  gold: np.ndarray
  proxy: np.ndarray

  def texts(self, number: int) -> list[str]:
    """The answers of that number, [P]."""
    return [group[number].text for group in self.samples.responses]

  def best_texts(self, n: int, number: int) -> list[str]:
    """Of the number-th n samples those that the proxy scores highest, [P]."""
    first = number * n
    best = first + self.proxy[:, first:first + n].argmax(axis=1)
    return [group[at].text
            for group, at in zip(self.samples.responses, best)]


def measure(runs: Mapping[str, Run]) -> Iterator[Result]:
  """Yields the curve of best-of-n, then every PPO policy beside it."""
  run = runs[MAIN]
  judge = contest.heldout_labelers(run).judge
  drawn = best_of_n.sample_many(run, START, NUM_PROMPTS, NUM_SAMPLES)
  start, scale = _in_sds(_scored(run, drawn))
  baseline = best_of_n.sample_many(run, BASELINE, NUM_PROMPTS, NUM_JUDGED)

  def win_rate(answers: Sequence[Sequence[str]]) -> Row:
    """Of the first answers, the next ones ..., to every prompt."""
    return results.mean("win_rate", np.mean([
        _points(judge, drawn.prompts, texts, [
            group[number].text for group in baseline.responses])
        for number, texts in enumerate(answers)], axis=0))

  for policy, row in curve(start):
    yield Result(MAIN, policy, "best_of_n", row)
  for n in JUDGED_SIZES:
    if n <= NUM_SAMPLES // 2:  # of the curve
      yield Result(MAIN, f"best_of_{n}", "best_of_n", win_rate([
          start.best_texts(n, number)
          for number in range(min(NUM_JUDGED, NUM_SAMPLES // n))]))
  for name, policy, answers, kls in _answers(runs, drawn.rows):
    found = scale(_scored(run, answers))
    method = runs[name].config[policy].method
    for key in ("kl_coef", "ptx_coef"):
      yield measuring.setting(name, policy, key, method[key])
    for row in beside(start, found, kls):
      yield Result(name, policy, "ppo", row)
    yield Result(name, policy, "ppo", win_rate(
        [found.texts(number) for number in range(NUM_JUDGED)]))


def _scored(run: Run, samples: Samples) -> Scored:
  return Scored(samples, best_of_n.gold(run, samples),
                best_of_n.scores(run, REWARD_MODEL, samples))


def _in_sds(start: Scored):
  """The start with the proxy in SDs over its mean, and what makes others so."""
  mean, sd = start.proxy.mean(), start.proxy.std()
  scale = lambda of: dataclasses.replace(of, proxy=(of.proxy - mean) / sd)
  return scale(start), scale


def _points(judge, prompts, ours, theirs) -> list[float]:
  """Of each of our texts against theirs, in both orders."""
  return [preferences.swapped_points(judge, number, *texts)
          for number, texts in enumerate(zip(prompts, ours, theirs))]


def curve(start: Scored) -> Iterator[tuple[str, Row]]:
  """Yields (best_of_N, Row) of the bound of the KL, gold and proxy for n up to
  half the samples."""
  for n in best_of_n.powers_of_two(start.proxy.shape[1] // 2):
    yield f"best_of_{n}", results.constant(
        "kl", best_of_n.kl(n), len(start.proxy))
    for name in ("gold", "proxy"):
      yield f"best_of_{n}", results.mean(name, best_of_n.expected_best(
          start.proxy, getattr(start, name), n))


def beside(start: Scored, found: Scored, kls: np.ndarray) -> Iterator[Row]:
  """Yields a policy's KL, gold and proxy, and where the bound of best-of-n's KL
  reaches that what it has there and what the policy has more.

  `n_of_equal_kl` is of an equal bound: at an equal KL n would be no smaller.

  Args:
    start: whose samples best-of-n takes.
    found: the policy's answers to the same prompts.
    kls: float [P, M], exact, of its answers.
  """
  yield results.mean("kl", kls.mean(axis=1))
  for name in ("gold", "proxy"):
    ours = getattr(found, name).mean(axis=1)
    yield results.mean(name, ours)
    at = best_of_n.at_kl(start.proxy, getattr(start, name), float(kls.mean()))
    if at is not None:
      n, theirs = at
      yield results.mean(f"{name}_of_best_of_n", theirs)
      yield results.mean(f"{name}_over_best_of_n", ours - theirs)
      if name == "gold":
        yield results.constant("n_of_equal_kl", n, len(ours))


def _answers(runs: Mapping[str, Run], rows
             ) -> list[tuple[str, str, Samples, np.ndarray]]:
  """(run, policy, answers, exact KL [P, M]) of every PPO policy."""
  run = runs[MAIN]
  size = run.batch_size_for(best_of_n.BATCH_SIZE)
  repeated = best_of_n.repeated(rows, NUM_ANSWERS)
  trained = [(name, stage) for name, of in runs.items()
               for stage in finished.stages(of, ("ppo",))]
  found = []
  with sharding.use(run.mesh, run.axis_rules):
    reference = run.policy_params(START)
    generate = sampler.make_generate(run, run.policy(), temperature=1.0)
    kl = jax.jit(divergence.make_kl(run.policy(), 1.0),
                 out_shardings=sharding.replicated(run.mesh))
    with metrics.Progress(
        "answers", 0, len(trained) * len(repeated), "text") as progress:
      for name, policy in trained:
        drawn, kls, _ = responses.sample(
            run, generate, kl, run.key(f"best_of_n/{name}/{policy}"),
            runs[name].policy_params(policy), reference, repeated, size,
            progress.update)
        found.append((name, policy, best_of_n.grouped(rows, drawn),
                      kls.reshape(len(rows), NUM_ANSWERS)))
  return found


# ------------------------------------------------------------ tables, figure


@dataclasses.dataclass(frozen=True)
class Policy:
  """What rows call it by, and what figures do."""

  run: str
  name: str
  task: str
  label: str
  kl: float


def policies(rows: Sequence[CsvRow]) -> list[Policy]:
  """All of the rows, by their KL."""
  whos = dict.fromkeys((row["run"], row["policy"], row["task"])
                       for row in rows if row["task"] in ("best_of_n", "ppo"))
  return sorted((
      Policy(*who, _label(rows, *who), measuring.value(
          rows, run=who[0], policy=who[1], task=who[2], name="kl"))
      for who in whos), key=lambda policy: policy.kl)


def _label(rows: Sequence[CsvRow], run: str, policy: str, task: str) -> str:
  if task == "best_of_n":
    return policy.replace("_", " ")
  kl_coef, ptx_coef = (measuring.value(
      rows, run=run, policy=policy, task="setting", name=name)
                       for name in ("kl_coef", "ptx_coef"))
  return f"PPO, kl_coef {kl_coef:g}, ptx_coef {ptx_coef:g}"


def _cells(rows: Sequence[CsvRow], policy: Policy, names: Sequence[str]
           ) -> list[str]:
  return [policy.label, *(measuring.spread(
      rows, 2, run=policy.run, policy=policy.name, task=policy.task, name=name)
                          for name in names)]


def _over_prompts(rows: Sequence[CsvRow], policy: Policy, name: str) -> str:
  """Half the 95 % interval of a seed, the mean over seeds."""
  halves = [(row["high"] - row["low"]) / 2 for row in rows
            if (row["run"], row["policy"], row["task"], row["name"]) == (
                policy.run, policy.name, policy.task, name)]
  return f"± {np.mean(halves):.2f}" if halves else "-"


def tables(rows: Sequence[CsvRow]) -> list[Table]:
  """PPO at an equal KL, and how often all are preferred to SFT."""
  found = policies(rows)
  return [
      Table("PPO against the best of n whose KL is at most PPO's, by the bound "
            "log n - (n - 1)/n: mean and range of the seeds, of the gold "
            "difference also a seed's 95 % interval over prompts; a line is of "
            "the seeds whose KL the bound reaches",
            ("policy", "KL", "n", "gold", "of best-of-n", "difference",
             "interval", "proxy", "of best-of-n", "difference", "seeds"),
            [_compared(rows, policy)
             for policy in found if policy.task == "ppo"]),
      Table("How often held-out labelers prefer it to SFT: mean and range of "
            "the seeds; the KL of best-of-n is a bound from above",
            ("policy", "KL", "gold", "win rate"),
            [_cells(rows, policy, ("kl", "gold", "win_rate"))
             for policy in found if measuring.values(
                 rows, run=policy.run, policy=policy.name, name="win_rate")]),
  ]


_COMPARED = ("kl", "n_of_equal_kl", "gold", "gold_of_best_of_n",
             "gold_over_best_of_n", "proxy", "proxy_of_best_of_n",
             "proxy_over_best_of_n")


def _compared(rows: Sequence[CsvRow], policy: Policy) -> list[str]:
  """A line of the seeds that have all of it: a mean of other seeds than the
  one beside it would compare seeds."""
  seeds = [set(_by_seed(rows, policy, name)) for name in _COMPARED]
  kept = set.intersection(*seeds)
  ours = [row for row in rows if row["seed"] in kept]
  label, *cells = _cells(ours, policy, _COMPARED)
  return [label, *cells[:5],
          _over_prompts(ours, policy, "gold_over_best_of_n"), *cells[5:],
          f"{len(kept)} of {len(set.union(*seeds))}"]


def draw(rows: Sequence[CsvRow], figure: Any) -> None:
  """Gold and proxy score over the KL: best-of-n as a line, PPO as points."""
  figure.set_size_inches(10, 5)
  titles = {"gold": "gold score", "proxy": "proxy score, SDs of the start"}
  panels = dict(zip(titles, figure.subplots(1, 2)))
  found = policies(rows)
  for name, panel in panels.items():
    _draw_curve(panel, rows, name, [
        policy for policy in found if policy.task == "best_of_n"])
    for number, policy in enumerate(
        policy for policy in found if policy.task == "ppo"):
      _draw_policy(panel, rows, name, policy, number)
    panel.set(title=titles[name],
              xlabel="KL to the start, nats (of best-of-n a bound)")
  handles, labels = panels["gold"].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _found(rows: Sequence[CsvRow], policy: Policy, name: str) -> list[float]:
  """A figure of each seed."""
  return list(_by_seed(rows, policy, name).values())


def _by_seed(rows: Sequence[CsvRow], policy: Policy, name: str
             ) -> dict[int, float]:
  return measuring.values(
      rows, run=policy.run, policy=policy.name, task=policy.task, name=name)


def _draw_curve(panel: Any, rows: Sequence[CsvRow], name: str,
                points: Sequence[Policy]) -> None:
  """The mean over seeds, within their range; by each point its n."""
  seeds = [_found(rows, policy, name) for policy in points]
  kls, means = [policy.kl for policy in points], [np.mean(of) for of in seeds]
  panel.plot(kls, means, ".-", color=charts.GREY, label="best-of-n")
  panel.fill_between(kls, [min(of) for of in seeds], [max(of) for of in seeds],
                     color=charts.GREY, alpha=0.15, linewidth=0)
  for policy, mean in zip(points, means):
    panel.annotate(policy.name.removeprefix("best_of_"), (policy.kl, mean),
                   xytext=(0, 5), textcoords="offset points", ha="center",
                   fontsize=7, color=charts.GREY)


def _draw_policy(panel: Any, rows: Sequence[CsvRow], name: str, policy: Policy,
                 number: int) -> None:
  """The mean over seeds; lines as far as they range."""
  kls, values = _found(rows, policy, "kl"), _found(rows, policy, name)
  ends = lambda of: [[np.mean(of) - min(of)], [max(of) - np.mean(of)]]
  panel.errorbar(
      [np.mean(kls)], [np.mean(values)], ends(values), ends(kls),
      fmt="osD^v<>"[number % 7], color=charts.COLORS[number % 6],
      label=policy.label)


STUDY = Study(
    "Which gains more at an equal KL, best-of-n or PPO?",
    measure, tables, draw, settings={
        "num_prompts": NUM_PROMPTS, "num_samples": NUM_SAMPLES,
        "num_answers": NUM_ANSWERS, "num_judged": NUM_JUDGED,
        "judged_sizes": JUDGED_SIZES})
