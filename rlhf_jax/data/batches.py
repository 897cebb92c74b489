"""Batches by number: batch N is a function of (seed, N, global row) alone.

Nothing is iterated and no state is kept, so to resume at N is to ask for N,
and every number of processes sees the same global batch. The seed gives each
epoch its own order. Without one (`seed=None`) the examples come once, in the
source's order, for evaluation.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import itertools
import sys
from typing import Any

import grain
import numpy as np

from rlhf_jax.data import packing
from rlhf_jax.data.records import DataError


@dataclasses.dataclass(frozen=True)
class Examples:
  """Examples by number.

  Attributes:
    dataset: those of one epoch after another, or of one (without a seed).
    epoch_size: examples of one epoch.
  """

  dataset: grain.MapDataset
  epoch_size: int

  def __len__(self) -> int:
    return len(self.dataset)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    return self.dataset[number]


def lm_examples(source: Sequence, seed: int | None) -> Examples:
  """Pretraining windows, all of whose tokens are real and trained on.

  Returns:
    Examples {`tokens` int32 [L], `mask` and `loss_mask` bool [L]}, L as
    prepared.
  """

  def to_example(row):
    real = np.ones(len(row["tokens"]), bool)
    return {"tokens": row["tokens"], "mask": real, "loss_mask": real}

  return _examples(source, seed, to_example)


def demonstration_examples(
    source: Sequence, seed: int | None, *, length: int, pad_id: int,
    packed: bool = False,
) -> Examples:
  """Prompts with responses, one or (packed) several in a line.

  Which texts share a row is a function of their lengths and order alone, so
  that a row's number names the same texts in every epoch and process.

  Args:
    source: prepared demonstrations.
    seed: for the order, or None.
    length: L; no demonstration may be longer.
    pad_id: fills what is not real, on the right.
    packed: fill rows with further demonstrations as long as they fit.

  Returns:
    Examples {`tokens` int32 [L]; `mask` int32 [L], n at the tokens of the
    row's n-th demonstration, 0 at padding; `loss_mask` bool [L], the
    responses' tokens with their ends}. The masks speak of the token at their
    own position, not of the one predicted there.
  """
  num_tokens = [len(row["prompt_tokens"]) + len(row["response_tokens"])
                for row in source]
  _check_longest(source, num_tokens, length, "tokens of prompt and response")
  if not num_tokens:
    _refuse_empty(source)
  groups = (packing.pack(num_tokens, length) if packed
            else [[index] for index in range(len(num_tokens))])

  def to_example(indices):
    tokens = np.full(length, pad_id, np.int32)
    mask = np.zeros(length, np.int32)
    loss_mask = np.zeros(length, bool)
    start = 0
    for number, index in enumerate(indices, start=1):
      row = source[index]
      end = _write(
          tokens, start, row["prompt_tokens"], row["response_tokens"])
      mask[start:end] = number
      loss_mask[end - len(row["response_tokens"]):end] = True
      start = end
    return {"tokens": tokens, "mask": mask, "loss_mask": loss_mask}

  return _examples(groups, seed, to_example)


def mixed_examples(
    parts: Sequence[Examples], weights: Sequence[float]) -> Examples:
  """Examples of several datasets in turn, so that any long run of them holds
  each dataset's share.

  Each comes in its own order: before one of its examples is seen again, all
  have been. An epoch is as many examples as the datasets have together; small
  ones of a large weight come up several times in it.

  Args:
    parts: datasets of endless epochs.
    weights: above 0, to each other as the shares; kept to within a hundredth.
  """
  dataset = grain.MapDataset.mix([part.dataset for part in parts], weights)
  return Examples(dataset, sum(part.epoch_size for part in parts))


def comparison_examples(
    source: Sequence,
    seed: int | None,
    *,
    length: int,
    num_rows: int,
    max_prompts: int,
    max_responses: int,
    pad_id: int,
) -> Examples:
  """Blocks of R rows with N prompts at most, all K responses of each.

  Args:
    source: prepared comparisons.
    seed: for the order, or None.
    length: L; no prompt with a response may be longer.
    num_rows: R, rows of a block.
    max_prompts: N; 1 makes every prompt a block of its own.
    max_responses: K; no prompt may have more.
    pad_id: fills what is not real.

  Returns:
    Examples {`tokens` int32 [R, L], each response behind its prompt; `mask`
    int32 [R, L], one number at all tokens of a response with its prompt,
    rising along the row, 0 at padding; `last_token` int32 [N, K], where in the
    R * L tokens a response ends; `ranks` int32 [N, K], 1 = best, equal = tie,
    0 in empty slots; `response_mask` bool [N, K], slots that are not empty}.
  """
  lengths = [[len(row["prompt_tokens"]) + len(response)
              for response in row["response_tokens"]] for row in source]
  _check_longest(
      source, map(max, lengths), length, "tokens of prompt and response")
  _check_longest(source, map(len, lengths), max_responses, "responses")
  blocks = packing.pack_prompts(
      lengths, num_rows=num_rows, capacity=length, max_prompts=max_prompts)

  def to_example(block):
    tokens = np.full((num_rows, length), pad_id, np.int32)
    mask = np.zeros((num_rows, length), np.int32)
    last_token = np.zeros((max_prompts, max_responses), np.int32)
    ranks = np.zeros((max_prompts, max_responses), np.int32)
    for slot, (index, places) in enumerate(block):
      row = source[index]
      ranks[slot, :len(places)] = row["ranks"]
      for k, (place, response) in enumerate(
          zip(places, row["response_tokens"])):
        end = _write(tokens[place[0]], place[1], row["prompt_tokens"], response)
        mask[place[0], place[1]:end] = 1 + place[1]
        last_token[slot, k] = place[0] * length + end - 1
    return {"tokens": tokens, "mask": mask, "last_token": last_token,
            "ranks": ranks, "response_mask": ranks > 0}

  return _examples(blocks, seed, to_example)


def untied_pairs(source: Sequence, seed: int) -> list[dict[str, Any]]:
  """Every pair of a prompt's responses that is no tie, as a comparison of two.

  They are shuffled together, for those that follow each other share blocks:
  the pairs of a prompt should meet no more often than any others.

  Args:
    source: prepared comparisons.
    seed: for the order.

  Returns:
    Comparisons {`prompt_tokens`, `response_tokens` (the better one, the worse
    one), `ranks` (1, 2)}.
  """
  found = []
  for row in source:
    ranks, tokens = row["ranks"], row["response_tokens"]
    found += [
        {"prompt_tokens": row["prompt_tokens"],
         "response_tokens": [tokens[i], tokens[j]], "ranks": [1, 2]}
        for i, j in itertools.permutations(range(len(ranks)), 2)
        if ranks[i] < ranks[j]
    ]
  order = np.random.default_rng(seed).permutation(len(found))
  return [found[index] for index in order]


def pair_examples(
    pairs: Sequence, *, length: int, pad_id: int
) -> Examples:
  """(prompt tokens, response tokens) pairs in a line, in their own order.

  Returns:
    Examples {`tokens` int32 [L], `mask` bool [L]}, padded on the right.
  """

  def to_example(pair):
    tokens, mask = _joined(*pair, length, pad_id)
    return {"tokens": tokens, "mask": mask}

  _check_longest(
      pairs, (len(prompt) + len(response) for prompt, response in pairs),
      length,
      "tokens of prompt and response",
  )
  return _examples(pairs, None, to_example)


def left_padded(
    prompts: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Token ids of B prompts -> (tokens int32, mask bool), both [B, length].

  >>> left_padded([[5, 6, 7], [8]], length=4, pad_id=50)
  (array([[50,  5,  6,  7],
         [50, 50, 50,  8]], dtype=int32), array([[False,  True,  True,  True],
         [False, False, False,  True]]))

  Raises:
    ValueError: a prompt is longer than `length`.
  """
  tokens = np.full((len(prompts), length), pad_id, np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, prompt in enumerate(prompts):
    start = length - len(prompt)
    if start < 0:
      raise ValueError(
          f"prompt {row} has {len(prompt)} tokens, more than {length=}")
    tokens[row, start:] = prompt
    mask[row, start:] = True
  return tokens, mask


def prompt_examples(
    source: Sequence, seed: int | None, *, prompt_length: int, pad_id: int
) -> Examples:
  """Prompts padded on the left, so that all responses start at P.

  Args:
    source: prepared prompts, or any rows with `prompt_tokens`.
    seed: for the order, or None.
    prompt_length: P; no prompt may be longer.
    pad_id: fills what is not real.

  Returns:
    Examples {`prompt_tokens` int32 [P], `prompt_mask` bool [P]}.
  """

  def to_example(row):
    tokens, mask = left_padded([row["prompt_tokens"]], prompt_length, pad_id)
    return {"prompt_tokens": tokens[0], "prompt_mask": mask[0]}

  _check_longest(
      source, (len(row["prompt_tokens"]) for row in source), prompt_length,
      "tokens of a prompt",
  )
  return _examples(source, seed, to_example)


# What decides whether a row's tokens or responses are in the loss.
_COUNTED = ("loss_mask", "response_mask")


class Batches:
  """Batches of one process, by their number.

  Args:
    examples: one of the datasets above.
    batch_size: rows of the global batch.
    filled_size: rows with those that fill it up and count for nothing (no
      token is trained on, no response compared), by default none.
    rows: those of the (filled) batch that this process holds, by default all.

  Attributes:
    num_batches: how many there are when the examples come once, else None.
      The last of them is filled up with its last row.
  """

  def __init__(
      self,
      examples: Examples,
      batch_size: int,
      *,
      filled_size: int = 0,
      rows: Sequence[int] | np.ndarray | None = None,
  ):
    if batch_size < 1:
      raise DataError(f"{batch_size=} must be at least 1")
    self._examples = examples
    self._batch_size = batch_size
    self._rows = range(max(batch_size, filled_size)) if rows is None else [
        int(row) for row in rows]
    is_finite = len(examples) < sys.maxsize
    self.num_batches = -(-len(examples) // batch_size) if is_finite else None

  def count(self, num_epochs: int) -> int:
    """Whole batches of that many epochs, but at least one."""
    return max(num_epochs * self._examples.epoch_size // self._batch_size, 1)

  def epoch(self, n: int) -> int:
    """The epoch, from 0, in which training batch `n` starts."""
    return n * self._batch_size // self._examples.epoch_size

  def position(self, next_batch: int) -> dict[str, Any]:
    """Where training examples stand before batch `next_batch`, alike on every
    process: `next_batch`, `next_row` and `epoch` from 0, and `last_row`, a
    digest of the example before, "" at the start."""
    next_row = next_batch * self._batch_size
    return {
        "next_batch": next_batch,
        "next_row": next_row,
        "epoch": self.epoch(next_batch),
        "last_row": digest(self._examples[next_row - 1]) if next_row else "",
    }

  def __call__(self, n: int) -> dict[str, np.ndarray]:
    """This process's rows of global batch `n`, stacked: [rows, ...].

    Batches of examples that come once also have `row_mask` bool [rows], False
    on the rows that fill up the last one or the batch.
    """
    if self.num_batches is None:
      if n < 0:
        raise IndexError(f"batch {n}; the first one is 0")
      return _stacked([self._training_row(n, row) for row in self._rows])
    indices = [n * self._batch_size + row for row in self._rows]
    if not 0 <= n < self.num_batches:
      raise IndexError(f"batch {n} of {self.num_batches}")
    last = len(self._examples) - 1
    batch = _stacked([self._examples[min(i, last)] for i in indices])
    is_own = np.asarray(self._rows) < self._batch_size
    return batch | {"row_mask": is_own & (np.asarray(indices) <= last)}

  def _training_row(self, n: int, row: int) -> dict[str, np.ndarray]:
    """Row `row` of batch `n`; past the batch's own, one that counts for
    nothing."""
    last = self._batch_size - 1
    example = self._examples[n * self._batch_size + min(row, last)]
    if row <= last:
      return example
    return example | {
        name: np.zeros_like(example[name])
        for name in _COUNTED if name in example}


def digest(arrays: dict[str, np.ndarray]) -> str:
  """Tells examples or batches apart: of the names, kinds and bytes of all."""
  found = hashlib.blake2b(digest_size=8)
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    found.update(f"{name} {array.dtype} {array.shape}".encode())
    found.update(array.tobytes())
  return found.hexdigest()


def _examples(
    source: Sequence, seed: int | None, to_example: Callable[[Any], Any]
) -> Examples:
  if not len(source):
    _refuse_empty(source)
  rows = grain.MapDataset.source(source)
  if seed is not None:
    rows = rows.seed(seed).shuffle().repeat()
  return Examples(rows.map(to_example), len(source))


def _joined(prompt, response, length: int, pad_id: int):
  """prompt ++ response, right-padded, and which positions are real: [L]."""
  tokens = np.full(length, pad_id, np.int32)
  end = _write(tokens, 0, prompt, response)
  return tokens, np.arange(length) < end


def _write(row: np.ndarray, start: int, prompt, response) -> int:
  """Writes prompt ++ response into `row` from `start` on; returns its end."""
  middle = start + len(prompt)
  end = middle + len(response)
  row[start:middle] = prompt
  row[middle:end] = response
  return end


def _check_longest(source, lengths, limit: int, what: str) -> None:
  longest = max(lengths, default=0)
  if longest > limit:
    raise DataError(
        f"a row of {_name(source)} has {longest} {what}, more than the {limit}"
        " that fit; raise that size or lower the limit at preparation"
    )


def _refuse_empty(source):
  raise DataError(
      f"no rows in {_name(source)}; prepare a larger share for this split"
  )


def _name(source) -> str:
  return "a list" if isinstance(source, (list, tuple)) else repr(source)


def _stacked(examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  return {
      name: np.stack([example[name] for example in examples])
      for name in examples[0]
  }
