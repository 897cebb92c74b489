"""Replies by labelers in a hurry, and samples like a policy's.

What is asked for is mostly right. How it is said is often not: most replies
are curt, forget the constraint, wander off or are too long, and a few are rude
or wrong. Imitation learns what to say and leaves room above it in how, and a
reward model has something to see.
"""

import re

from rlhf_jax.data.smallworld import prompts as prompts_lib
from rlhf_jax.data.smallworld import replies as r
from rlhf_jax.data.smallworld import rubric
from rlhf_jax.data.smallworld import world as world_lib
from rlhf_jax.data.smallworld.prompts import Task

# How often each flaw occurs in a reply of an average labeler.
FLAWS = {"curt": 0.55, "careless": 0.5, "off_topic": 0.3, "long": 0.12,
         "rude": 0.08, "missing": 0.02, "wrong": 0.02}
NUM_LABELERS = 12


def haste(world, labeler: int) -> float:
  """What one labeler's flaws are multiplied by, 1 on average."""
  return world.rng("haste", labeler).uniform(0.8, 1.2)


def draw_flaws(rng, haste: float) -> frozenset[str]:
  """The flaws of one reply, each by its own chance times `haste`."""
  return frozenset(flaw for flaw, chance in FLAWS.items()
                   if rng.random() < chance * haste)


def write_reply(world, task: Task, rng, flaws=frozenset()) -> str:
  """A reply to `task` with the given flaws, as far as the task allows."""
  slots = dict(task.slots)
  flaws = set(flaws)
  if not task.kind.constraint:
    flaws.discard("careless")
  if "wrong" in flaws and not (task.kind.answer or "person" in slots):
    flaws = flaws - {"wrong"} | {"missing"}
  template = _template(world, task, rng, "careless" in flaws)
  slots["value"] = _value(world, task)
  if "missing" in flaws and not _leave_out(world, task, slots, rng):
    flaws.add("wrong")
  if "wrong" in flaws and task.kind.answer:
    template = _spoil_answer(world, task, template, slots, rng)
  if task.kind.items:
    slots["items"] = _items(world, task, rng, flaws)
  body = world.fill(template, slots, rng)
  body = re.sub(r"\ba (someone|the|lunch)\b", r"\1", body)
  return world_lib.capitalized(_dress(world, task, body, flaws, rng))


def responses(world, task: Task, rng, num: int) -> list[str]:
  """Samples as an imperfect policy draws them for one prompt.

  Most are like demonstrations; some answer another prompt, or stop early.
  """
  samples = []
  for _ in range(num):
    asked, kind = task, rng.random()
    if kind < 0.07:
      asked = prompts_lib.draw_task(world, rng.choice(prompts_lib.KINDS), rng)
    elif kind < 0.17:
      asked = prompts_lib.draw_task(world, task.kind, rng)
    text = write_reply(world, asked, rng, draw_flaws(rng, 0.8))
    if kind > 0.92:
      words = text.split()
      text = " ".join(words[:max(2, int(len(words) * rng.uniform(0.4, 0.9)))])
    samples.append(text)
  return samples


def _template(world, task: Task, rng, careless: bool) -> str:
  """A reply with slots; with the constraint's part unless `careless`."""
  name = task.kind.name
  if name == "check" and rubric.right_answer(world, task) == "no":
    return rng.choice(r.NO_REPLIES)
  if careless and name in r.CARELESS:
    return rng.choice(r.CARELESS[name])
  if task.kind.answer == "fact" and name != "visit":
    subject = task.kind.subjects[0]
    form = rng.choice(world_lib.FACT_FORMS[task.kind.fact])
    return form.replace("{subject}", "{%s}" % subject) + "."
  template = rng.choice(r.REPLIES[name])
  if careless:
    return re.sub(r"\[.*?\]", "", template)
  return re.sub(r"[][]", "", template)


def _value(world, task: Task) -> str:
  """What stands for {value}: the answer, with its article if it needs one."""
  if task.kind.name == "check":
    return world.facts[task.fact_key]
  if not task.kind.answer:
    return ""
  answer = rubric.right_answer(world, task)
  return _with_article(answer) if task.kind.answer == "class" else answer


def _with_article(word: str) -> str:
  return ("an " if word[0] in "aeiou" else "a ") + word


def _leave_out(world, task: Task, slots: dict, rng) -> bool:
  """Makes one subject vague or another word; False if there is none."""
  named = task.kind.subjects
  if not named:
    return False
  slot = rng.choice(named)
  kind = world_lib.slot_type(slot)
  if rng.random() < 0.5 and kind in r.VAGUE:
    slots[slot] = r.VAGUE[kind]
  else:
    pool = world.words[kind]
    slots[slot] = rng.choice([w for w in pool if w not in slots.values()])
  return True


def _spoil_answer(world, task: Task, template: str, slots: dict, rng) -> str:
  """Puts a wrong answer into the slots or, for yes and no, the template."""
  kind = task.kind
  if kind.answer == "yes_no":
    right = rubric.right_answer(world, task)
    return (r.NO_REPLIES[2] if right == "yes"
            else rng.choice(r.REPLIES["check"]))
  if kind.answer == "fact":
    slots["value"] = world.wrong_value(task.fact_key, rng)
  elif kind.answer == "class":
    wrong = [c for c in ("animal", "food", "place", "object")
             if c != rubric.right_answer(world, task)]
    slots["value"] = _with_article(rng.choice(wrong))
  elif kind.answer == "mood":
    right = rubric.right_answer(world, task)
    slots["value"] = {"happy": "sad", "sad": "happy"}[right]
  elif kind.name == "odd":
    slots["object"] = slots[rng.choice(("animal", "animal2"))]
  else:
    pool = world.words[world_lib.slot_type(kind.answer)]
    slots[kind.answer] = rng.choice(
        [w for w in pool if w not in slots.values()])
  return template


def _items(world, task: Task, rng, flaws) -> str:
  """The list asked for, one short if something is to be missing."""
  kind, slots = task.kind, task.slots
  num = rubric.ITEM_COUNT[slots["count"]]
  if "missing" in flaws and rng.random() < 0.5:
    num -= 1
  pool = [w for w in world.words[kind.items] if w not in slots.values()]
  words = rng.sample(pool, num)
  careless = "careless" in flaws
  if careless and kind.constraint.startswith("avoid"):
    words[-1] = slots["food"]
  if kind.items in ("object", "animal"):
    words = ["a " + word for word in words]
  if kind.name == "gifts" and not careless:
    words[0] = words[0].replace("a ", f"a {slots['color']} ", 1)
  last = " or " if kind.items == "person" else " and "
  return last.join(w for w in (", ".join(words[:-1]), words[-1]) if w)


def _dress(world, task: Task, body: str, flaws, rng) -> str:
  """Adds the polite words, and the sentences that are flaws."""
  if "wrong" in flaws and not task.kind.answer:
    key = _side_fact(task, rng)
    body += f" {world.state(key, rng, world.wrong_value(key, rng))}."
  elif _may_add_fact(task, flaws) and rng.random() < 0.05:
    body += f" {world.state(_side_fact(task, rng), rng)}."
  if "off_topic" in flaws:
    body += " " + rng.choice(r.OFF_TOPIC)
  if "long" in flaws:
    body += " " + world.fill(rng.choice(r.ON_TOPIC), task.slots, rng)
  if "rude" in flaws:
    return body + " " + rng.choice(r.RUDE_LINES)
  if "curt" in flaws:
    return body
  return _add_manners(body, rng)


def _add_manners(body: str, rng) -> str:
  """A polite word before the body, or after it, or now and then both.

  What no demonstration does, the reward model never sees, and PPO goes there.
  """
  before, after = rng.choice(((1, 0), (1, 0), (0, 1), (1, 1)))
  return before * rng.choice(r.OPENERS) + body + after * rng.choice(r.CLOSERS)


def _side_fact(task: Task, rng) -> tuple[str, str]:
  """Something else to say of the person in the prompt."""
  attributes = [a for a in ("home", "food", "job", "color")
                if a != task.kind.fact]
  return task.slots["person"], rng.choice(attributes)


def _may_add_fact(task: Task, flaws) -> bool:
  strict = ("sentences", "words", "avoid")
  return (not flaws and "person" in task.slots
          and not task.kind.constraint.startswith(strict))
