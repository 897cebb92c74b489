"""The best prompt-blind reply, by hand."""

import dataclasses

from rlhf_jax.evals import constant


@dataclasses.dataclass
class Judgment:
  score: float


class Table:
  """Judges by a table of (prompt, reply)."""

  def __init__(self, scores):
    self.scores = scores

  def judge(self, prompt, reply):
    return Judgment(self.scores.get((prompt, reply), 0.0))


ROWS = [
    {"prompt": "a", "category": "chat"},
    {"prompt": "b", "category": "other"},
    {"prompt": "c", "category": "chat"},
]
REPLIES = [{"response": text} for text in ("x", "y", "z", "x")]


def test_the_best_mean_counts_not_the_mean_of_the_best():
  world = Table({("a", "x"): 1.0, ("c", "y"): 0.9, ("a", "y"): 0.4,
                 ("b", "z"): 0.25})
  found = constant.best_replies(world, ROWS, REPLIES, [0.5, 0.75, 1.0])
  assert found == {
      "chat": {"constant": 0.65, "prompts": 2,
               "policy": 0.75, "policy_prompts": 2},
      "other": {"constant": 0.25, "prompts": 1,
                "policy": 0.75, "policy_prompts": 1},
  }


def test_prompts_that_the_policy_did_not_answer_count_for_the_replies_only():
  world = Table({("a", "x"): 1.0, ("c", "y"): 0.6})
  found = constant.best_replies(world, ROWS, REPLIES, [0.25])
  assert found == {"chat": {"constant": 0.5, "prompts": 2,
                            "policy": 0.25, "policy_prompts": 1}}


def test_replies_are_drawn_by_hash_and_without_doubles():
  asked = set()

  class Recorder:

    def judge(self, prompt, reply):
      asked.add(reply)
      return Judgment(0.0)

  many = [{"response": f"r{n % 500}"} for n in range(2000)]
  constant.best_replies(Recorder(), ROWS[:1], many, [0.0])
  first = set(asked)
  assert len(first) == constant.NUM_REPLIES
  asked.clear()
  constant.best_replies(Recorder(), ROWS[:1], many[::-1], [0.0])
  assert asked == first
