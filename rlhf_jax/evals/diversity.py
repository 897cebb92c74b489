"""How varied texts are."""

from collections.abc import Iterable, Sequence

import numpy as np


def distinct(texts: Iterable[Sequence[int]]) -> float:
  """Different bigrams of tokens as a share of all; 0 where there are none.

  "distinct-2" of Li et al. 2016 (arXiv:1510.03055).
  """
  bigrams = [
      np.stack([tokens[:-1], tokens[1:]], axis=1)
      for tokens in map(np.asarray, texts) if len(tokens) > 1]
  if not bigrams:
    return 0.0
  found = np.concatenate(bigrams)
  return len(np.unique(found, axis=0)) / len(found)
