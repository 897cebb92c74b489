"""Which of two policies is preferred, by labelers or by a reward model."""

from collections.abc import Callable, Sequence

# judge(prompt number, prompt, [response a, response b]) -> ranks, 1 = better
Judge = Callable[[int, str, list[str]], Sequence[int]]


def points(ranks: Sequence[int]) -> float:
  """Of the first of two: 1 where it is better, 1/2 for a tie, 0 else."""
  rank_a, rank_b = ranks
  return 0.5 + 0.5 * ((rank_a < rank_b) - (rank_a > rank_b))


def swapped_points(
    judge: Judge, number: int, prompt: str, a: str, b: str) -> float:
  """Points of `a` against `b`, the mean of both orders in which a judge of
  texts can be shown them: whoever goes by position gives one half."""
  there = points(judge(number, prompt, [a, b]))
  back = points(judge(number, prompt, [b, a]))
  return (there + 1.0 - back) / 2.0


def labelers_judge(labelers: Sequence, assign: Callable) -> Judge:
  """One labeler a prompt, chosen by `assign(labelers, prompt)`."""
  return lambda number, prompt, pair: assign(
      labelers, prompt).rank(prompt, pair).ranks
