"""A model by rote: what evaluators see, with numbers that tests choose."""

from rlhf_jax.evals.model import Completion, Likelihood


class ByRote:
  """Log-probabilities a token by (context, text), and answers by prompt.

  Texts have as many tokens as words; those of `left_out` do not fit, and
  contexts of `cut` lose their beginning.
  """

  def __init__(self, totals=None, answers=None, left_out=(), cut=()):
    self.totals, self.answers = totals or {}, answers or {}
    self.left_out, self.cut = left_out, cut

  def likelihoods(self, pairs):
    return [
        None if text in self.left_out else Likelihood(
            self.totals[context, text], len(text.split()), context in self.cut)
        for context, text in pairs]

  def text_likelihoods(self, texts):
    return [[Likelihood(-2.0, len(word)) for word in text.split()]
            for text in texts]

  def complete(self, prompts):
    return [Completion(self.answers[prompt], prompt in self.cut)
            for prompt in prompts]


def by_name(rows):
  """name -> Row."""
  return {row.name: row for row in rows}
