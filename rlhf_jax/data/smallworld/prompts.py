"""What users ask: the ten use cases, their templates, and the way back.

A `Kind` is one thing that can be asked. Its forms are the surface texts; the
same forms, as patterns, turn a text back into the `Task` it asks for, so that
a prompt can be judged without any stored table. The slots stand within the
first eight words, or prompts that differ would look like near-duplicates.
"""

import dataclasses
import random
import re

from rlhf_jax.data.smallworld import world as world_lib

# InstructGPT, Table 1.
USE_CASES = {
    "generation": 0.456, "open_qa": 0.124, "brainstorming": 0.112,
    "chat": 0.084, "rewrite": 0.066, "summarization": 0.042,
    "classification": 0.035, "other": 0.035, "closed_qa": 0.026,
    "extract": 0.019,
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """One thing that can be asked, and what a reply to it must do.

  Attributes:
    name, category: a unique name, and the use case it belongs to.
    forms: surface texts with slots; all forms have the same slots.
    subjects: slots that the reply must name.
    answer: "", "fact", "class", "mood", "yes_no" or the slot that has it.
    fact: attribute that the task asks for, or "".
    items: slot type of which `count` different words are asked for, or "".
    constraint: "" or "rule:argument", see `rubric.satisfies`.
    signs: words of which a reply of the right kind has at least one.
  """

  name: str
  category: str
  forms: tuple[str, ...]
  subjects: tuple[str, ...] = ()
  answer: str = ""
  fact: str = ""
  items: str = ""
  constraint: str = ""
  signs: tuple[str, ...] = ()

  @property
  def slots(self) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(r"{(\w+)}", self.forms[0]))))


@dataclasses.dataclass(frozen=True)
class Task:
  """A prompt, understood: its kind and the words in its slots."""

  kind: Kind
  slots: dict

  @property
  def group(self) -> str:
    """What must not be divided between splits: the fact, or the fillers."""
    if self.kind.fact:
      return f"fact|{self.fact_key[0]}|{self.fact_key[1]}"
    fillers = "|".join(self.slots[slot] for slot in self.kind.slots)
    return f"slots|{self.kind.name}|{fillers}"

  @property
  def fact_key(self) -> tuple[str, str]:
    subject = "animal" if self.kind.fact == "diet" else "person"
    return self.slots[subject], self.kind.fact


def _question(attribute: str, *forms: str) -> Kind:
  subject = "animal" if attribute == "diet" else "person"
  return Kind(attribute, "open_qa", forms, (subject,), "fact", attribute)


KINDS = (
    Kind("story", "generation", (
        "Write about {person} and a {animal}. Mention the {place}.",
        "Tell a story of {person} with a {animal}. Mention the {place}.",
        "I want {person} and a {animal} in a story. Use the {place}.",
        "Make a story for {person}: a {animal} at the {place}.",
    ), ("person", "animal"), constraint="say:place"),
    Kind("scene", "generation", (
        "A {animal} and a {object}: write a line with the word {adj}.",
        "Use the word {adj} about a {animal} and a {object}.",
        "Give me a {adj} story: a {animal} finds a {object}.",
    ), ("animal", "object"), constraint="say:adj"),
    Kind("letter", "generation", (
        "Write a letter to {person} about a {object}. Make it {color}.",
        "Write to {person} that I found a {color} {object}.",
        "Help me send {person} a letter about my {color} {object}.",
    ), ("person", "object"), constraint="say:color", signs=("dear",)),
    Kind("describe", "generation", (
        "Describe a {object} at the {place} in one sentence.",
        "Put the {place} and a {object} in one sentence.",
        "Give the {place} and a {object} one sentence.",
    ), ("object", "place"), constraint="sentences:1"),
    Kind("two", "generation", (
        "Write two sentences about {person} at the {place}.",
        "{person} is at the {place}. Tell me more in two sentences.",
        "Tell me in two sentences: {person} walks to the {place}.",
    ), ("person", "place"), constraint="sentences:2"),
    Kind("meal", "generation", (
        "Write about {person} at the {place}. Add something to eat.",
        "At the {place}, {person} has a meal. Write about it.",
        "Let {person} eat at the {place}. Make it a story.",
    ), ("person", "place"), constraint="any:food"),
    Kind("song", "generation", (
        "Write a song about a {color} {animal} at the {place}.",
        "A {color} {animal} goes to the {place}. Write a song.",
        "Sing of a {color} {animal} and the {place}.",
    ), ("animal", "place"), constraint="say:color"),
    Kind("gift", "generation", (
        "{person} gives {person2} a {object}. Tell it with the word {adj}.",
        "Write of {person}, {person2} and a gift: a {adj} {object}.",
        "Story, please: {person}, {person2} and a {adj} {object}.",
    ), ("person", "person2", "object"), constraint="say:adj"),
    _question("home", "Where does {person} live?",
              "Can you tell me where {person} lives?",
              "Which place is near the house of {person}?",
              "Where is the home of {person}?"),
    _question("pet", "What pet does {person} have?",
              "Which animal does {person} take care of?",
              "Can you tell me what pet {person} has?",
              "What kind of animal lives with {person}?"),
    _question("food", "What food does {person} like?",
              "What is the favorite food of {person}?",
              "Can you tell me what {person} likes to eat?",
              "What does {person} eat every day?"),
    _question("job", "What is the job of {person}?",
              "What work does {person} do?",
              "Can you tell me what {person} does for work?",
              "As what does {person} work?"),
    _question("color", "What is the favorite color of {person}?",
              "Which color does {person} like?",
              "Can you tell me the color {person} likes?",
              "What color does {person} like best?"),
    _question("friend", "Who is the best friend of {person}?",
              "Which person does {person} like best?",
              "Can you name the best friend of {person}?",
              "Who is a good friend of {person}?"),
    _question("diet", "What does a {animal} eat?",
              "What is the food of a {animal}?",
              "Can you tell me what a {animal} likes to eat?",
              "What food should I give a {animal}?"),
    Kind("gifts", "brainstorming", (
        "List {count} gifts for {person}. One must be {color}.",
        "Give {person} {count} gift ideas, one of them {color}.",
        "What {count} things could I give {person}? Make one {color}.",
    ), ("person",), items="object", constraint="say:color"),
    Kind("foods", "brainstorming", (
        "Without {food}, name {count} foods for the {place}.",
        "The {place}, no {food}: list {count} foods to eat.",
        "{count} foods for the {place} but not {food}.",
    ), ("place",), items="food", constraint="avoid:food"),
    Kind("animals", "brainstorming", (
        "{person} is at the {place}. Name {count} animals to see.",
        "Which {count} animals could {person} see near the {place}?",
        "List {count} animals for {person} at the {place}.",
    ), ("person", "place"), items="animal"),
    Kind("names", "brainstorming", (
        "Give me {count} names for a {color} {animal}.",
        "How could I call my {color} {animal}? List {count} names.",
        "My {animal} is {color}. What are {count} good names?",
    ), ("animal",), items="person", constraint="say:color"),
    Kind("lost", "chat", (
        "Hi! I lost my {object} near the {place}. Can you help?",
        "Hello, my {object} is gone. I was at the {place}.",
        "I left a {object} at the {place} and I am sad.",
    ), ("object", "place"), signs=("look", "help", "find", "ask")),
    Kind("visit", "chat", (
        "Hello! I will visit {person}. What food should I take?",
        "Hi, {person} is my guest today. What should I cook?",
        "I want to cook for {person} today. Any ideas?",
    ), ("person",), "fact", "food"),
    Kind("care", "chat", (
        "Hi! My {animal} is {adj} today. What should I do?",
        "I have a {adj} {animal}. Can we talk about it?",
        "Hello, I found a {adj} {animal}. What now?",
    ), ("animal", "adj"), signs=("give", "take", "play", "should", "let")),
    Kind("talk", "chat", (
        "Hi! I saw a {animal} at the {place}. Ask me about it.",
        "My {animal} was at the {place}. Ask me a question.",
        "Good morning! The {place} has a {animal}. Ask me more.",
    ), ("animal", "place"), constraint="question:"),
    Kind("swap", "rewrite", (
        "Change {person} to {person2}: {person} {act} the {object} near the"
        " {place}.",
        "Use {person2} for {person}: near the {place}, {person} {act} the"
        " {object}.",
        "Say it of {person2}: {person} {act} the {object} near the {place}.",
    ), ("person2", "object", "place"), constraint="avoid:person"),
    Kind("recolor", "rewrite", (
        "Make it {color2}: the {animal} saw a {color} {object}.",
        "Change {color} to {color2}: a {animal} took a {color} {object}.",
        "The {animal} has a {color} {object}. Say it with {color2}.",
    ), ("color2", "animal", "object"), constraint="avoid:color"),
    Kind("ask", "rewrite", (
        "The {animal} is at the {place}. Make it a question.",
        "Change this to a question: the {animal} is at the {place}.",
        "Ask it as a question: a {animal} is near the {place}.",
    ), ("animal", "place"), constraint="question:"),
    Kind("trip", "summarization", (
        "Sum up: {person} went to the {place}. There was a {animal}. It was"
        " {adj}. Then {person} went home.",
        "In short: {person} walked to the {place} and saw a {animal} that was"
        " {adj} and slept.",
    ), ("person", "place", "animal"), constraint="words:15"),
    Kind("trade", "summarization", (
        "Sum up: {person} met {person2} at the {place}. {person} had a"
        " {object}. {person2} liked it.",
        "In short: {person} took a {object} to the {place}, where {person2}"
        " saw it and liked it.",
    ), ("person", "person2", "object"), constraint="words:15"),
    Kind("type", "classification", (
        "{person} says {thing}. Is that an animal, food, place or object?",
        "For {person}: is {thing} an animal, a food, a place or an object?",
        "Animal, food, place or object: {thing}? {person} wants to know.",
    ), ("thing",), "class"),
    Kind("mood", "classification", (
        "Happy or sad? {person} {event} the {object}.",
        "{person} {event} a {object}. Is that happy or sad?",
        "Is it happy or sad that {person} {event} the {object}?",
    ), ("person", "object"), "mood"),
    Kind("check", "other", (
        "Is it true that {person} has a {animal}?",
        "Yes or no: {person} has a {animal}.",
        "Tell me if {person} has a {animal}.",
    ), ("person",), "yes_no", "pet"),
    Kind("order", "other", (
        "Say these words in order: {object}, {animal}, {color}.",
        "Repeat {object}, {animal} and {color} after me.",
        "First {object}, then {animal}, then {color}. Say it again.",
    ), ("object", "animal", "color"), constraint="order:"),
    Kind("odd", "other", (
        "Which is not an animal: {animal}, {object} or {animal2}?",
        "{object}, {animal}, {animal2}: which one is not an animal?",
        "I see {animal}, {animal2} and {object}. Which is no animal?",
    ), (), "object"),
    Kind("where", "closed_qa", (
        "{person} put the {object} near the {place}. Where is the {object}?",
        "The {object} of {person} is near the {place}. Where is it?",
    ), ("object",), "place"),
    Kind("who", "closed_qa", (
        "{person} gave a {object} to {person2}. Who has the {object}?",
        "{person2} got a {object} from {person}. Who has it now?",
    ), ("object",), "person2"),
    Kind("ate", "closed_qa", (
        "The {animal} ate {food} at the {place}. What did the {animal} eat?",
        "At the {place} the {animal} ate {food}. What was its meal?",
    ), ("animal",), "food"),
    Kind("find_animal", "extract", (
        "Find the animal: {person} saw a {animal} near the {place}.",
        "{person} met a {animal} at the {place}. Name the animal.",
    ), (), "animal"),
    Kind("find_names", "extract", (
        "Find the names: {person} and {person2} are at the {place}.",
        "{person} saw {person2} at the {place}. List the names.",
    ), ("person", "person2")),
    Kind("find_color", "extract", (
        "Find the color: a {color} {object} is at the {place}.",
        "The {color} {object} is near the {place}. Name the color.",
    ), ("object",), "color"),
)
BY_CATEGORY = {
    category: tuple(kind for kind in KINDS if kind.category == category)
    for category in USE_CASES
}

# What a user may add to a prompt sent twice.
ADDITIONS = (" Thank you.", " Please.", " Thanks!", " I need it today.",
             " Please help me with this.")
PRIVATE = (
    " My mail is {name}.{number}@mail.com.",
    " Call me at 555-{number}-{number2}.",
    " My card is 4{number2} {number}1 {number2}7 {number}3.",
)
_TAIL = re.compile(
    "(?:" + "|".join(map(re.escape, ADDITIONS))
    + r"| My mail is \S+@mail\.com\.| Call me at [\d-]+\."
    r"| My card is [\d ]+\.)$", re.IGNORECASE)


def draw_task(world, kind: Kind, rng: random.Random, words=None) -> Task:
  """A task of `kind` with different fillers out of `words`, by default all."""
  words = words or world.words
  slots = {}
  for slot in kind.slots:
    pool = words[world_lib.slot_type(slot)]
    slots[slot] = rng.choice([w for w in pool if w not in slots.values()])
  if kind.answer == "yes_no":  # else nearly every answer would be no
    pets = [w for w in world_lib.PETS if w != slots["animal"]]
    truth = world.facts[slots["person"], kind.fact]
    slots["animal"] = truth if rng.random() < 0.5 else rng.choice(pets)
  return Task(kind, slots)


def prompt_text(task: Task, form: str) -> str:
  """The prompt that asks for `task` in the words of `form`."""
  return world_lib.capitalized(form.format(**task.slots))


def private_addition(rng: random.Random) -> str:
  """A sentence with a made-up e-mail, phone or card number."""
  return rng.choice(PRIVATE).format(
      name=rng.choice(world_lib.NAMES).lower(), number=rng.randrange(100, 1000),
      number2=rng.randrange(100, 1000))


class Parser:
  """Turns a prompt back into its task: the inverse of the forms."""

  def __init__(self, world):
    self._canonical = world.canonical
    self._patterns = tuple(
        (kind, re.compile(_pattern(world, form), re.IGNORECASE))
        for kind in KINDS for form in kind.forms)

  def __call__(self, prompt: str) -> Task:
    """The task of `prompt`, whatever was added at its end.

    Raises:
      ValueError: no form of any use case reads like the prompt.
    """
    text = " ".join(prompt.split())
    while True:
      for kind, pattern in self._patterns:
        if match := pattern.fullmatch(text):
          slots = match.groupdict().items()
          return Task(kind, {k: self._canonical(v) for k, v in slots})
      shorter = _TAIL.sub("", text)
      if shorter == text:
        raise ValueError(f"not a Smallworld prompt: {prompt!r}")
      text = shorter


def _pattern(world, form: str) -> str:
  seen = set()

  def slot_pattern(match):
    slot = match[1]
    if slot in seen:
      return f"(?P={slot})"
    seen.add(slot)
    words = world.words[world_lib.slot_type(slot)]
    return f"(?P<{slot}>{'|'.join(words)})"

  return re.sub(r"\\{(\w+)\\}", slot_pattern, re.escape(form))
