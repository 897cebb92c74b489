"""Byte-level byte-pair encoding, GPT-2's or one trained here.

The end of a text is `<|endoftext|>`, which models learn to write. Padding is
another id, one past the vocabulary, so that it can be neither sampled nor
confused with the end (SPEC: pad != EOS). Text from people never yields
special ids: "<|endoftext|>" inside a prompt is encoded as the characters it is.
"""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Iterable, Sequence

from etils import epath
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from rlhf_jax import storage
from rlhf_jax.data.records import DataError

END = "<|endoftext|>"
_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to ids and back.

  Attributes:
    bpe: the `tokenizers` object behind it.
  """

  bpe: tokenizers.Tokenizer

  def __post_init__(self):
    if self.bpe.token_to_id(END) is None:
      raise DataError(
          f"the vocabulary of {self.bpe.get_vocab_size()} tokens has no {END};"
          " add it, models need an end to learn"
      )
    # Not part of the saved file: set again on every load.
    self.bpe.encode_special_tokens = True

  def encode(self, text: str) -> list[int]:
    return self.bpe.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encoded = self.bpe.encode_batch_fast(list(texts), add_special_tokens=False)
    return [e.ids for e in encoded]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`, the end and padding left out."""
    real = [int(i) for i in ids]
    real = [i for i in real if 0 <= i < self.vocab_size and i != self.eos_id]
    return self.bpe.decode(real, skip_special_tokens=True)

  @functools.cached_property
  def vocab_size(self) -> int:
    """Number of ids that text uses, with the end and without padding."""
    return self.bpe.get_vocab_size(with_added_tokens=True)

  @functools.cached_property
  def eos_id(self) -> int:
    return self.bpe.token_to_id(END)

  @property
  def pad_id(self) -> int:
    return self.vocab_size

  @functools.cached_property
  def digest(self) -> str:
    """sha256 of what `save` writes."""
    return hashlib.sha256(self.bpe.to_str().encode("utf-8")).hexdigest()

  def save(self, path: str) -> None:
    """Writes `tokenizer.json` at `path`, a file name."""
    storage.write_text(path, self.bpe.to_str())


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Learns merges from `texts`.

  Args:
    texts: any text; the result depends only on these and `vocab_size`.
    vocab_size: at least 257, the bytes and the end; fewer tokens come out if
      the texts have no more pairs to merge.
  """
  if vocab_size < 257:
    raise DataError(
        f"{vocab_size=} is too small; 256 bytes and {END} need 257"
    )
  bpe = _byte_level(models.BPE())
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[END],
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False,
  )
  bpe.train_from_iterator(texts, trainer)
  return Tokenizer(bpe)


def load(spec: str) -> Tokenizer:
  """Reads a tokenizer.

  Args:
    spec: a `tokenizer.json`, a folder that holds one, or the two GPT-2 files
      as "VOCAB.json,MERGES.txt".

  Raises:
    DataError: a file is missing, is not a tokenizer, or has no end token.
  """
  try:
    if "," in spec:
      vocab, merges = (part.strip() for part in spec.split(",", 1))
      return _load_pair(vocab, merges)
    path = epath.Path(spec)
    path = path / _FILE if path.is_dir() else path
    _require(path)
    return Tokenizer(tokenizers.Tokenizer.from_str(path.read_text()))
  except DataError as error:
    raise DataError(f"tokenizer {spec!r}: {error}") from None
  except Exception as error:  # The Rust library raises bare Exceptions.
    raise DataError(
        f"tokenizer {spec!r} cannot be read ({error}); give a {_FILE}, a"
        " folder with one, or 'VOCAB.json,MERGES.txt'"
    ) from None


def _load_pair(vocab: str, merges: str) -> Tokenizer:
  _require(vocab)
  _require(merges)
  vocab, merges = (os.fspath(storage.local_copy(p)) for p in (vocab, merges))
  with open(vocab, encoding="utf-8") as f:
    has_end = END in json.load(f)
  bpe = _byte_level(models.BPE.from_file(vocab, merges))
  if has_end:  # Marks the id it already has; would else add a new one.
    bpe.add_special_tokens([END])
  return Tokenizer(bpe)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
  bpe = tokenizers.Tokenizer(model)
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  return bpe


def _require(path: epath.PathLike) -> None:
  if not epath.Path(path).is_file():
    raise DataError(f"no file {str(path)!r}")
