"""The small English world: its words, its people and what is true of them.

Every fact is a pure function of the seed. A fact is (subject, attribute), as
("Anna", "home"); its value is a word of the attribute's slot type. The forms
that state a fact are written once, here: the pretraining text and the replies
use them, and the rubric reads claims by the same forms turned into patterns.
"""

import dataclasses
import random
import re

NAMES = tuple(
    "Anna Ben Clara David Ella Felix Grace Henry Iris Jack Kate Leo Maria Nina"
    " Oscar Paul Rosa Sam Tina Victor Wendy Amir Bella Carl Diana Emil Fiona"
    " George Hana Ivan Julia Karl Lucy Max Nora Otto Peter Ruth Simon Tara Uma"
    " Vera Walter Zoe Alice Bruno Cora Dora Eric Frida Gina Hugo Inga Jonas"
    " Kira Lars Mona Nils Olga Pia".split()
)

_TEXTS = {
    "animal": "fox dog cat bear frog duck goat horse mouse rabbit sheep cow",
    "place": "lake river forest hill farm market school garden beach bridge"
    " mill park",
    "object": "ball kite drum book lamp hat cup bell box rope key boat chair"
    " coat map flute",
    "color": "red blue green yellow white black brown pink",
    "food": "bread soup rice cheese honey cake pasta corn nuts pie",
    "job": "baker teacher farmer doctor painter singer sailor builder tailor"
    " gardener",
    "adj": "small big quiet brave kind young new warm cold funny",
    "count": "two three",
    "act": "lost found saw hid took washed",
    "event": "won found got lost broke dropped",
}
WORDS: dict[str, tuple[str, ...]] = {
    slot: tuple(text.split()) for slot, text in _TEXTS.items()}
WORDS["person"] = NAMES
# What "is it an animal, a food, a place or an object" may ask about.
WORDS["thing"] = sum((WORDS[s] for s in ("animal", "food", "place", "object")),
                     ())
PETS = WORDS["animal"][:8]
HAPPY_EVENTS = ("won", "found", "got")
CLASS_OF = {
    word: slot
    for slot in ("animal", "food", "place", "object")
    for word in WORDS[slot]
}

ATTRIBUTES = {
    "home": "place", "pet": "animal", "food": "food", "job": "job",
    "color": "color", "friend": "person", "diet": "food",
}

FACT_FORMS = {
    "home": (
        "{subject} lives near the {value}",
        "the home of {subject} is near the {value}",
        "{subject} has a house near the {value}",
        "the {value} is near the house of {subject}",
    ),
    "pet": (
        "{subject} has a {value}",
        "{subject} has a pet {value}",
        "the pet of {subject} is a {value}",
        "{subject} takes care of a {value}",
    ),
    "food": (
        "{subject} likes {value}",
        "{subject} likes to eat {value}",
        "the favorite food of {subject} is {value}",
        "{subject} eats {value} every day",
    ),
    "job": (
        "{subject} is a {value}",
        "{subject} works as a {value}",
        "the job of {subject} is {value}",
        "the work of {subject} is that of a {value}",
    ),
    "color": (
        "{subject} likes the color {value}",
        "the favorite color of {subject} is {value}",
        "{subject} likes {value} best",
        "the color that {subject} likes is {value}",
    ),
    "friend": (
        "the best friend of {subject} is {value}",
        "{value} is the best friend of {subject}",
        "{subject} has a best friend, {value}",
        "the friend of {subject} is {value}",
    ),
    "diet": (
        "a {subject} eats {value}",
        "a {subject} likes to eat {value}",
        "the food of a {subject} is {value}",
        "{value} is the food of a {subject}",
    ),
}


def slot_type(slot: str) -> str:
  """"person2" -> "person"."""
  return slot.rstrip("0123456789")


def words_of(text: str) -> list[str]:
  """The lower-case words of a text, without punctuation."""
  return re.findall(r"[a-z]+", text.lower())


def sentences_of(text: str) -> list[str]:
  """The sentences of a text, each with its end mark if it has one."""
  return [s for s in re.findall(r"[^.!?]+[.!?]*", text) if words_of(s)]


def capitalized(text: str) -> str:
  """`text` with a capital letter at each start of a sentence."""
  return re.sub(r"(^\W*|[.!?]\s+\"?)([a-z])",
                lambda m: m.group(1) + m.group(2).upper(), text)


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement found in a text, and whether the world agrees."""

  subject: str
  attribute: str
  value: str
  is_true: bool


class World:
  """People and animals with their facts."""

  def __init__(self, seed: int, num_people: int):
    if not 4 <= num_people <= len(NAMES):
      raise ValueError(f"{num_people=} must be in [4, {len(NAMES)}]")
    self.seed = seed
    self.words = dict(WORDS, person=NAMES[:num_people])
    self.facts = dict(self._draw_facts())
    self.fact_keys = tuple(self.facts)
    self._claims = tuple(self._claim_patterns())
    self._canonical = {name.lower(): name for name in self.words["person"]}

  def rng(self, purpose: str, index: object = 0) -> random.Random:
    """An own random stream for one item of one purpose."""
    return random.Random(f"{self.seed}/{purpose}/{index}")

  def canonical(self, word: str) -> str:
    """The spelling of a slot word: names have a capital, others none."""
    return self._canonical.get(word.lower(), word.lower())

  def fill(self, template: str, slots: dict, rng: random.Random) -> str:
    """Fills `{slot}`s from `slots`, or with fresh words of the slot's type."""
    slots = dict(slots)
    for slot in re.findall(r"{(\w+)}", template):
      if slot not in slots:
        taken = set(slots.values())
        pool = [w for w in self.words[slot_type(slot)] if w not in taken]
        slots[slot] = rng.choice(pool)
    return template.format(**slots)

  def state(self, key: tuple[str, str], rng: random.Random, value=None) -> str:
    """A clause that states a fact, or the same with a false `value`."""
    form = rng.choice(FACT_FORMS[key[1]])
    return form.format(subject=key[0], value=value or self.facts[key])

  def wrong_values(self, key: tuple[str, str]) -> list[str]:
    """The values of the right kind that are false for this fact."""
    pool = PETS if key[1] == "pet" else self.words[ATTRIBUTES[key[1]]]
    return [w for w in pool if w not in (key[0], self.facts[key])]

  def wrong_value(self, key: tuple[str, str], rng: random.Random) -> str:
    """One of them."""
    return rng.choice(self.wrong_values(key))

  def claims(self, text: str) -> list[Claim]:
    """The facts that `text` states, true or false, each once."""
    found = {}
    flat = " ".join(re.findall(r"[a-z]+|[,.!?]", text.lower()))
    for attribute, pattern in self._claims:
      for match in pattern.finditer(flat):
        subject = self.canonical(match["subject"])
        value = self.canonical(match["value"])
        is_true = self.facts[subject, attribute] == value
        found[subject, attribute, value] = Claim(
            subject, attribute, value, is_true)
    return list(found.values())

  def _draw_facts(self):
    """Yields ((subject, attribute), value) for everybody."""
    for name in self.words["person"]:
      rng = self.rng("facts", name)
      for attribute, kind in ATTRIBUTES.items():
        if attribute == "diet":
          continue
        pool = PETS if attribute == "pet" else self.words[kind]
        yield (name, attribute), rng.choice([w for w in pool if w != name])
    for animal in self.words["animal"]:
      yield (animal, "diet"), self.rng("diet", animal).choice(WORDS["food"])

  def _claim_patterns(self):
    """Yields (attribute, pattern) for every form of every fact."""
    for attribute, forms in FACT_FORMS.items():
      subject = "animal" if attribute == "diet" else "person"
      groups = {
          "subject": _group("subject", self.words[subject]),
          "value": _group("value", self.words[ATTRIBUTES[attribute]]),
      }
      for form in forms:
        form = form.replace(",", " ,")
        yield attribute, re.compile(rf"\b{form.format(**groups)}\b")


def _group(name: str, words) -> str:
  return f"(?P<{name}>{'|'.join(word.lower() for word in words)})"
