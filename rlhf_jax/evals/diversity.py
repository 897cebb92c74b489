"""How varied texts are."""

from collections.abc import Iterable, Sequence

import numpy as np

from rlhf_jax.evals import intervals


def distinct(
    texts: Iterable[Sequence[int] | np.ndarray], n: int = 2) -> float:
  """Different n-grams of tokens as a share of all; 0 where there are none.

  "distinct-n" of Li et al. 2016 (arXiv:1510.03055), by default of bigrams.
  """
  found = _ngrams(texts, n)[0]
  if not len(found):
    return 0.0
  return len(np.unique(found, axis=0)) / len(found)


def distinct_interval(
    texts: Sequence[Sequence[int] | np.ndarray],
    n: int = 2) -> dict[str, float]:
  """`distinct` with its interval over texts: mean, low, high, n (texts).

  By the jackknife, which leaves out one text at a time: drawing texts with
  repetition, as a bootstrap does, would make them less varied than they are.
  """
  ngrams, owners = _ngrams(texts, n)
  mean, num_texts = distinct(texts, n), len(texts)
  if num_texts < 2 or not len(ngrams):
    return {"mean": mean, "low": mean, "high": mean, "n": num_texts}
  by_text = np.bincount(owners, minlength=num_texts)
  _, kinds = np.unique(ngrams, axis=0, return_inverse=True)
  pairs = np.unique(np.stack([kinds.ravel(), owners], axis=1), axis=0)
  spread = np.bincount(pairs[:, 0])  # texts with this n-gram
  own = np.bincount(
      pairs[:, 1], weights=spread[pairs[:, 0]] == 1, minlength=num_texts)
  left = (len(spread) - own) / np.maximum(len(ngrams) - by_text, 1)
  error = intervals.Z * np.sqrt(
      (num_texts - 1) / num_texts * np.square(left - left.mean()).sum())
  return {"mean": mean, "low": float(mean - error),
          "high": float(mean + error), "n": num_texts}


def _ngrams(texts, n: int) -> tuple[np.ndarray, np.ndarray]:
  """All n-grams [N, n], and the number of the text that each is from [N]."""
  windows = [
      np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), n)
      if len(tokens) >= n else np.zeros((0, n), int) for tokens in texts]
  if not windows:
    return np.zeros((0, n), int), np.zeros(0, int)
  return (np.concatenate(windows),
          np.repeat(np.arange(len(windows)), [len(w) for w in windows]))
