"""Prepared rows on disk: one TFDS builder a kind, in array_record files.

TensorFlow is not needed, neither to write nor to read. Rows keep the order in
which they are given: shuffling belongs to `batches`, where it has a seed.
"""

from collections.abc import Sequence
import contextlib
import io
import json
import tempfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data import cleaning
from rlhf_jax.data import records

Example = dict[str, Any]
_VERSION = "1.0.0"
# Splits up to this size on disk are decoded once, when opened.
_IN_MEMORY_BYTES = 256 * 2**20


def _tokens_feature(length: int | None = None):
  return tfds.features.Tensor(shape=(length,), dtype=np.int32)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes examples that are already made.

  Args:
    examples: the examples of each split that has any.
    data_dir: folder for the dataset's own folder, `name`.
  """

  VERSION = tfds.core.Version(_VERSION)
  # Nothing is downloaded, so TFDS need not look for checksums beside the code
  # (for which it imports importlib_resources, without depending on it).
  code_path = None

  def __init__(self, *, examples: dict[str, Sequence[Example]], data_dir: str):
    self._examples = examples
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _features(self) -> dict[str, Any]:
    raise NotImplementedError

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(self._features()),
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
        split: self._generate_examples(examples)
        for split, examples in self._examples.items()
    }

  def _generate_examples(self, examples):
    yield from enumerate(examples)

  def _texts(self) -> dict[str, Any]:
    names = records.text_fields(self.name) + records.optional_fields(self.name)
    return {name: tfds.features.Text() for name in names}


class Pretrain(_Builder):
  """Windows of packed text, all of one length."""

  name = "pretrain"

  def _features(self):
    first = next(iter(self._examples.values()))[0]
    return {"tokens": _tokens_feature(len(first["tokens"]))}


class Demonstrations(_Builder):
  """With the file of each, so that a mixture can weight it."""

  name = "demonstrations"

  def _features(self):
    return self._texts() | {
        "file": tfds.features.Text(),
        "prompt_tokens": _tokens_feature(),
        "response_tokens": _tokens_feature(),
    }


class Comparisons(_Builder):
  """The tokens of all responses stand in one array, with their lengths."""

  name = "comparisons"

  def _features(self):
    return self._texts() | {
        "responses": tfds.features.Sequence(tfds.features.Text()),
        "metadata": tfds.features.Text(),
        "ranks": _tokens_feature(),
        "prompt_tokens": _tokens_feature(),
        "response_tokens": _tokens_feature(),
        "response_lengths": _tokens_feature(),
    }


class Prompts(_Builder):
  name = "prompts"

  def _features(self):
    return self._texts() | {"prompt_tokens": _tokens_feature()}


_BUILDERS = {
    builder.name: builder
    for builder in (Pretrain, Demonstrations, Comparisons, Prompts)
}


def example(kind: str, row: cleaning.Row, root: str = "") -> Example:
  """A cleaned row of any kind but pretraining as its builder stores it; its
  file is named from `root` on."""
  names = records.text_fields(kind) + records.optional_fields(kind)
  stored = {name: row.record.get(name, "") for name in names}
  stored["prompt_tokens"] = row.tokens[0]
  if kind == "demonstrations":
    stored["response_tokens"] = row.tokens[1]
    stored["file"] = records.file_of(row.origin, root)
  if kind == "comparisons":
    stored |= {
        "responses": row.record["responses"],
        "metadata": json.dumps(row.record.get("metadata")),
        "ranks": np.asarray(row.record["ranks"], np.int32),
        "response_tokens": np.concatenate(row.tokens[1:]),
        "response_lengths": np.asarray(
            [len(t) for t in row.tokens[1:]], np.int32
        ),
    }
  return stored


def write(
    kind: str, examples: dict[str, Sequence[Example]], data_dir: str
) -> None:
  """Writes `data_dir/kind/`; splits without examples are left out."""
  examples = {split: rows for split, rows in examples.items() if len(rows)}
  tfds.disable_progress_bar()
  builder = _BUILDERS[kind](examples=examples, data_dir=data_dir)
  with (
      tempfile.TemporaryDirectory() as downloads,
      contextlib.redirect_stdout(io.StringIO()),  # It announces itself there.
  ):
    builder.download_and_prepare(download_dir=downloads)


def folder(kind: str, data_dir: str) -> str:
  """Where `write` puts the files of a kind."""
  return f"{str(data_dir).rstrip('/')}/{kind}/{_VERSION}"


class Split(Sequence):
  """Rows of one split by index, as dicts of text, lists and int32 arrays."""

  def __init__(self, kind: str, data_dir: str, split: str):
    builder = tfds.builder_from_directory(folder(kind, data_dir))
    self._kind = kind
    self._rows = ()
    if split in builder.info.splits:
      source = builder.as_data_source(split)
      self._rows = source
      if builder.info.splits[split].num_bytes <= _IN_MEMORY_BYTES:
        self._rows = [_decoded(kind, source[i]) for i in range(len(source))]
    self._is_decoded = not self._rows or isinstance(self._rows, list)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    row = self._rows[index]
    return row if self._is_decoded else _decoded(self._kind, row)

  def __repr__(self) -> str:  # Grain prints its source; not all its rows.
    return f"Split({self._kind!r}, {len(self)} rows)"


def _decoded(kind: str, stored: Example) -> Example:
  """What `example` made, with the responses' tokens as a list of arrays."""
  row = {}
  for name, value in stored.items():
    if isinstance(value, bytes):
      value = value.decode()
    elif isinstance(value, list):
      value = [v.decode() for v in value]
    row[name] = value
  if kind == "comparisons":
    lengths = row.pop("response_lengths")
    ends = np.cumsum(lengths)[:-1]
    row["response_tokens"] = np.split(row["response_tokens"], ends)
    row["metadata"] = json.loads(row["metadata"])
  return row
