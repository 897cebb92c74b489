"""Runs evaluators on the policies and reward models of finished runs."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from rlhf_jax import config as config_lib, metrics, sharding
from rlhf_jax.config import names
from rlhf_jax.evals import (
    contest, finished, prompted, registry, responses, subjects,
)
from rlhf_jax.evals.contest import Who
from rlhf_jax.evals.registry import Evaluator, LeftOut
from rlhf_jax.evals.responses import Responses
from rlhf_jax.evals.results import Row
from rlhf_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Options:
  """How is measured; names are of stages.

  Attributes:
    policies: whose figures, () for those that a run's own evaluation names, or
      all that are finished; STAGE+prompted is a stage's behind a few-shot
      prefix.
    baseline: win rates are against it, "" for that of the run's evaluation.
    reference: whom the KL is to, likewise.
    judge: "labelers", or a reward model of the first run; likewise.
    batch_size: rows of a compiled batch; None for that of the run's
      evaluation, or 32.
    num_prompts: held-out prompts.
    temperature: of the responses to them.
    limit: items of a benchmark; None for all.
    seed: of the responses' noise; 0 gives those of the stage `evaluate`.
  """

  policies: tuple[str, ...] = ()
  baseline: str = ""
  reference: str = ""
  judge: str = ""
  batch_size: int | None = None
  num_prompts: int = 512
  temperature: float = 1.0
  limit: int | None = None
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
  """An evaluator with its items; one that was asked for by name, not as one of
  a suite, is done or refused."""

  evaluator: Evaluator
  items: Sequence[Any]
  is_asked: bool

  @functools.cached_property
  def num_texts(self) -> int:
    if self.evaluator.scope != registry.MODEL:
      return 0
    return sum(item.num_texts for item in self.items)

  def measure(self, *subject: Any) -> Iterator[Row]:
    return self.evaluator.measure(
        *subject, *([self.items] if self.evaluator.read else []))


@dataclasses.dataclass(frozen=True)
class Result:
  """A Row, and what it is of; `policy` may be a reward model's stage."""

  run: str
  policy: str
  task: str
  row: Row

  def as_json(self) -> dict[str, Any]:
    return {"run": self.run, "policy": self.policy, "task": self.task,
            **self.row.as_json()}


@dataclasses.dataclass
class Report:
  """What was measured, and what was not: task -> why; and by (run, policy) the
  few-shot prefixes of prompted policies."""

  results: list[Result] = dataclasses.field(default_factory=list)
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  prefixes: dict[Who, str] = dataclasses.field(default_factory=dict)


def prepare(names_: Sequence[str], root: str, limit: int | None
            ) -> tuple[dict[str, Task], dict[str, str]]:
  """Reads what evaluators need, before anything is computed.

  Args:
    names_: as of `registry.chosen`.
    root: the data folder, "" for none.
    limit: items of a benchmark; None for all.

  Returns:
    The tasks that can be done, and those that a suite lists and that cannot,
    with the reason.

  Raises:
    LeftOut: an evaluator that was asked for by name cannot be run.
    DataError: an unknown name, or a row of a file is not of its format.
  """
  chosen, asked = registry.chosen(names_)
  tasks, left_out = {}, {}
  for name, evaluator in chosen.items():
    try:
      if evaluator is None:
        raise LeftOut(registry.UNMEASURED[name])
      tasks[name] = Task(
          evaluator, evaluator.items(root, limit), name in asked)
    except LeftOut as reason:
      if name in asked:
        raise LeftOut(f"--suite={name}: {reason}") from None
      left_out[name] = str(reason)
  return tasks, left_out


class Measurement:
  """One call of the command: what is measured on whom."""

  def __init__(self, runs: Mapping[str, Run], tasks: Mapping[str, Task],
               left_out: Mapping[str, str], options: Options):
    """Decides who is measured by what.

    Args:
      runs: by the names that results have.
      tasks: as of `prepare`.
      left_out: likewise.
      options: how.

    Raises:
      CheckpointError: a policy that the options name is not there.
      LeftOut: a task that was asked for cannot be done, or the judge or a
        prompted policy not be.
    """
    self.runs, self.options = dict(runs), options
    self.report = Report(left_out=dict(left_out))
    self.tasks = dict(tasks)
    self.policies = {name: finished.policies_of(run, options.policies)
                     for name, run in self.runs.items()}
    for name, run in self.runs.items():
      if any(map(finished.is_prompted, self.policies[name])):
        prompted.prefixes(run)  # refused here where there can be none
    self.baseline = {
        name: finished.choose(
            run, "baseline", options.baseline,
            (finished.own_setting(run, "baseline", "sft"), "sft"))
        for name, run in self.runs.items()}
    self.responses: dict[Who, Responses] = {}
    self.judge: str | None = None
    for name, task in tasks.items():
      for run in self.runs.values():
        self._leave_out_for(finished.why_not(run, task.evaluator), name)
    if self._of(registry.CONTEST):
      self._prepare_contest()

  def _prepare_contest(self) -> None:
    judged = {
        name: policies if self.baseline[name] in policies else [
            self.baseline[name], *policies]
        for name, policies in self.policies.items()}
    try:
      self.judge = finished.choose_judge(
          self.runs, self.options.judge, judged)
    except LeftOut as reason:
      if self.options.judge:
        raise
      self._leave_out_for(str(reason), *self._of(registry.CONTEST))
      return
    self.policies = judged
    if sum(map(len, self.policies.values())) < 2:
      self._leave_out_for("there is one policy only", "elo")
    shared = set.intersection(*(
        {row["prompt"] for row in responses.held_out_prompts(
            run, self.options.num_prompts)} for run in self.runs.values()))
    if not shared:
      self._leave_out_for("the runs have no held-out prompt in common", "elo")

  def _leave_out_for(self, reason: str, *tasks: str) -> None:
    """Leaves out tasks if there is a reason; refuses those asked for."""
    for name in tasks:
      if reason and name in self.tasks:
        if self.tasks[name].is_asked:
          raise LeftOut(f"--suite={name}: {reason}")
        self.report.left_out[name] = reason
        del self.tasks[name]

  def _of(self, *scopes: str) -> dict[str, Task]:
    return {name: task for name, task in self.tasks.items()
            if task.evaluator.scope in scopes}

  def measure(self) -> Iterator[Report]:
    """Yields what is measured so far after each policy, and in the end: all
    tasks on all runs, one policy in memory at a time."""
    benches = {}
    for name, run in self.runs.items():
      with self._using(run):
        benches[name] = self._bench(run)
    total = sum(self._num_texts(bench, policy)
                for name, bench in benches.items()
                for policy in self.policies[name])
    with metrics.Progress("evaluate", 0, total, "text") as self._progress:
      for name, bench in benches.items():
        for policy in self.policies[name]:
          with self._using(bench.run):
            self._measure_policy(name, bench, policy)
          yield self.report
        with self._using(bench.run):
          self._measure_reward_models(name, bench)
        bench.release()
      if self._of(registry.CONTEST):
        self._measure_contest(next(iter(benches.values())))
    yield self.report

  def _using(self, run: Run) -> contextlib.AbstractContextManager[None]:
    return sharding.use(run.mesh, run.axis_rules)

  def _tick(self, number: int) -> None:
    self._progress.update(number)

  def _bench(self, run: Run) -> subjects.Bench:
    options = self.options
    reference = finished.choose(run, "kl_reference", options.reference, (
        finished.own_setting(run, "reference", "rl_init"), "rl_init", "sft"))
    return subjects.Bench(run, subjects.Settings(
        reference=reference, batch_size=options.batch_size or (
            finished.own_setting(run, "batch_size", 32)),
        num_prompts=options.num_prompts, temperature=options.temperature,
        limit=options.limit, seed=options.seed), self._tick)

  def _num_texts(self, bench: subjects.Bench, policy: str) -> int:
    """What is read and written for a policy."""
    number = 0
    if self._of(registry.RESPONSES, registry.CONTEST):
      number += len(bench.prompts) * (1 + len(self._of(registry.CONTEST)))
      if finished.is_prompted(policy):
        number += prompted.NUM_PREFIXES * prompted.NUM_PROMPTS
    if finished.is_prompted(policy):
      return number
    number += sum(task.num_texts for task in self.tasks.values())
    if any(task.evaluator.data == "pretrain" for task in self.tasks.values()):
      number += len(bench.windows)
    if "facts" in self.tasks:
      number += sum(fact.num_texts for fact in bench.facts)
    return number

  def _measure_policy(
      self, name: str, bench: subjects.Bench, policy: str) -> None:
    params = bench.run.policy_params(finished.stage_of(policy))
    if finished.is_prompted(policy):
      # of what the stage knows its own figures hold
      model = prompted.PromptedPolicy(bench, policy, params)
    else:
      model = subjects.Policy(bench, policy, params)
      for task_name, task in self._of(registry.MODEL).items():
        self._add(name, policy, task_name, task.measure(model))
    if not self._of(registry.RESPONSES, registry.CONTEST):
      return
    for task_name, task in self._of(registry.RESPONSES).items():
      self._add(name, policy, task_name, task.measure(model.responses))
    if self._of(registry.CONTEST):
      self.responses[name, policy] = model.responses
    if isinstance(model, prompted.PromptedPolicy):
      self.report.prefixes[name, policy] = model.prefix

  def _measure_reward_models(self, name: str, bench: subjects.Bench) -> None:
    if not self._of(registry.REWARD_MODEL):
      return
    for stage in finished.stages(bench.run, config_lib.REWARD_MODELS):
      model = self._reward_model(bench, stage)
      for task_name, task in self._of(registry.REWARD_MODEL).items():
        self._add(name, stage, task_name, task.measure(model))

  def _reward_model(
      self, bench: subjects.Bench, stage: str) -> subjects.RewardModel:
    return subjects.RewardModel(
        bench, stage, bench.run.load(stage, "params", bench.run.scalar()))

  def _add(self, run: str, policy: str, task: str, rows) -> None:
    self.report.results += [Result(run, policy, task, row) for row in rows]

  def _measure_contest(self, bench: subjects.Bench) -> None:
    """The first run's bench has the judge."""
    if self.judge == names.LABELERS:
      referee = contest.heldout_labelers(bench.run)
    else:
      with self._using(bench.run):
        judge = self._reward_model(bench, self.judge)
        referee = contest.of_scores(
            judge.scores_of(list(self.responses.values())))
    held = contest.Contest(
        {who: found.text_of for who, found in self.responses.items()},
        self.baseline, referee)
    for who, texts in held.entrants.items():
      for task_name, task in self._of(registry.CONTEST).items():
        self._add(*who, task_name, task.measure(held, who))
        self._tick(len(texts))
