"""Where our arrays lie in a checkpoint of Hugging Face's, in both directions.

Ours are one for all blocks, with queries, keys and values in one kernel,
[D, H, 3, K]; theirs have a tensor or three a block, [in, out] in GPT-2 and
[out, in] in OPT. A layout reads any part of one of ours (of one block, without
the leading axis), so that a device's shard costs no more than itself, and
writes a whole one. Parts are named by slices that have a start and a stop.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from rlhf_jax.models.transformer import TransformerConfig

# (tensor's name, index) -> that part of it, float32.
Read = Callable[[str, tuple[slice, ...]], np.ndarray]
Index = tuple[slice, ...]
Shapes = dict[str, tuple[int, ...]]
_CHUNK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Plain:
  """The same array, or its transpose."""

  name: str
  size: Callable[[TransformerConfig], tuple[int, ...]]  # ours
  is_transposed: bool = False

  def shapes(self, c: TransformerConfig) -> Shapes:
    """Name and shape of every tensor that is read."""
    size = self.size(c)
    return {self.name: size[::-1] if self.is_transposed else size}

  def read(self, read: Read, c: TransformerConfig, index: Index) -> np.ndarray:
    """The part `index` of our array."""
    del c
    if self.is_transposed:
      return read(self.name, index[::-1]).T
    return read(self.name, index)

  def write(self, x: np.ndarray, c: TransformerConfig) -> Mapping[
      str, np.ndarray]:
    """Our whole array -> their tensors."""
    del c
    return {self.name: x.T if self.is_transposed else x}


@dataclasses.dataclass(frozen=True)
class Heads:
  """qkv_kernel [D, H, 3, K] or qkv_bias [H, 3, K].

  `names` is one tensor of queries, keys and values side by side, or three.
  """

  names: tuple[str, ...]
  has_rows: bool  # a kernel
  is_transposed: bool = False

  def shapes(self, c: TransformerConfig) -> Shapes:
    size = (c.d_model, 3 // len(self.names) * c.d_model)[not self.has_rows:]
    return dict.fromkeys(self.names, size[::-1] if self.is_transposed else size)

  def read(self, read: Read, c: TransformerConfig, index: Index) -> np.ndarray:
    *rows, heads, _, _ = index
    first, last = heads.start, heads.stop

    def part(number: int) -> np.ndarray:
      """[D, H, K] or [H, K] of queries, keys or values."""
      start = number * c.d_model if len(self.names) == 1 else 0
      name = self.names[number % len(self.names)]
      columns = slice(start + first * c.head_dim, start + last * c.head_dim)
      x = Plain(name, None, self.is_transposed).read(read, c, (*rows, columns))
      return x.reshape(*x.shape[:-1], last - first, c.head_dim)

    return np.stack([part(number) for number in range(3)], axis=-2)

  def write(self, x: np.ndarray, c: TransformerConfig) -> Mapping[
      str, np.ndarray]:
    parts = np.moveaxis(x, -2, 0)  # [3, D, H, K]
    flat = [p.reshape(*p.shape[:-2], c.d_model) for p in parts]
    if len(self.names) == 1:
      flat = [np.concatenate(flat, axis=-1)]
    return {name: x.T if self.is_transposed else x
            for name, x in zip(self.names, flat)}


@dataclasses.dataclass(frozen=True)
class Merge:
  """out_kernel [H, K, D], which takes the heads together."""

  name: str
  is_transposed: bool = False

  def shapes(self, c: TransformerConfig) -> Shapes:
    return {self.name: (c.d_model, c.d_model)}

  def read(self, read: Read, c: TransformerConfig, index: Index) -> np.ndarray:
    heads, _, columns = index
    first, last = heads.start, heads.stop
    rows = slice(first * c.head_dim, last * c.head_dim)
    x = Plain(self.name, None, self.is_transposed).read(
        read, c, (rows, columns))
    return x.reshape(last - first, c.head_dim, -1)

  def write(self, x: np.ndarray, c: TransformerConfig) -> Mapping[
      str, np.ndarray]:
    flat = x.reshape(c.d_model, c.d_model)
    return {self.name: flat.T if self.is_transposed else flat}


@dataclasses.dataclass(frozen=True)
class Table:
  """An embedding whose numbers of rows need not agree.

  `rows` of theirs stand at the start of ours. What ours has beyond is zero,
  or with `repeat_from` its rows from there on again and again: those of
  positions, so that a place past the known ones starts as one of them did
  (Beltagy et al. 2020, section 5, extend positions so).
  """

  name: str
  rows: int
  columns: int
  repeat_from: int | None = None

  def shapes(self, c: TransformerConfig) -> Shapes:
    del c
    return {self.name: (self.rows, self.columns)}

  def read(self, read: Read, c: TransformerConfig, index: Index) -> np.ndarray:
    del c
    rows, columns = index
    first, last = rows.start, rows.stop
    out = np.zeros((last - first, columns.stop - columns.start), np.float32)
    for start, stop, source in self._pieces(first, last):
      out[start - first:stop - first] = read(
          self.name, (slice(source, source + stop - start), columns))
    return out

  def _pieces(self, first: int, last: int):
    """(start, stop, their row) of parts of our rows, of few bytes each."""
    most = max(_CHUNK_BYTES // (4 * self.columns), 1)
    start = first
    while start < last:
      source, end = start, self.rows
      if start >= self.rows:
        if self.repeat_from is None:
          return
        period = self.rows - self.repeat_from
        source = self.repeat_from + (start - self.rows) % period
      stop = min(last, start + most, start + end - source)
      yield start, stop, source
      start = stop

  def write(self, x: np.ndarray, c: TransformerConfig) -> Mapping[
      str, np.ndarray]:
    """`rows` of ours; zeros where it has fewer."""
    del c
    if len(x) < self.rows:
      x = np.pad(x, ((0, self.rows - len(x)), (0, 0)))
    return {self.name: x[:self.rows]}


@dataclasses.dataclass(frozen=True)
class Score:
  """The head's kernel [E], their matrix of one row."""

  name: str

  def shapes(self, c: TransformerConfig) -> Shapes:
    return {self.name: (1, c.d_embedding)}

  def read(self, read: Read, c: TransformerConfig, index: Index) -> np.ndarray:
    del c
    return read(self.name, (slice(0, 1), *index))[0]

  def write(self, x: np.ndarray, c: TransformerConfig) -> Mapping[
      str, np.ndarray]:
    del c
    return {self.name: x[None]}


Layouts = dict[str, Any]  # path in the parameters -> its layout


def vector(name: str, length: str) -> Plain:
  """A vector as long as the setting `length`."""
  return Plain(name, lambda c: (getattr(c, length),))


def matrix(name: str, rows: str, columns: str, is_transposed: bool) -> Plain:
  """A matrix [rows, columns]."""
  return Plain(
      name, lambda c: (getattr(c, rows), getattr(c, columns)), is_transposed)


def norm(path: str, name: str) -> Layouts:
  """LayerNorm's two vectors."""
  return {f"{path}/scale": vector(f"{name}.weight", "d_model"),
          f"{path}/bias": vector(f"{name}.bias", "d_model")}
