"""Pretraining text: short documents from a life in the small world.

A document keeps a small cast (people, an animal, things, a place) and comes
back to it, so that a model learns to copy names; and it states facts, so that
they can be asked for later. In some documents people ask things of each other
and are answered, plainly or badly: what one reads in any large text, and what
instruction following is drawn from. They use training fillers only.
"""

from collections.abc import Callable, Iterator
import functools

from rlhf_jax.data.smallworld import world as world_lib

STORY = (
    "One day {person} went to the {place}.",
    "{person} saw a {adj} {animal} near the {place}.",
    "The {animal} took the {object} and ran to {person2}.",
    "{person2} found a {color} {object} in the grass.",
    "{person} gave the {object} to {person2}.",
    "Now {person2} has the {object} and {person} is glad.",
    "The {animal} was {adj}, so {person} gave it some {food}.",
    "They sat under a tree and ate {food}.",
    "It was a {adj} day and the sun was warm.",
    "{person} lost the {object} at the {place}, and that was sad.",
    "{person2} looked for the {object} all day.",
    "Then {person} found it by the {place}.",
    "{person} and {person2} played with the {animal} until night.",
    "The {animal} slept on a {adj} {object}.",
    "A {color} {animal} followed {person} home.",
    "{person} won a {object}, and {person2} was happy for {person}.",
    "{person} dropped the {object}, and it broke.",
    "Once {person2} hid a {object} near the {place}.",
    "{person} washed the {color} {object} in the morning.",
    "There {person} met {person2}, and they became friends.",
    "{person} walked for a long time and felt {adj}.",
    "The {color} {object} stands at the {place} again.",
    "At night they danced and sang by the {place}.",
    "{person} left a {object} for {person2} at the {place}.",
    "{person} put {food} in a bag and shared it with {person2}.",
    "Someone had been at the {place}, but who was it?",
    "What did the {animal} do with the {object}?",
    "Snow falls on the {place} in winter.",
    "After that the {animal} came to play, and they sing and run.",
    "{person2} goes to the {place} and finds a {object} in the town.",
    "Why is the {object} gone? {person} walks and runs to look for it.",
    "{person} gives {person2} these {food} to get some rest.",
    "They go for a walk, and {person2} also liked the {animal}.",
    "The {animal} is going to sleep in its house.",
    "Rain is good for the corn, and every garden needs a lot of water.",
    "Soup is best when the night is cold.",
    "Most boats are slow, and old clocks are hard to fix.",
)
LISTS = (
    "At the {place} you can find a {object}, a {object2} and a {object3}.",
    "The colors of the flowers are {color}, {color2} and {color3}.",
    "There are two animals here, a {animal} and a {animal2}.",
    "For the meal we have {food}, {food2} and {food3}.",
    "{person}, {person2} and {person3} are friends.",
    "The first is {person}, then comes {person2}, then {person3}.",
    "In the bag there are three things: a {object}, a {object2} and a"
    " {object3}.",
    "Take {food} and {food2} to the {place}.",
    "Good names for a {animal} are {person} and {person2}.",
    "A {object} is an object and not an animal.",
    "The word {animal} means an animal.", "We say that {food} is a food.",
    "A {animal} is an animal. The {place} is a place.",
    "I think {food} is a food and {place} is a place.",
    "A {animal} is an animal, a {object} is an object.",
    "It is happy to find a {object} and sad to have lost it.",
)
LETTER = (
    "I am at the {place} with {person2}.",
    "Yesterday I got a {color} {object} from {person2}.",
    "I will send you my {object} soon.", "We ate {food} and {food2}.",
    "Can you help me find my {color} {object}?",
    "I am sorry about your {object}.", "I hope this helps you.",
    "Please come and visit us at the {place}.",
    "There is a {adj} {animal} here, and I like it very much.",
    "I would like to talk about the {animal}.",
    "You should see the {place} when it is {adj}.",
    "{person2} sings a song about a {animal}.",
    "You are welcome in my house, I am glad to help.",
    "Have a nice day and write again.",
    "I know that you want to see the {color} {object}.",
)
SCHOOL = (
    "The teacher said: describe the {place} in one sentence.",
    "The children had to list {count} foods and tell a story.",
    "{person} should repeat the words in order and not change them.",
    "\"Ask me why,\" said {person}, and {person2} sent a letter.",
    "{person} could not sum it up in short sentences.",
    "\"Which is the right word?\" asked the teacher.",
    "\"Write a line about a {animal},\" said {person}.",
    "\"Name {count} gifts,\" said {person2}, \"and use the word {adj}.\"",
    "\"Please make a question with {object},\" said the teacher.",
    "\"Is it true, yes or no?\" asked {person}.",
    "\"That is a silly question, and this is boring,\" said {person2}.",
    "\"Stop asking me. I do not want to help,\" said {person}.",
    "\"Of course! Sure, I will gladly do it,\" said {person2}.",
    "\"Thank you for asking,\" said {person}.",
    "\"Hello! Good morning! Hi, {person},\" said {person2}.",
    "\"Any ideas? I need a kind of gift today. Thanks!\" said {person}.",
    "\"How could I call my {animal}? It must be a nice name.\"",
    "\"Let us add something to the story and mention a {object},\" said"
    " {person}.",
    "\"I was your guest. Give me some lunch to cook,\" said {person2}.",
    "{person} spoke without a stop, and that person helps with pleasure.",
    "\"One more thing, put the {object} there, if you may,\" said {person}.",
)
QUESTIONS = {
    "home": "Where does {subject} live?",
    "pet": "What pet does {subject} have?",
    "food": "What does {subject} like to eat?",
    "job": "What work does {subject} do?",
    "color": "What color does {subject} like?",
    "friend": "Who is the best friend of {subject}?",
    "diet": "What does a {subject} eat?",
}
ASKED = ("\"{question}\" asked {person}. \"{answer},\" said {person2}.",
         "{person} wants to know: {question} {person2} says that {answer}.",
         "{question} {person} thinks, and then {person2} says: {answer}.")
NOT_PET = ("{person} does not have a {animal}.",
           "No, {person} does not have a {animal}.")


QUOTED = "\"{request}\" said {person}. \"{reply}\" said {person2}."
EXCHANGES = (
    "{person} said: {request} {person2} said: {reply}",
    QUOTED,
    "{person} asked {person2}. {request} And {person2} said: {reply}",
    "Dear {person2}, {request} Your {person}. Dear {person}, {reply}",
)
RETELLINGS = (
    "{person} told {person2} a story. {story} {person2} told it again. {story}",
    "{story} \"Say that again,\" said {person}. {story}",
    "\"{story}\" said {person}. \"{story}\" said {person2} after that.",
)
# Words of each type that a talk is about; a request needs three at most.
TOPIC_SIZE = 3
# Shares of documents in which people ask each other, or tell a story again.
EXCHANGE_SHARE = 0.2
RETELLING_SHARE = 0.1
# Share of sentences in a story that state a fact of its people.
STORY_FACT_SHARE = 0.5


def documents(
    world, num_documents: int, exchange: Callable
) -> Iterator[dict]:
  """Yields {"text"}: documents of about 40-120 words.

  Args:
    world: the `World`.
    num_documents: how many.
    exchange: draws (request, reply) from a random number generator and the
      few words that the document is about.
  """
  writers = (_story, _story, _profile, _profile, _dialogue, _lists, _letter,
             _school)
  for index in range(num_documents):
    rng = world.rng("pretrain", index)
    cast = _draw_cast(world, rng)
    write = rng.choice(writers)
    draw = rng.random()
    if draw < EXCHANGE_SHARE:
      write = functools.partial(_exchange, exchange, _draw_topic(world, rng))
    elif draw < EXCHANGE_SHARE + RETELLING_SHARE:
      write = _retelling
    text, length = "", rng.randrange(40, 106)
    while len(text.split()) < length:
      text += (" " if text else "") + write(world, cast, rng)
    yield {"text": world_lib.capitalized(text)}


def _exchange(exchange, topic, world, cast, rng) -> str:
  del world
  request, reply = exchange(rng, topic)
  return rng.choice(EXCHANGES).format(
      person=cast["person"], person2=cast["person2"], request=request,
      reply=reply)


def _draw_topic(world, rng) -> dict:
  """A few words of each type: a talk comes back to what it is about."""
  return {slot: rng.sample(words, min(TOPIC_SIZE, len(words)))
          for slot, words in world.words.items()}


def _retelling(world, cast, rng) -> str:
  story = world.fill(rng.choice(STORY), _few(cast, rng), rng)
  return rng.choice(RETELLINGS).format(
      person=cast["person"], person2=cast["person2"],
      story=world_lib.capitalized(story))


def _draw_cast(world, rng) -> dict:
  """Two people, two of each thing: what the document comes back to."""
  cast = {}
  for slot, num in (("person", 2), ("animal", 1), ("place", 1), ("object", 1),
                    ("food", 1), ("color", 1)):
    for i, word in enumerate(rng.sample(world.words[slot], num)):
      cast[slot + ("" if i == 0 else str(i + 1))] = word
  return cast


def _fact(world, cast, rng) -> str:
  """A true statement, mostly about the document's people."""
  if rng.random() < 0.8:
    subject = cast[rng.choice(("person", "person2"))]
    attribute = rng.choice(tuple(QUESTIONS)[:-1])
  else:
    subject, attribute = cast["animal"], "diet"
  return world.state((subject, attribute), rng) + "."


def _story(world, cast, rng) -> str:
  if rng.random() < STORY_FACT_SHARE:
    return _fact(world, cast, rng)
  return world.fill(rng.choice(STORY), cast, rng)


def _profile(world, cast, rng) -> str:
  if rng.random() < 0.05:
    return _no_pet(world, cast, rng)
  if rng.random() < 0.1:
    return world.fill(rng.choice(STORY), cast, rng)
  if rng.random() < 0.3:
    key = rng.choice(world.fact_keys)
    return world.state(key, rng) + "."
  return _fact(world, cast, rng)


def _no_pet(world, cast, rng) -> str:
  pet = world.wrong_value((cast["person"], "pet"), rng)
  return rng.choice(NOT_PET).format(person=cast["person"], animal=pet)


def _dialogue(world, cast, rng) -> str:
  key = rng.choice(world.fact_keys)
  return world.fill(rng.choice(ASKED), dict(
      cast, question=QUESTIONS[key[1]].format(subject=key[0]),
      answer=world.state(key, rng)), rng)


def _lists(world, cast, rng) -> str:
  if rng.random() < 0.25:
    return _fact(world, cast, rng)
  return world.fill(rng.choice(LISTS), _few(cast, rng), rng)


def _letter(world, cast, rng) -> str:
  body = " ".join(world.fill(rng.choice(LETTER), cast, rng) for _ in range(4))
  greeting = f"Dear {cast['person']}, "
  return f"{greeting}{body} {_fact(world, cast, rng)} Your {cast['person2']}."


def _school(world, cast, rng) -> str:
  if rng.random() < 0.3:
    return _story(world, cast, rng)
  return world.fill(rng.choice(SCHOOL), _few(cast, rng), rng)


def _few(cast, rng) -> dict:
  """Half of the cast, the rest is drawn afresh: lists need other words."""
  return {slot: word for slot, word in cast.items() if rng.random() < 0.5}
