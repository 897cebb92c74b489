"""Our parameters as a checkpoint's tensors, written file by file.

The host holds one file's tensors beside the parameters, and no tensor twice.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
from types import ModuleType
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file
from tqdm import auto as tqdm

from rlhf_jax.hf import families
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.hf.folder import INDEX, WEIGHTS
from rlhf_jax.models.transformer import TransformerConfig

DTYPES = {"float32": np.dtype(np.float32),
          "bfloat16": np.dtype(ml_dtypes.bfloat16),
          "float16": np.dtype(np.float16)}
# Rows of ours past the true vocabulary are never predicted, and stay here.
_TABLES = ("transformer/token_embedding/embedding", "unembedding/embedding")
_BLOCKS = "transformer/blocks/"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclasses.dataclass(frozen=True)
class Tensors:
  """What goes out, one tensor at a time.

  Attributes:
    family: gpt2 or opt.
    c: the model's sizes.
    arrays: path in the parameters -> array.
    last: "policy" or "reward_model".
    vocab_size: rows of their tables; zeros where ours has fewer.
    dtype: a key of DTYPES.
  """

  family: ModuleType
  c: TransformerConfig
  arrays: Mapping[str, np.ndarray]
  last: str
  vocab_size: int
  dtype: str

  def places(self) -> Iterator[families.Place]:
    return families.places(
        self.family, self.family.PREFIXES[0], self.c,
        vocab_size=self.vocab_size, num_positions=self.c.context_length,
        last=self.last)

  def sizes(self) -> dict[str, int]:
    """Name -> bytes, in the order in which they are yielded."""
    return {name: math.prod(shape) * DTYPES[self.dtype].itemsize
            for place in self.places()
            for name, shape in place.shapes(self.c).items()}

  @property
  def num_params(self) -> int:
    return sum(self.sizes().values()) // DTYPES[self.dtype].itemsize

  def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, tensor).

    Raises:
      FolderError: one holds what is no number, or too large for the dtype.
    """
    for place in self.places():
      array = self.arrays[place.path]
      if place.block is not None:
        array = array[place.block]
      if place.path in _TABLES:
        array = array[:self.c.vocab_size]
      for own, tensor in place.layout.write(array, self.c).items():
        yield place.name + own, rounded(place.name + own, tensor, self.dtype)


def make_tensors(
    params: Any, c: TransformerConfig, *, last: str, vocab_size: int,
    dtype: str) -> Tensors:
  """Args as of `Tensors`; a reward model's bias goes where theirs has one.

  Raises:
    FolderError: no architecture of theirs can do what the model does.
  """
  family = families.family_for(c)
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  arrays = {jax.tree_util.keystr(path, simple=True, separator="/"):
            np.asarray(leaf) for path, leaf in leaves}
  if last == "reward_model":
    arrays = bias_folded(arrays, c)
  return Tensors(family, c, arrays, last, vocab_size, dtype)


def bias_folded(
    arrays: Mapping[str, np.ndarray], c: TransformerConfig
) -> dict[str, np.ndarray]:
  """The head's bias moved into the last bias before the head.

  Their heads have none. With v [D] the head's kernel as the last sum before it
  sees it, adding `v * bias / |v|^2` to that sum adds `bias` to every score.

  Raises:
    FolderError: the kernel is zero, so that no such vector is there.
  """
  bias, v = float(arrays["head/bias"]), arrays["head/kernel"].astype(np.float64)
  if not bias:
    return dict(arrays)
  if c.d_embedding != c.d_model:
    v = arrays["transformer/project_out/kernel"].astype(np.float64) @ v  # [D]
  if not v.any():
    raise FolderError(
        f"head/bias = {bias:.6g}, but head/kernel is zero: a score that is the "
        "same for every text cannot be written without a bias; export another "
        "stage or --step")
  path = last_bias(c)
  moved = np.array(arrays[path])
  here = moved[-1] if path.startswith(_BLOCKS) else moved
  here[:] = here + v * (bias / (v @ v))
  return {**arrays, path: moved}


def last_bias(c: TransformerConfig) -> str:
  """The bias after which only linear maps follow; of a stack its last."""
  if c.final_norm:
    return "transformer/final_norm/bias"
  return _BLOCKS + (
      "mlp_norm/bias" if c.norm_order == "post" else "mlp/down_bias")


def rounded(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
  """In the dtype, contiguous, to the nearest number that it has.

  Raises:
    FolderError: names the tensor that holds what is none.
  """
  if not np.isfinite(tensor).all():
    raise FolderError(
        f"{name} holds {np.count_nonzero(~np.isfinite(tensor)):,} numbers that "
        "are not finite: the training diverged; export an earlier --step")
  with np.errstate(over="ignore"):
    found = np.ascontiguousarray(tensor.astype(DTYPES[dtype], copy=False))
  if dtype != "float32" and not np.isfinite(found).all():
    largest = tensor.flat[np.abs(tensor).argmax()]
    limit = float(ml_dtypes.finfo(DTYPES[dtype]).max)
    wider = " or ".join(
        f"--dtype={name}" for name, other in DTYPES.items()
        if float(ml_dtypes.finfo(other).max) > abs(largest))
    raise FolderError(
        f"{name} holds {largest:.6g}, and no {dtype} is larger than "
        f"{limit:.6g}; use {wider}")
  return found


def check(tensors: Tensors) -> None:
  """Looks at all of them before anything is written.

  Raises:
    FolderError: as of iterating.
  """
  for _ in _shown(tensors, "check"):
    pass


def write(
    tensors: Tensors, folder: pathlib.Path, max_shard_bytes: int) -> list[str]:
  """Writes the weights, in one file or in several with an index.

  Returns:
    The names of the files with tensors.
  """
  groups = shards(tensors.sizes(), max_shard_bytes)
  files = file_names(len(groups))
  stream = _shown(tensors, "write")
  for file, group in zip(files, groups):
    _save(folder / file, stream, len(group))
  if len(groups) > 1:
    index = {
        "metadata": {"total_size": sum(tensors.sizes().values())},
        "weight_map": {name: file for file, group in zip(files, groups)
                       for name in group}}
    (folder / INDEX).write_text(
        json.dumps(index, indent=2) + "\n", encoding="utf-8")
  return files


def _save(
    path: pathlib.Path, stream: Iterator[tuple[str, np.ndarray]], number: int
) -> None:
  """The next tensors to a file; in a function, so that they are gone before
  those of the next.

  Raises:
    OSError: the disk fails, which the library says in words of its own.
  """
  path.touch()
  mode = path.stat().st_mode  # the library's is for the owner alone
  try:
    save_file(dict(itertools.islice(stream, number)), path,
              metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    if found := _OS_ERROR.search(str(error)):
      cause = int(found[1])
      raise OSError(cause, os.strerror(cause), str(path)) from error
    raise
  path.chmod(mode)


def shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
  """Names file by file, each of at most so many bytes, or of one tensor."""
  groups, free = [], 0
  for name, size in sizes.items():
    if not groups or size > free:
      groups.append([])
      free = most
    groups[-1].append(name)
    free -= size
  return groups


def file_names(number: int) -> list[str]:
  if number == 1:
    return [WEIGHTS]
  stem, dot, end = WEIGHTS.rpartition(".")
  return [f"{stem}-{at:05d}-of-{number:05d}{dot}{end}"
          for at in range(1, number + 1)]


def _shown(tensors: Tensors, what: str) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors, with a bar."""
  with tqdm.tqdm(
      desc=what, total=sum(tensors.sizes().values()), unit="B",
      unit_scale=True, mininterval=1.0, leave=False) as bar:
    for name, tensor in tensors:
      yield name, tensor
      bar.update(tensor.nbytes)
