"""Smallworld: the paper's labeling project in miniature, with the truth.

A seeded small English world with pretraining text, prompts of the paper's ten
use cases, demonstrations, and a rubric that knows the gold score of any text.
Everything is a pure function of the seed.

The split of a prompt is the split of its user, and a user only ever asks for
fillers and facts of the same split: evaluation shares no user, slot tuple or
fact with training. (The facts themselves all occur in the pretraining text.)
"""

from collections.abc import Iterator
import functools
import itertools
import random

from rlhf_jax.data import few_shot
from rlhf_jax.data import splits
from rlhf_jax.data.smallworld import demonstrations as demonstrations_lib
from rlhf_jax.data.smallworld import labeler_prompts
from rlhf_jax.data.smallworld import prompts as prompts_lib
from rlhf_jax.data.smallworld import rubric as rubric_lib
from rlhf_jax.data.smallworld import text as text_lib
from rlhf_jax.data.smallworld import world as world_lib
from rlhf_jax.data.smallworld.rubric import Judgment

# Its text has some 1,300 different tokens: no tokenizer finds more in it.
MAX_VOCABULARY = 2_000
NUM_USERS = 150
# The n-th user of a split writes in proportion to n to this power.
USER_EXPONENT = -0.8
DUPLICATE_SHARE = 0.04
PRIVATE_SHARE = 0.02
# Fillers drawn before giving up on a split.
_MAX_TRIES = 5000


class Smallworld:
  """The world, its texts and its judge.

  >>> world = Smallworld()
  >>> prompt = "What pet does Kate have?"
  >>> for reply in ("Sure! Kate has a dog.", "Kate has a dog.", "A cat."):
  ...   print(f"{world.judge(prompt, reply).score:.2f}  {reply}")
  1.00  Sure! Kate has a dog.
  0.70  Kate has a dog.
  0.00  A cat.
  >>> row = next(world.demonstrations(1))
  >>> row["prompt"], row["category"]
  ('Give the market and a ball one sentence.', 'generation')

  Args:
    seed: of everything.
    num_people: who live in it.
    validation_fraction: of the users; theirs are the validation prompts.
    test_fraction: the same of the test prompts.
  """

  def __init__(self, *, seed: int = 0, num_people: int = 12,
               validation_fraction: float = 0.1, test_fraction: float = 0.2):
    self.world = world_lib.World(seed, num_people)
    self.seed = seed
    self.split_of = functools.partial(
        splits.split_of, validation_fraction=validation_fraction,
        test_fraction=test_fraction)
    self._fractions = {
        "train": 1 - validation_fraction - test_fraction,
        "validation": validation_fraction, "test": test_fraction}
    if self._fractions["train"] <= 0:
      raise ValueError(
          f"{validation_fraction=} and {test_fraction=} leave no training"
          " split: their sum must be below 1")
    self._parse = functools.lru_cache(maxsize=100_000)(
        prompts_lib.Parser(self.world))
    self._rubric = rubric_lib.Rubric(self.world)

  def pretrain(self, num_documents: int) -> Iterator[dict]:
    """Yields {"text"}: pretraining documents of about 40-120 words."""
    return text_lib.documents(self.world, num_documents, self._exchange)

  def _exchange(self, rng: random.Random, topic: dict) -> tuple[str, str]:
    """(request, reply) between people of the pretraining text."""
    for words in itertools.chain(itertools.repeat(topic, 20),
                                 itertools.repeat(self.world.words)):
      task = prompts_lib.draw_task(
          self.world, rng.choice(prompts_lib.KINDS), rng, words)
      if self.split_of(task.group) == "train":
        break
    request = prompts_lib.prompt_text(task, rng.choice(task.kind.forms))
    flaws = frozenset({"curt"}) if rng.random() < 0.7 else (
        demonstrations_lib.draw_flaws(rng, haste=1.0))
    return request, demonstrations_lib.write_reply(
        self.world, task, rng, flaws)

  def prompts(self, num_prompts: int, few_shot_sets: int = 0
              ) -> Iterator[dict]:
    """Yields {"prompt", "user_id", "category"} as customers send them.

    Some are near-duplicates of an earlier prompt of the same user, and some
    hold private data: the cleaning must find both. Few-shot sets of labelers
    follow, as rows of the form in `few_shot`.
    """
    sent = {}  # user -> long prompts, for sending them twice
    stream = self._tasks("customer", num_prompts)
    for index, (row, _) in enumerate(stream):
      rng = self.world.rng("customer/additions", index)
      draw = rng.random()
      earlier = sent.setdefault(row["user_id"], [])
      if draw < DUPLICATE_SHARE and earlier:
        row = dict(rng.choice(earlier))
        row["prompt"] += rng.choice(prompts_lib.ADDITIONS)
      elif draw > 1 - PRIVATE_SHARE:
        row["prompt"] += prompts_lib.private_addition(rng)
      elif len(row["prompt"].split()) >= 8:
        earlier.append(row)
      yield row
    yield from self._few_shot_sets("customer", few_shot_sets)

  def demonstrations(self, num_demonstrations: int, few_shot_sets: int = 0
                     ) -> Iterator[dict]:
    """Yields {"prompt", "response", "user_id", "category", "labeler_id"}.

    With `prompt_kind`, plain or user_based, and the latter's `use_case`.
    Few-shot sets follow, as rows of the form in `few_shot`.
    """
    stream = self._tasks("author", num_demonstrations)
    for index, (row, task) in enumerate(stream):
      rng = self.world.rng("demonstration", index)
      labeler = rng.randrange(demonstrations_lib.NUM_LABELERS)
      flaws = demonstrations_lib.draw_flaws(
          rng, demonstrations_lib.haste(self.world, labeler))
      response = demonstrations_lib.write_reply(self.world, task, rng, flaws)
      yield dict(row, response=response, labeler_id=f"writer_{labeler:02d}",
                 **labeler_prompts.provenance(self.seed, row))
    yield from self._few_shot_sets("author", few_shot_sets)

  def responses(self, prompt: str, num: int, seed: int) -> list[str]:
    """`num` replies to one prompt, as an imperfect policy samples them."""
    rng = self.world.rng(f"responses/{seed}", prompt)
    return demonstrations_lib.responses(
        self.world, self.parse(prompt), rng, num)

  def parse(self, prompt: str) -> prompts_lib.Task:
    """What a prompt asks for: a few-shot one by the query that it ends with.

    Raises:
      ValueError: no use case fits.
    """
    return self._parse(_asked(prompt))

  def judge(self, prompt: str, response: str) -> Judgment:
    """The gold score of any text as a response to a Smallworld prompt."""
    return self._rubric.judge(self.parse(prompt), _asked(prompt), response)

  def _tasks(self, stream: str, num: int):
    """Yields (row, task) of one stream; no text is in two streams."""
    users = self._users(stream)
    seen = set()
    for index in range(num):
      rng = self.world.rng(f"{stream}/tasks", index)
      split, user_id = self._draw_user(users, rng)
      category = rng.choices(list(prompts_lib.USE_CASES),
                             list(prompts_lib.USE_CASES.values()))[0]
      text, task = self._draw(
          stream, split, prompts_lib.BY_CATEGORY[category], seen, rng)
      seen.add(text)
      yield {"prompt": text, "user_id": user_id, "category": category}, task

  def _few_shot_sets(self, stream: str, num: int):
    """Yields few-shot sets, each by one labeler for one user."""
    users = self._users(stream)
    for index in range(num):
      rng = self.world.rng(f"{stream}/few_shot", index)
      split, user_id = self._draw_user(users, rng)
      instruction, names = rng.choice(labeler_prompts.INSTRUCTIONS)
      kinds = labeler_prompts.kinds_of(names)
      labeler = rng.randrange(demonstrations_lib.NUM_LABELERS)
      haste = demonstrations_lib.haste(self.world, labeler)
      examples = []
      for query, task in self._few_shot_tasks(stream, split, kinds, rng):
        flaws = demonstrations_lib.draw_flaws(rng, haste)
        flaws -= labeler_prompts.NEVER_IN_EXAMPLES
        examples.append({
            "query": query,
            "response": demonstrations_lib.write_reply(
                self.world, task, rng, flaws)})
      yield {"prompt_kind": few_shot.FEW_SHOT, "instruction": instruction,
             "examples": examples, "user_id": user_id,
             "category": kinds[0].category,
             "labeler_id": f"writer_{labeler:02d}"}

  def _few_shot_tasks(self, stream, split, kinds, rng: random.Random):
    """(text, task) of each pair; no two ask for the same, in other words."""
    num = rng.choice(labeler_prompts.NUM_PAIRS)
    found = {}  # task.group -> (text, task)
    for _ in range(_MAX_TRIES):
      text, task = self._draw(stream, split, kinds, (), rng)
      found.setdefault(task.group, (text, task))
      if len(found) == num:
        return found.values()
    raise ValueError(
        f"the {split} split has fewer than {num} tasks of"
        f" {[kind.name for kind in kinds]} for a few-shot set: raise its"
        f" fraction, now {self._fractions[split]}, or num_people")

  def _draw_user(self, users, rng: random.Random) -> tuple[str, str]:
    """(split, user id) of a row."""
    split = rng.choices(list(users), [self._fractions[s] for s in users])[0]
    return split, rng.choices(*users[split])[0]

  def _users(self, stream: str) -> dict[str, tuple[list, list]]:
    """Split -> (user ids, weights): few users write most of the prompts."""
    users = {}
    for split, fraction in self._fractions.items():
      if fraction > 0:
        ids = (f"{stream}_{self.seed}_{n:05d}" for n in itertools.count())
        own = (user for user in ids if self.split_of(user) == split)
        num = max(4, round(NUM_USERS * fraction))
        weights = [(n + 1) ** USER_EXPONENT for n in range(num)]
        users[split] = list(itertools.islice(own, num)), weights
    return users

  def _draw(self, stream, split, kinds, seen, rng: random.Random):
    """A prompt that this split and stream may use, a new one if possible."""
    fallback = None
    for attempt in range(_MAX_TRIES):
      kind = rng.choice(kinds)
      task = prompts_lib.draw_task(self.world, kind, rng)
      if self.split_of(task.group) != split:
        continue
      text = prompts_lib.prompt_text(task, rng.choice(kind.forms))
      is_author = splits.unit_hash(f"{self.seed}/stream/{text}") < 0.5
      if is_author != (stream == "author"):
        continue
      if text not in seen:
        return text, task
      fallback = text, task
      if attempt > 200:
        break
    if fallback is None:
      raise ValueError(
          f"no {kinds[0].category} prompt falls into the {split} split: raise"
          f" its fraction, now {self._fractions[split]}, or num_people")
    return fallback


def _asked(prompt: str) -> str:
  """The part of a prompt that asks."""
  return few_shot.last_query(prompt) or prompt
