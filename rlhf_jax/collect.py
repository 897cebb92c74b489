"""Comparisons: K responses a prompt from a policy, ranked by labelers.

InstructGPT 3.4 and 3.5: between 4 and 9 responses, ties allowed. Training
prompts get one training labeler each; validation prompts two of the training
labelers and two held-out ones, so that agreement can be measured.
"""

import dataclasses
import itertools
import json
from typing import Any

from etils import epath
import jax

from rlhf_jax import labelers, metrics, sampler, sharding
from rlhf_jax.data.splits import unit_hash
from rlhf_jax.run import Run

# Noise of a response: prompt number x this + response number.
_ROWS_PER_PROMPT = 16
_LABELERS_PER_VALIDATION_PROMPT = 2  # of each group


@dataclasses.dataclass(frozen=True)
class Task:
  """One prompt to be answered K times and ranked."""

  number: int
  split: str
  row: dict[str, Any]
  num_responses: int
  labelers: tuple[Any, ...]


def run_stage(run: Run, stage: str) -> dict[str, Any]:
  """Writes `comparisons.jsonl`; an interrupted collection goes on."""
  settings = run.config[stage]
  train_labelers, heldout_labelers = smallworld_labelers(run)
  tasks = make_tasks(run, settings, train_labelers, heldout_labelers)
  groups = [
      tasks[i:i + settings.prompts_per_batch]
      for i in range(0, len(tasks), settings.prompts_per_batch)
  ]
  path = run.workdir / stage / "comparisons.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  done = keep_whole_groups(path, groups)
  run.writer.rewind(stage, -1)
  policy = run.policy()
  with sharding.use(run.mesh, run.axis_rules):
    params = run.load(settings.policy, "params", policy)
    generate = sampler.make_generate(
        run, policy, temperature=settings.temperature)
    with metrics.Progress(stage, done, len(groups), "batch") as progress:
      for group in groups[done:]:
        answers = answer(
            run, generate, params, run.key(stage), group, settings)
        lines = [
            json.dumps(comparison(run, task, texts, labeler, settings.policy))
            for task, texts in zip(group, answers)
            for labeler in task.labelers
        ]
        if jax.process_index() == 0:
          with path.open("a") as f:
            f.write("".join(line + "\n" for line in lines))
        progress.update()
  figures = {
      "prompts": len(tasks),
      "responses": sum(t.num_responses for t in tasks),
      **agreement(path, train_labelers),
  }
  run.writer.write(stage, len(groups), figures)
  return figures


def smallworld_labelers(run: Run):
  """(training, held-out) labelers of the run.

  Raises:
    ValueError: the run has no Smallworld, hence nobody to rank.
  """
  if run.world is None:
    raise ValueError(
        "collect needs labelers, and only Smallworld has built-in ones: give "
        "comparisons by --config.data.comparisons=jsonl:PATH instead")
  return labelers.smallworld_labelers(run.world, **run.config.labelers)


def make_tasks(run: Run, settings, train_labelers, heldout_labelers):
  """The prompts to answer, with their K and their labelers."""
  tasks = []
  for split, limit in (("train", settings.num_prompts),
                       ("validation", settings.num_validation_prompts)):
    for row in itertools.islice(run.source("prompts", split), limit):
      spread = settings.max_responses - settings.min_responses + 1
      draw = unit_hash(f"{run.config.seed}/k/{row['prompt']}")
      if split == "train":
        chosen = assign(train_labelers, row["prompt"], 1)
      else:
        count = _LABELERS_PER_VALIDATION_PROMPT
        chosen = (assign(train_labelers, row["prompt"], count)
                  + assign(heldout_labelers, row["prompt"], count))
      tasks.append(Task(
          number=len(tasks), split=split, row=row,
          num_responses=settings.min_responses + int(draw * spread),
          labelers=chosen))
  return tasks


def assign(group: list[Any], prompt: str, count: int) -> tuple[Any, ...]:
  """`count` labelers of a group, the same for a prompt in every run."""
  first = int(unit_hash(f"labeler/{prompt}") * len(group))
  return tuple(group[(first + i) % len(group)]
               for i in range(min(count, len(group))))


def keep_whole_groups(path: epath.Path, groups: list[list[Task]]) -> int:
  """How many groups the file holds whole; cuts off what follows them."""
  if not path.exists():
    return 0
  lines = path.read_text().splitlines(keepends=True)
  if lines and not lines[-1].endswith("\n"):
    lines.pop()  # written when the run was killed
  ends = list(itertools.accumulate(
      sum(len(task.labelers) for task in group) for group in groups))
  done = sum(end <= len(lines) for end in ends)
  kept = lines[:ends[done - 1]] if done else []
  if jax.process_index() == 0:
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    partial.replace(path)
  return done


def answer(run: Run, generate, params, key, group: list[Task], settings):
  """K response texts for every task of a group, in one batch."""
  slots = [(task, k) for task in group for k in range(task.num_responses)]
  batch = sampler.prompt_rows(
      run, [task.row["prompt_tokens"] for task, _ in slots],
      [task.number * _ROWS_PER_PROMPT + k for task, k in slots],
      settings.prompts_per_batch * settings.max_responses)
  sampled = generate(params, key, run.put(batch))
  responses = sampler.to_responses(run, sampled)
  texts = {task.number: [] for task in group}
  for (task, _), response in zip(slots, responses):
    texts[task.number].append(response.text)
  return [texts[task.number] for task in group]


def comparison(run: Run, task: Task, texts: list[str], labeler, policy: str):
  """One line of comparisons.jsonl: one labeler's view of one prompt."""
  ranking = labeler.rank(task.row["prompt"], texts)
  return {
      "prompt": task.row["prompt"],
      "responses": texts,
      "ranks": list(ranking.ranks),
      "likert": list(ranking.likert),
      "metadata": list(ranking.metadata),
      "labeler_id": labeler.labeler_id,
      "user_id": task.row["user_id"],
      "category": task.row["category"],
      "split": task.split,
      "policy": policy,
      "seed": run.config.seed,
  }


def agreement(path: epath.Path, train_labelers) -> dict[str, Any]:
  """Pairwise agreement of two labelers over the validation prompts."""
  train_ids = {labeler.labeler_id for labeler in train_labelers}
  by_prompt = {}
  for line in path.read_text().splitlines():
    row = json.loads(line)
    if row["split"] == "validation":
      by_prompt.setdefault(row["prompt"], []).append(row)
  names = {(True, True): "train", (False, False): "heldout",
           (True, False): "between", (False, True): "between"}
  sides = {name: ([], []) for name in names.values()}
  for rows in by_prompt.values():
    for a, b in itertools.combinations(rows, 2):
      groups = (a["labeler_id"] in train_ids, b["labeler_id"] in train_ids)
      for side, row in zip(sides[names[groups]], (a, b)):
        side.append(labelers.Ranking(tuple(row["ranks"]), (), ()))
  figures = {}
  for name, (left, right) in sides.items():
    found = labelers.agreement(left, right)
    figures[f"agreement_{name}"] = found.rate
    figures[f"agreement_{name}_pairs"] = found.num_pairs
  return figures
