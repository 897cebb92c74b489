"""A data folder with dialogues written here, as experiments/hh.py asks for."""

import gzip
import itertools
import json
import pathlib

THINGS = ("bread", "soup", "tea", "rain", "snow", "grass", "a cat", "a dog",
          "a boat", "a drum", "the sun", "the moon", "wool", "salt", "ice")
QUESTIONS = ("What is {}?", "Do you like {}?", "Where is {}?", "Why {}?")
REPLIES = ("It is good to ask about {}.", "I can say a lot of {}.")
SOURCES = ("hh_harmless_base", "hh_helpful_base")


def dialogue(question: str) -> str:
  return f"\n\nHuman: {question}\n\nAssistant:"


def comparisons():
  """(source, row): the reply that speaks of the matter is preferred."""
  asked = itertools.product(QUESTIONS, THINGS)
  for number, (question, thing) in enumerate(asked):
    replies = [REPLIES[number % 2].format(thing), "No."]
    ranks = [1, 2]
    if number % 3 == 0:
      replies, ranks = replies[::-1], ranks[::-1]
    source = SOURCES[number % 2]
    yield source, {"prompt": dialogue(question.format(thing)),
                   "responses": replies, "ranks": ranks, "source": source}


def _write(path, rows) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with gzip.open(path, "wt") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)


def write(root: pathlib.Path) -> pathlib.Path:
  """Writes pretrain/, demonstrations/ and comparisons/; returns the folder."""
  _write(root / "pretrain" / "text.jsonl.gz", (
      {"text": " ".join(q.format(t) + " " + r.format(t)
                        for q in QUESTIONS for r in REPLIES) * 3}
      for t in THINGS))
  for name in ("oasst_sample", "dolly_small", "self_instruct_seed"):
    _write(root / "demonstrations" / f"{name}.jsonl.gz", (
        {"prompt": dialogue(f"Tell me of {thing} ({name})."),
         "response": REPLIES[0].format(thing)} for thing in THINGS))
  for source in SOURCES:
    _write(root / "comparisons" / f"{source}.jsonl.gz", (
        row for name, row in comparisons() if name == source))
  return root
