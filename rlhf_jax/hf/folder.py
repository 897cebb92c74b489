"""A checkpoint's folder: config.json and safetensors, one file or many.

Nothing here runs what a file says: JSON and safetensors hold data only.
"""

from collections.abc import Mapping
import contextlib
import json
import pathlib
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
import numpy as np
import safetensors

from rlhf_jax.hf.fields import FolderError, Fields

SPEC = "hf:"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What is fetched from the hub.
_PATTERNS = ("*.json", "*.safetensors", "merges.txt")
_FLOATS = {"F32", "F16", "BF16"}
_CONVERT = (
    "python -c \"from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\"")


def locate(spec: str) -> pathlib.Path:
  """"hf:FOLDER", or "hf:NAME[@REVISION]" of the hub, -> a folder here.

  Raises:
    FolderError: there is no such folder, and the hub has or gives none.
  """
  name = spec.removeprefix(SPEC)
  if "://" in name:
    raise FolderError(
        f"{spec}: weights are read from local files; fetch the folder, e.g. "
        "with 'gcloud storage cp -r', and name the copy")
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    return path
  if path.exists():
    raise FolderError(f"{spec}: {path} is a file; name the folder around it")
  if name.count("/") > 1 or name.startswith(("/", ".", "~")):
    raise FolderError(f"{spec}: there is no folder {path}")
  return _from_hub(spec, name)


def _from_hub(spec: str, name: str) -> pathlib.Path:
  """The local copy of a model on the hub, fetched where it is not there."""
  name, _, revision = name.partition("@")
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(
        name, revision=revision or None, allow_patterns=list(_PATTERNS)))
  except (hub_errors.HFValidationError, OSError) as error:
    raise FolderError(
        f"{spec}: there is no folder {name!r} here, and the hub gives none "
        f"({str(error).strip().splitlines()[0]}); fetch it where there is a "
        f"network, with 'hf download {name} --local-dir FOLDER', and write "
        f"{SPEC}FOLDER") from error


class Folder:
  """Config and tensors of a checkpoint. Use as a context manager.

  Attributes:
    path: the folder.
    fields: of config.json.
  """

  def __init__(self, spec: str):
    """Opens what `spec` names; tensors stay on disk until they are read.

    Raises:
      FolderError: files are missing, broken, or in a form that is not read.
    """
    self.spec = spec
    self.path = locate(spec)
    self.fields = Fields(
        _json(self.path / CONFIG), str(self.path / CONFIG))
    self._opened = contextlib.ExitStack()
    self._files: dict[str, Any] = {}
    self._file_of: dict[str, str] | None = None

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._opened.close()

  @property
  def names(self) -> Mapping[str, str]:
    """Tensor -> its file, all files opened and looked at.

    Raises:
      FolderError: a file is missing, broken, or in a form that is not read.
    """
    if self._file_of is None:
      self._file_of = self._find()
    return self._file_of

  def _find(self) -> dict[str, str]:
    index = self.path / INDEX
    if not index.exists():
      self._open(WEIGHTS)
      return dict.fromkeys(self._files[WEIGHTS].keys(), WEIGHTS)
    found = _json(index).get("weight_map")
    if not isinstance(found, dict) or not all(
        isinstance(file, str) and "/" not in file for file in found.values()):
      raise FolderError(f"{index}: weight_map must name a file here for each "
                        "tensor")
    files = sorted(set(found.values()))
    missing = [file for file in files if not (self.path / file).exists()]
    if missing:
      more = ", ..." * (len(missing) > 4)
      raise FolderError(
          f"{index} lists {', '.join(missing[:4])}{more}, of {len(files)} "
          f"files, which {self.path} lacks; fetch them again")
    for file in files:
      self._open(file)
    for name, file in found.items():
      if name not in self._files[file].keys():
        raise FolderError(
            f"{self.path / file} lacks {name}, which {INDEX} says is there; "
            "fetch both again")
    return found

  def _open(self, file: str) -> None:
    path = self.path / file
    if not path.exists():
      raise FolderError(self._without_weights())
    try:
      self._files[file] = self._opened.enter_context(
          safetensors.safe_open(path, framework="np"))
    except (safetensors.SafetensorError, OSError) as error:
      raise FolderError(
          f"{path}, {path.stat().st_size:,} bytes, is no whole safetensors "
          f"file ({error}): half a download, or a pointer in its place; fetch "
          "it again") from error

  def _without_weights(self) -> str:
    pickled = sorted([*self.path.glob("*.bin"), *self.path.glob("*.pt"),
                      *self.path.glob("*.pth")])
    if pickled:
      return (
          f"{pickled[0]} is pickled, which can run code when it is read, and "
          f"there is no {WEIGHTS}; convert it where transformers and torch "
          f"are: {_CONVERT.format(self.path)}")
    return f"{self.path} has no {WEIGHTS} and no {INDEX}; fetch them"

  def place(self, name: str) -> str:
    """File and tensor, for messages."""
    return f"{self.path / self.names[name]}: {name}"

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._slices(name).get_shape())

  def dtype(self, name: str) -> str:
    """As safetensors calls it, "F32"."""
    return self._slices(name).get_dtype()

  def _slices(self, name: str):
    return self._files[self.names[name]].get_slice(name)

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A part of a tensor, float32.

    Raises:
      FolderError: it has numbers that are not finite.
    """
    part = self._slices(name)[index].astype(np.float32, copy=False)
    if not np.isfinite(part).all():
      raise FolderError(
          f"{self.place(name)} has {np.count_nonzero(~np.isfinite(part)):,} "
          "numbers that are not finite; the file is damaged, or its training "
          "diverged")
    return part

  def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses what is not there as wanted, before anything is read.

    Raises:
      FolderError: names file, tensor, and what is wrong.
    """
    for name, wanted in shapes.items():
      if name not in self.names:
        raise FolderError(
            f"{self.path}: no file has the tensor {name}, which "
            f"{self.fields.place} asks for; fetch the folder again")
      if self.dtype(name) not in _FLOATS:
        raise FolderError(
            f"{self.place(name)} is of type {self.dtype(name)}; weights are "
            f"read from {', '.join(sorted(_FLOATS))}: take the checkpoint as "
            "it was before it was quantized")
      if self.shape(name) != tuple(wanted):
        raise FolderError(
            f"{self.place(name)} has shape {self.shape(name)}, but "
            f"{self.fields.place} makes it {tuple(wanted)}")


def _json(path: pathlib.Path) -> dict[str, Any]:
  """An object of a file.

  Raises:
    FolderError: there is none.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise FolderError(f"there is no {path}; fetch it") from None
  except (OSError, ValueError, RecursionError) as error:
    raise FolderError(f"{path} is no JSON ({error}); fetch it again") from error
  if not isinstance(found, dict):
    raise FolderError(f"{path} must hold an object, not a "
                      f"{type(found).__name__}")
  return found
