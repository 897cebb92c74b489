"""Comparisons: K responses a prompt from several policies, ranked by labelers.

InstructGPT 3.4 and 3.5: between 4 and 9 responses, ties allowed. Training
prompts get one labeler of the training group each; validation prompts several
of each group, so that agreement can be measured. A stage leaves

  responses.jsonl    what was sampled: a prompt a line
  tasks.jsonl        where people rank: what they are asked (see `handoff`)
  comparisons.jsonl  what was ranked: one labeler's view of a prompt a line
  report.json        agreement, ties, and how each policy was rated

A line of comparisons.jsonl holds the prompt with its `split`, `user_id` and
`category`; of each response its text, policy and seed (`responses`,
`policies`, `seeds`) and what the labeler said of it (`ranks`, `likert`,
`metadata`; the latter two are empty where they were not asked); `labeler_id`
and `labeler_group`; and the `seconds` it took, null unless a person took them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import json
from typing import Any

from etils import epath
import jax

from rlhf_jax import (
    checkpoint, distributed, handoff, interruption, labelers, metrics,
    profiling, sampler, sharding, storage,
)
from rlhf_jax.config.names import EXPORT, RANKED, SMALLWORLD, asks_people
from rlhf_jax.data import records
from rlhf_jax.data.splits import unit_hash
from rlhf_jax.evals import agreement, collected
from rlhf_jax.labelers import HELDOUT, TRAIN, Labeler
from rlhf_jax.run import Run

# Noise of a response: prompt number x this + response number.
_ROWS_PER_PROMPT = 16
_UPLOAD_SECONDS = 30.0  # What a killed run with a bucket may sample anew.

Answer = dict[str, Any]  # a line of responses.jsonl


@dataclasses.dataclass(frozen=True)
class Task:
  """One prompt to be answered K times and ranked.

  Attributes:
    number: its place among the tasks of the stage.
    split: "train" or "validation".
    row: the prepared prompt.
    num_responses: K.
    groups: the labelers asked for, the group of each.
  """

  number: int
  split: str
  row: Mapping[str, Any]
  num_responses: int
  groups: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
  """Who ranks.

  Attributes:
    of: task -> its labelers.
    group_of: labeler id -> TRAIN or HELDOUT.
  """

  of: Callable[[Task], Sequence[Labeler]]
  group_of: Mapping[str, str]


def run_stage(run: Run, stage: str) -> dict[str, Any]:
  """Samples, has labelers rank, and reports; goes on where it was.

  Raises:
    handoff.WaitingForPeople: the tasks are written, the ranks are to come.
    DataError: the returned ranks are not those of the tasks.
  """
  settings = run.config[stage]
  directory = run.workdir / stage
  directory.mkdir(parents=True, exist_ok=True)
  run.writer.rewind(stage, -1)
  tasks = make_tasks(run, settings)
  answers = sample(run, stage, tasks)
  with sharding.use(run.mesh, run.axis_rules):
    panel = make_panel(run, stage, tasks, answers)
    rows = rank(stage, panel, tasks, answers)
  checkpoint.write_lines(directory / "comparisons.jsonl", rows)
  report = make_report(rows, panel)
  checkpoint.write_json(directory / "report.json", report)
  if jax.process_index() == 0:
    print(collected.format_report(report), end="\n\n", flush=True)
  figures = {
      "prompts": len(tasks),
      "responses": sum(t.num_responses for t in tasks),
      **agreement_figures(report["agreement"]),
  }
  run.writer.write(stage, 0, figures)
  return figures


def make_tasks(run: Run, settings) -> list[Task]:
  """The prompts to answer, with their K and the labelers they get."""
  groups = {
      "train": (TRAIN,),
      "validation": (TRAIN,) * settings.num_train_labels
      + (HELDOUT,) * settings.num_heldout_labels,
  }
  tasks = []
  for split, limit in (("train", settings.num_prompts),
                       ("validation", settings.num_validation_prompts)):
    for row in itertools.islice(run.source("prompts", split), limit):
      spread = settings.max_responses - settings.min_responses + 1
      draw = unit_hash(f"{run.config.seed}/k/{row['prompt']}")
      tasks.append(Task(
          number=len(tasks), split=split, row=row,
          num_responses=settings.min_responses + int(draw * spread),
          groups=groups[split]))
  return tasks


# ------------------------------------------------------------------- sampling


def sample(run: Run, stage: str, tasks: Sequence[Task]) -> list[Answer]:
  """Every task's responses, those of an interrupted call kept."""
  settings = run.config[stage]
  size = settings.prompts_per_batch
  groups = [tasks[i:i + size] for i in range(0, len(tasks), size)]
  path = run.workdir / stage / "responses.jsonl"
  done = keep_whole_groups(path, groups)
  distributed.barrier(f"kept {stage}")  # before process 0 appends
  file = storage.Growing(path)
  if done < len(groups):
    with sharding.use(run.mesh, run.axis_rules):
      answer = make_answer(run, stage)
      with metrics.Progress(stage, done, len(groups), "batch") as progress:
        for group in groups[done:]:
          interruption.check(stage)
          profiling.next_step()
          append_lines(file, answer(group))
          progress.update()
  file.upload()
  distributed.barrier(f"sampled {stage}")  # what process 0 wrote is there
  return storage.read_lines(path)


def keep_whole_groups(path: epath.Path, groups: Sequence[Sequence[Task]]
                      ) -> int:
  """How many groups the file holds whole; cuts off what follows them."""
  if not path.exists():
    return 0
  lines = path.read_text().splitlines(keepends=True)
  if lines and not lines[-1].endswith("\n"):
    lines.pop()  # written when the run was killed
  ends = list(itertools.accumulate(map(len, groups)))
  done = sum(end <= len(lines) for end in ends)
  kept = lines[:ends[done - 1]] if done else []
  checkpoint.write_text(path, "".join(kept))
  return done


def make_answer(run: Run, stage: str) -> Callable[..., list[Answer]]:
  """Builds `answer(tasks)`: K responses each, by the policies' weights."""
  settings = run.config[stage]
  weights = dict(settings.policies)
  policy = run.policy()
  generate = sampler.make_generate(
      run, policy, temperature=settings.temperature,
      num_parts=settings.num_rollout_parts)
  params = {name: run.policy_params(name) for name in weights}
  key = run.key(stage)
  batch_size = rows_per_batch(run, settings)

  def sample_slots(name, slots):
    """One policy's texts for (task, response number) slots."""
    for _, responses in sampler.respond(
        run, generate, params[name], key,
        [task.row["prompt_tokens"] for task, _ in slots],
        [row_id(task, k) for task, k in slots], batch_size):
      yield from (response.text for response in responses)

  def answer(tasks):
    slots = [(task, k) for task in tasks for k in range(task.num_responses)]
    drawn = {(task.number, k): draw_policy(run, stage, weights, task, k)
             for task, k in slots}
    texts = {}
    for name in weights:
      own = [(task, k) for task, k in slots if drawn[task.number, k] == name]
      for (task, k), text in zip(own, sample_slots(name, own)):
        texts[task.number, k] = text
    return [{
        "task": task.number,
        "split": task.split,
        **{name: task.row[name] for name in ("prompt", "user_id", "category")},
        **{name: task.row[name] for name in records.PROVENANCE
           if task.row.get(name)},
        "responses": [texts[task.number, k]
                      for k in range(task.num_responses)],
        "policies": [drawn[task.number, k]
                     for k in range(task.num_responses)],
        "seeds": [row_id(task, k) for k in range(task.num_responses)],
    } for task in tasks]

  return answer


def rows_per_batch(run: Run, settings) -> int:
  """Rows of a compiled batch: about what one policy answers of a group."""
  rows = settings.prompts_per_batch * settings.max_responses
  parts = settings.num_rollout_parts
  return parts * run.batch_size_for(rows / len(settings.policies) / parts)


def row_id(task: Task, k: int) -> int:
  """With the stage's key the noise of one response (see `Run.key`)."""
  return task.number * _ROWS_PER_PROMPT + k


def draw_policy(run: Run, stage: str, weights: Mapping[str, float],
                task: Task, k: int) -> str:
  """The policy of a task's k-th response: a function of seed and prompt."""
  draw = unit_hash(f"{run.config.seed}/{stage}/{task.row['prompt']}/{k}")
  *others, last = weights
  draw *= sum(weights.values())
  for name in others:
    draw -= weights[name]
    if draw < 0:
      return name
  return last


# -------------------------------------------------------------------- ranking


def make_panel(run: Run, stage: str, tasks: Sequence[Task],
               answers: Sequence[Answer]) -> Panel:
  """Who ranks, as `config.collect.labeler` says."""
  settings = run.config[stage]
  if settings.labeler == SMALLWORLD:
    return smallworld_panel(run)
  if asks_people(settings.labeler):
    return people(run, stage, tasks, answers)
  labeler = labelers.RewardLabeler(
      run, settings.labeler, tie_margin=run.config.labelers.tie_margin,
      max_responses=settings.max_responses)
  return Panel(lambda task: (labeler,), {labeler.labeler_id: TRAIN})


def smallworld_panel(run: Run) -> Panel:
  groups = dict(zip((TRAIN, HELDOUT), labelers.of_run(run)))

  def of(task):
    return [
        labeler for name, group in groups.items()
        for labeler in labelers.assign(
            group, task.row["prompt"], task.groups.count(name))]

  return Panel(of, {
      labeler.labeler_id: name
      for name, group in groups.items() for labeler in group})


def people(run: Run, stage: str, tasks, answers) -> Panel:
  """Writes the tasks for people; their labelers, once the ranks are there.

  Tasks that are written already stay: somebody may be filling them in.
  """
  settings = run.config[stage]
  asked = handoff.make_tasks(stage, tasks, answers)
  path = run.workdir / stage / "tasks.jsonl"
  if not path.exists():
    checkpoint.write_lines(path, asked)
  if settings.labeler == EXPORT:
    raise handoff.WaitingForPeople(
        f"{stage}: {len(asked)} tasks are written to {path}. Fill in the "
        "ranks, in a copy or there, then give the same command the file:\n"
        f"  --config.{stage}.labeler=jsonl:RANKED_FILE "
        f"--config.{stage}.roster=LABELERS_FILE")
  group_of = handoff.read_roster(settings.roster)
  returned = handoff.read_ranked(
      settings.labeler.removeprefix(RANKED), asked, group_of)
  return Panel(
      lambda task: [
          returned[handoff.task_id(stage, task.number, slot)]
          for slot in range(len(task.groups))],
      group_of)


def rank(stage: str, panel: Panel, tasks: Sequence[Task],
         answers: Sequence[Answer]) -> list[dict[str, Any]]:
  """The lines of comparisons.jsonl."""
  rows = []
  pairs = list(zip(tasks, answers, strict=True))
  for task, answer in metrics.track(stage, pairs, "prompt"):
    for labeler in panel.of(task):
      with profiling.phase("rank"):
        ranking = labeler.rank(answer["prompt"], answer["responses"])
      shown = {k: v for k, v in answer.items() if k != "task"}
      rows.append(shown | dataclasses.asdict(ranking)
                  | {"labeler_id": labeler.labeler_id,
                     "labeler_group": panel.group_of[labeler.labeler_id]})
  return rows


# --------------------------------------------------------------- what is said


def make_report(rows: Sequence[Mapping[str, Any]], panel: Panel):
  """report.json: agreement is that over the validation prompts."""
  held_out = [row for row in rows if row["split"] == "validation"]
  return {
      "agreement": agreement.statistics(held_out, panel.group_of),
      **collected.statistics(rows),
  }


def agreement_figures(found: Mapping[str, Any]) -> dict[str, Any]:
  """What done.json says of it, where there is anything to say."""
  return {
      name: value
      for group, figures in found.items() if figures["pairwise"]["pairs"]
      for name, value in (
          (f"agreement_{group}", figures["pairwise"]["mean"]),
          (f"agreement_{group}_pairs", figures["pairwise"]["pairs"]),
          (f"alpha_{group}", figures["alpha_ranks"]),
      )
  }


# -------------------------------------------------------------------- files


def append_lines(file: storage.Growing, rows: Sequence[Mapping[str, Any]]
                 ) -> None:
  if jax.process_index() == 0:
    file.append("".join(json.dumps(row) + "\n" for row in rows))
    if file.is_due(_UPLOAD_SECONDS):
      file.upload()
