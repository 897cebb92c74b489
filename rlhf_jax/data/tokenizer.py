"""Byte-level byte-pair encoding, GPT-2's or one trained here.

The end of a text is `<|endoftext|>`, or what the file of an imported model has
in its place, which models learn to write. Padding is another id, one past the
vocabulary, so that it can be neither sampled nor confused with the end (SPEC:
pad != EOS). Some models read a start before every prompt. Text from people
never yields special ids: `<|endoftext|>` inside a prompt is encoded as the
characters it is. A file from somebody else that would have it otherwise is
refused.
"""

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

from etils import epath
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from rlhf_jax import storage
from rlhf_jax.data import fields
from rlhf_jax.data import special_tokens
from rlhf_jax.data.records import DataError

END = "<|endoftext|>"
_FILE = "tokenizer.json"
_PAIR = ("vocab.json", "merges.txt")
FILES = (_FILE, _PAIR[0])  # one of them makes a folder a tokenizer's
_MAX_FILE_BYTES = 256 * 2**20  # A vocabulary of a million has a tenth of it.
# What a tokenizer is tried on when loaded: every byte, more than one of a
# character, nothing, blanks, a long word, and the end as people may write it.
_PROBES = (
    "", " ", "\n\n", "a" * 300, bytes(range(256)).decode("latin-1"),
    "\u00e9\u4e2d\U0001f41d\U0010ffff", "Some words, 12 numbers.",
    END, f"a{END}b", f" {END} {END}\n", END.upper(),
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to ids and back.

  Attributes:
    bpe: the `tokenizers` object behind it.
    end: the token that ends a text.
    start: the token before every prompt, "" for none.
  """

  bpe: tokenizers.Tokenizer
  end: str = END
  start: str = ""

  def __post_init__(self):
    for token in (self.end, self.start):
      if token and self.bpe.token_to_id(token) is None:
        raise DataError(
            f"the vocabulary of {self.bpe.get_vocab_size()} tokens has no"
            f" {token}; add it, models need an end to learn"
        )
    # Not part of the saved file: set again on every load.
    self.bpe.encode_special_tokens = True

  def encode(self, text: str) -> list[int]:
    """The ids of a text, never the end's.

    Raises:
      DataError: a file's own rules break on the text, or make it the end.
    """
    with _rust_errors(f"cannot encode {text[:60]!r}"):
      ids = self.bpe.encode(text, add_special_tokens=False).ids
    return self._without_end(ids, text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, in the library's threads."""
    texts = list(texts)
    with _rust_errors(f"cannot encode one of {len(texts)} texts"):
      encoded = self.bpe.encode_batch_fast(texts, add_special_tokens=False)
    return [self._without_end(e.ids, text) for e, text in zip(encoded, texts)]

  def _without_end(self, ids: list[int], text: str) -> list[int]:
    if self.eos_id in ids:
      raise DataError(
          f"the text {text[:60]!r} would become the end token {self.end};"
          " mark it as special among 'added_tokens', and let neither 'merges'"
          " nor 'unk_token' make it"
      )
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`, the end and padding left out."""
    real = [int(i) for i in ids]
    real = [i for i in real if 0 <= i < self.vocab_size and i != self.eos_id]
    with _rust_errors(f"cannot decode {fields.short(real)}"):
      return self.bpe.decode(real, skip_special_tokens=True)

  @functools.cached_property
  def vocab_size(self) -> int:
    """Number of ids that text uses, with the end and without padding."""
    return self.bpe.get_vocab_size(with_added_tokens=True)

  @functools.cached_property
  def eos_id(self) -> int:
    return self.bpe.token_to_id(self.end)

  @functools.cached_property
  def start_ids(self) -> list[int]:
    """What stands before every prompt: one id, or none."""
    return [self.bpe.token_to_id(self.start)] if self.start else []

  @property
  def pad_id(self) -> int:
    return self.vocab_size

  @functools.cached_property
  def digest(self) -> str:
    """sha256 of what decides over ids."""
    names = "" if (self.end, self.start) == (END, "") else (
        json.dumps([self.end, self.start]))
    return hashlib.sha256(
        (self.bpe.to_str() + names).encode("utf-8")).hexdigest()

  def save(self, path: str) -> None:
    """Writes `tokenizer.json` at `path`, a file name, and beside it which of
    its tokens are the end and the start."""
    names: dict[str, Any] = {"eos_token": self.end}
    if self.start:
      names |= {"bos_token": self.start, "add_bos_token": True}
    storage.write_text(
        epath.Path(path).parent / special_tokens.FILE,
        json.dumps(names, indent=2))
    storage.write_text(path, self.bpe.to_str())


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Learns merges from `texts`.

  >>> made = train(["a dog and a cat", "a cat and a dog"], vocab_size=265)
  >>> made.decode(made.encode("a dog")), made.eos_id, made.pad_id
  ('a dog', 0, 265)

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
    spec: a `tokenizer.json`, a folder that holds one or `vocab.json` with
      `merges.txt`, or these two as "VOCAB.json,MERGES.txt". The end and the
      start are what tokenizer_config.json or special_tokens_map.json beside
      them say, or in a model's folder its eos_token_id; else `END` and none.

  Raises:
    DataError: a file is missing, is not a tokenizer, has no end token, or
      does to text what it must not (see `_check`).
  """
  try:
    with _rust_errors("cannot be read"):
      tokenizer = _read(spec)
    _check(tokenizer)
    return tokenizer
  except DataError as error:
    raise DataError(
        f"tokenizer {spec!r}: {error}; give a {_FILE}, a folder with one, or"
        " 'VOCAB.json,MERGES.txt'"
    ) from None


def _read(spec: str) -> Tokenizer:
  if "," in spec:
    vocab, merges = (part.strip() for part in spec.split(",", 1))
    names = special_tokens.names(epath.Path(vocab).parent)
    return _named(_read_pair(vocab, merges, names), names, None)
  path = epath.Path(spec)
  folder = path if path.is_dir() else path.parent
  names = special_tokens.names(folder)
  end_id = special_tokens.end_id(folder) if path.is_dir() else None
  if path.is_dir() and not (path / _FILE).exists() and (
      path / _PAIR[0]).exists():
    vocab, merges = (path / name for name in _PAIR)
    bpe = _read_pair(vocab, merges, names)
  else:
    path = path / _FILE if path.is_dir() else path
    _require(path)
    bpe = tokenizers.Tokenizer.from_str(path.read_text())
  return _named(bpe, names, end_id)


def _named(bpe, names: dict[str, str], end_id: int | None) -> Tokenizer:
  """With its end and its start."""
  end = names.get("eos_token")
  if end is None and end_id is not None:
    end = bpe.id_to_token(end_id)
    if end is None:
      raise DataError(
          f"the model's eos_token_id is {end_id}, which its"
          f" {bpe.get_vocab_size()} tokens do not have")
  return Tokenizer(bpe, end or END, names.get("start") or _template_start(bpe))


def _template_start(bpe: tokenizers.Tokenizer) -> str:
  """The token that the file's own template puts before a text, if one."""
  with _rust_errors("cannot encode 'a'"):
    plain, whole = (bpe.encode("a", add_special_tokens=is_whole).ids
                    for is_whole in (False, True))
  if plain and len(whole) > len(plain) and whole[1:1 + len(plain)] == plain:
    return bpe.id_to_token(whole[0])
  return ""


def _read_pair(
    vocab: epath.PathLike, merges: epath.PathLike, names: dict[str, str]
) -> tokenizers.Tokenizer:
  _require(vocab)
  _require(merges)
  vocab, merges = (os.fspath(storage.local_copy(p)) for p in (vocab, merges))
  with open(vocab, encoding="utf-8") as f:
    known = json.load(f)
  bpe = _byte_level(models.BPE.from_file(vocab, merges))
  # Marks ids that they already have; would else add new ones.
  special = dict.fromkeys((END, *names.values()))
  bpe.add_special_tokens([token for token in special if token in known])
  return bpe


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
  bpe = tokenizers.Tokenizer(model)
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  return bpe


def _require(path: epath.PathLike) -> None:
  if not epath.Path(path).is_file():
    raise DataError(f"no file {str(path)!r}")
  if (size := epath.Path(path).stat().length) > _MAX_FILE_BYTES:
    raise DataError(
        f"{str(path)!r} has {size} bytes, more than {_MAX_FILE_BYTES}"
    )


def _check(tokenizer: Tokenizer) -> None:
  """Refuses what a file can ask for and a model must not be given.

  Raises:
    DataError: texts are cut or filled up, encoded by chance, cannot be encoded
      or decoded, become the end, or change each time they are decoded and
      encoded again; or ids do not count from 0 on, so that a model's table
      would have no row for some.
  """
  bpe = tokenizer.bpe
  for name in ("truncation", "padding"):
    if getattr(bpe, name) is not None:
      raise DataError(
          f"its {name!r} is {fields.short(getattr(bpe, name))}, which would"
          " change every text unseen; set it to null"
      )
  if dropout := getattr(bpe.model, "dropout", None):
    raise DataError(
        f"its 'dropout' is {dropout:g}, so that a text has other ids each time;"
        " set it to null"
    )
  ids = sorted(bpe.get_vocab(with_added_tokens=True).values())
  if ids != list(range(len(ids))):
    place = next(i for i, own in enumerate(ids) if i != own)
    wrong = (f"{ids[place]} is there twice" if ids[place] < place
             else f"{place} is missing")
    raise DataError(
        f"its {len(ids)} tokens have ids up to {ids[-1]}, and {wrong}; number"
        " them from 0 on, each once"
    )
  for text in (*_PROBES, tokenizer.end, f"a{tokenizer.start}b"):
    first = tokenizer.decode(tokenizer.encode(text))
    again = tokenizer.decode(tokenizer.encode(first))
    if again != first:
      raise DataError(
          f"what it decodes, {first[:60]!r}, it does not read as such"
          f" but as {again[:60]!r}; correct its 'decoder' and"
          " 'post_processor'"
      )


@contextlib.contextmanager
def _rust_errors(what: str):
  """Errors of the library, also those of its own mistakes, as a DataError.

  It raises bare Exceptions. Where it panics, that is no Exception, and of a
  class that cannot be imported.
  """
  try:
    yield
  except DataError:
    raise
  except BaseException as error:
    if not (isinstance(error, Exception)
            or type(error).__name__ == "PanicException"):
      raise
    raise DataError(f"{what} ({fields.short(str(error))})") from None
