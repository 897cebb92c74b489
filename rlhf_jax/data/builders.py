"""Prepared rows on disk: one TFDS dataset a kind, in array_record files.

TensorFlow is not needed, neither to write nor to read. Rows keep the order in
which they are given: shuffling belongs to `batches`, where it has a seed.
TFDS reads the files, and writes what describes them; the rows are written here
one by one, since TFDS would gather all of a split first.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

from array_record.python import array_record_module
from etils import epath
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tensorflow_datasets.proto import tf_feature_pb2

from rlhf_jax import storage
from rlhf_jax.data import records
from rlhf_jax.data import sources
from rlhf_jax.data import tfds_files
from rlhf_jax.data.rows import Row

Example = dict[str, Any]
_VERSION = "1.0.0"
# Splits up to this size on disk are decoded once, when opened.
_IN_MEMORY_BYTES = 256 * 2**20


def _tokens_feature(length: int | None = None):
  return tfds.features.Tensor(shape=(length,), dtype=np.int32)


def _features(kind: str, first: Row | np.ndarray) -> dict[str, Any]:
  """What a stored row of a kind has, given the first.

  The tokens of all responses of a comparison stand in one array, with their
  lengths. Pretraining rows are windows of packed text, all of one length.
  """
  if isinstance(first, np.ndarray):
    return {"tokens": _tokens_feature(len(first))}
  names = records.text_fields(kind) + records.optional_fields(kind)
  features = {name: tfds.features.Text() for name in names}
  features["prompt_tokens"] = _tokens_feature()
  if kind != "prompts":
    features["response_tokens"] = _tokens_feature()
  if kind == "demonstrations":  # so that a mixture can weight it
    features["file"] = tfds.features.Text()
  if kind == "comparisons":
    features |= {
        "responses": tfds.features.Sequence(tfds.features.Text()),
        "metadata": tfds.features.Text(),
        "ranks": _tokens_feature(),
        "response_lengths": _tokens_feature(),
    }
  return features


def example(kind: str, row: Row | np.ndarray, root: str = "") -> Example:
  """A cleaned row, or a window of pretraining tokens, as it is stored; its
  file is named from `root` on."""
  if isinstance(row, np.ndarray):
    return {"tokens": row}
  names = records.text_fields(kind) + records.optional_fields(kind)
  stored = {name: row.record.get(name, "") for name in names}
  stored["prompt_tokens"] = row.tokens[0]
  if kind == "demonstrations":
    stored["response_tokens"] = row.tokens[1]
    stored["file"] = sources.file_of(row.origin, root)
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
    kind: str,
    rows: Mapping[str, Sequence[Row] | np.ndarray],
    data_dir: str,
    root: str = "",
) -> None:
  """Writes `folder(kind, data_dir)`; splits without rows are left out.

  What is there goes: a run ended while writing it. Array_record files are
  written and read on this machine, and stored in a bucket if the folder is one.

  Args:
    kind: one of `records.KINDS`.
    rows: the cleaned rows of each split; of pretraining windows [N, window].
    data_dir: the folder for all kinds.
    root: folder that the files of the origins are named from.
  """
  rows = {split: of for split, of in rows.items() if len(of)}
  directory = storage.local_path(folder(kind, data_dir))
  storage.remove(directory)
  directory.mkdir(parents=True, exist_ok=True)
  infos = []
  for split, of in rows.items():
    path = directory / f"{kind}-{split}.array_record-00000-of-00001"
    num_bytes = _write_file(path, (example(kind, row, root) for row in of))
    infos.append(tfds.core.SplitInfo(
        name=split, shard_lengths=[len(of)], num_bytes=num_bytes))
  first = next(iter(rows.values()))[0]
  tfds.folder_dataset.write_metadata(
      data_dir=directory,
      features=tfds.features.FeaturesDict(_features(kind, first)),
      split_infos=infos,
      disable_shuffling=True,
      check_data=False,  # It would need TensorFlow.
  )
  storage.upload_folder(folder(kind, data_dir))


def _write_file(path: epath.Path, examples: Iterable[Example]) -> int:
  """Writes one file of examples; the number of their bytes."""
  num_bytes = 0
  # Groups of one, as TFDS writes them: each row can be read by itself.
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for stored in examples:
    data = serialized(stored)
    writer.write(data)
    num_bytes += len(data)
  writer.close()
  return num_bytes


def serialized(stored: Example) -> bytes:
  """An example as TFDS stores it: a `tf.train.Example`."""
  feature = {name: _feature(value) for name, value in stored.items()}
  return tf_example_pb2.Example(
      features=tf_feature_pb2.Features(feature=feature)
  ).SerializeToString()


def _feature(value: str | list[str] | np.ndarray) -> tf_feature_pb2.Feature:
  if isinstance(value, np.ndarray):
    numbers = tf_feature_pb2.Int64List(value=value.tolist())
    return tf_feature_pb2.Feature(int64_list=numbers)
  texts = [value] if isinstance(value, str) else value
  data = tf_feature_pb2.BytesList(value=[text.encode() for text in texts])
  return tf_feature_pb2.Feature(bytes_list=data)


def folder(kind: str, data_dir: str) -> str:
  """Where `write` puts the files of a kind."""
  return f"{str(data_dir).rstrip('/')}/{kind}/{_VERSION}"


class Split(Sequence):
  """Rows of one split by index, as dicts of text, lists and int32 arrays."""

  def __init__(self, kind: str, data_dir: str, split: str):
    directory = storage.local_folder(folder(kind, data_dir))
    tfds_files.check(directory)
    builder = tfds.builder_from_directory(directory)
    self._kind = kind
    self._rows: Sequence[Any] = ()
    if split in builder.info.splits:
      source = builder.as_data_source(split)
      self._rows = source
      if builder.info.splits[split].num_bytes <= _IN_MEMORY_BYTES:
        self._rows = [_decoded(kind, source[i]) for i in range(len(source))]
    self._is_decoded = not self._rows or isinstance(self._rows, list)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(  # type: ignore[override]  # no slices
      self, index: int) -> Example:
    row = self._rows[index]
    return row if self._is_decoded else _decoded(self._kind, row)

  def __repr__(self) -> str:  # Grain prints its source; not all its rows.
    return f"Split({self._kind!r}, {len(self)} rows)"


def _decoded(kind: str, stored: Example) -> Example:
  """What `example` made, with the responses' tokens as a list of arrays."""
  row: Example = {}
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
