"""Files of a run: in a local folder, or in a bucket as gs://BUCKET/PATH.

What differs between the two is here. An object of a bucket is written whole or
not at all, but nothing can be appended to it (`Growing`), and array_record
files cannot be read from it (`local_copy`). For both there is a folder on this
machine, which may be lost at any time: the bucket has all that counts.
"""

import base64
from collections.abc import Mapping
import errno
import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import time
from typing import Any
import uuid

from etils import epath
import fsspec
import numpy as np

from rlhf_jax import faults

# What other processes write must be seen: nothing listed is remembered.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
# Else each call asks for the kind of the bucket, which few may see.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
for _scheme in ("gs", "gcs"):  # loaded on first use
  fsspec.register_implementation(
      _scheme, "rlhf_jax.patience.PatientFileSystem", clobber=True)

_BUCKET = "gs://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"
_SECONDS_TO_ANSWER = 30.0


class StorageError(RuntimeError):
  """A folder cannot be used: of what kind it is, or for want of access."""


# ---------------------------------------------------------------------- checks


def is_bucket(path: epath.PathLike) -> bool:
  return os.fspath(path).startswith(_BUCKET)


def check(path: epath.PathLike, name: str, *, is_written: bool) -> None:
  """Makes sure that a folder can be used; of local ones that are only read,
  that is known later.

  Args:
    path: the folder.
    name: how messages call it, as "--workdir".
    is_written: whether a small file is written and deleted as a probe.

  Raises:
    StorageError: says what is missing, and the way out.
  """
  path = os.fspath(path)
  if not is_bucket(path):
    if _URL.match(path):
      raise StorageError(
          f"{name}={path}: only local folders and gs://BUCKET/PATH can be "
          "used.")
    if is_written:
      _probe_folder(os.path.abspath(path), f"{name}={path}")
    return
  bucket, _, prefix = path.removeprefix(_BUCKET).partition("/")
  if not bucket or not prefix.strip("/"):
    raise StorageError(f"{name}={path} names no folder in a bucket; write "
                       f"gs://BUCKET/PATH.")
  if importlib.util.find_spec("gcsfs") is None:
    raise StorageError(
        f"{name}={path} needs a package that is not installed; run "
        "'pip install gcsfs'.")
  _probe(bucket, prefix.strip("/"), f"{name}={path}", is_written)


def _probe_folder(path: str, given: str) -> None:
  """Writes where the folder is, or would be made, and leaves no trace."""
  while not os.path.lexists(path):
    path = os.path.dirname(path)
  if not os.path.isdir(path):
    raise StorageError(
        f"{given}: {path} is there and no folder; give another folder, "
        "or move it away.")
  probe = os.path.join(path, f".probe-{uuid.uuid4().hex}")
  try:
    file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
      os.write(file, b"0")
    finally:
      os.close(file)
      os.unlink(probe)
  except OSError as error:
    fault = faults.of_errno(error.errno)
    if fault is None:
      raise
    raise StorageError(
        f"{given}: cannot write in {path}: {fault.cause}; {fault.way_out}, or "
        "give another folder.") from error


def _probe(bucket: str, prefix: str, given: str, is_written: bool) -> None:
  """Does in a bucket what a run will do."""
  # Slow to import, and only needed for buckets.
  from google.api_core import exceptions
  from google.auth import exceptions as auth_exceptions
  from google.cloud import storage

  patience = dict(
      timeout=_SECONDS_TO_ANSWER,
      retry=storage.retry.DEFAULT_RETRY.with_timeout(_SECONDS_TO_ANSWER))
  doing = "look for the bucket"
  try:
    found = storage.Client().get_bucket(bucket, **patience)
    doing = f"list {prefix}"
    list(found.list_blobs(prefix=f"{prefix}/", max_results=1, **patience))
    if is_written:
      probe = found.blob(f"{prefix}/.probe-{uuid.uuid4().hex}")
      doing = f"write {probe.name}"
      probe.upload_from_string(b"", **patience)
      doing = f"delete {probe.name}"
      probe.delete(**patience)
  except auth_exceptions.GoogleAuthError as error:
    raise StorageError(
        f"{given}: no usable Google credentials "
        f"({faults.first_line(error)}); run 'gcloud auth application-default "
        "login', or set GOOGLE_APPLICATION_CREDENTIALS to a key file."
    ) from error
  except exceptions.NotFound as error:
    raise StorageError(
        f"{given}: there is no bucket {bucket!r}; correct its name, or run "
        f"'gcloud storage buckets create gs://{bucket}'.") from error
  except (exceptions.Forbidden, exceptions.Unauthorized) as error:
    raise StorageError(
        f"{given}: not permitted to {doing} in the bucket {bucket!r} "
        f"({faults.first_line(error)}); have {_ROLES} granted on it, or run "
        "'gcloud auth application-default login' as somebody who has them."
    ) from error
  except (exceptions.GoogleAPIError, OSError) as error:
    raise StorageError(
        f"{given}: cannot {doing} in the bucket {bucket!r} "
        f"({faults.first_line(error)}); check the network, and "
        "GOOGLE_CLOUD_PROJECT if a project is asked for.") from error


# --------------------------------------------------------------------- writing


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file whole or not at all."""
  path = epath.Path(path)
  if is_bucket(path):  # where there are no folders, and no half objects
    path.write_text(text)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  partial.replace(path)


def write_arrays(
    path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes an .npz file; to be read with allow_pickle=False."""
  content = io.BytesIO()
  np.savez_compressed(
      content, **arrays)  # type: ignore[arg-type]  # none is `allow_pickle`
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content.getvalue())


class Growing:
  """A file that grows, or a folder of such.

  In a bucket it is kept on this machine, starts as what the bucket has, and is
  uploaded whole.
  """

  def __init__(self, path: epath.PathLike):
    self._path = epath.Path(path)
    self._uploaded: dict[str, int] = {}  # file -> size
    self._last_upload = time.monotonic()

  @functools.cached_property
  def here(self) -> epath.Path:
    """Where it is written on this machine."""
    here = local_path(self._path)
    if is_bucket(self._path):
      remove(here)
      if self._path.exists():
        local_copy(self._path)
      self._uploaded = _sizes(here)
    here.parent.mkdir(parents=True, exist_ok=True)
    return here

  def append(self, text: str) -> None:
    with self.here.open("a") as f:
      f.write(text)

  def rewrite(self, text: str) -> None:
    """Puts a new text in the place of all."""
    write_text(self.here, text)
    self._uploaded.clear()

  def is_due(self, seconds: float) -> bool:
    """Whether the bucket lags behind by so much; a local file never does."""
    return is_bucket(self._path) and (
        time.monotonic() - self._last_upload >= seconds)

  def upload(self) -> None:
    """Brings the bucket up to date; nothing to do for a local file, or where
    nothing was written."""
    if not is_bucket(self._path) or "here" not in vars(self):
      return
    sizes = _sizes(self.here)
    for name, size in sizes.items():
      if self._uploaded.get(name) != size:
        _bucket_files().put_file(
            str(_below(self.here, name)), str(_below(self._path, name)))
    self._uploaded = sizes
    self._last_upload = time.monotonic()


def upload_folder(path: epath.PathLike) -> None:
  """Puts into the bucket what lies at `local_path(path)`, and nothing else;
  nothing to do for a local folder."""
  path = epath.Path(path)
  if not is_bucket(path):
    return
  remove(path)
  here = local_path(path)
  for name in _sizes(here):
    _bucket_files().put_file(str(_below(here, name)), str(_below(path, name)))


def remove(path: epath.PathLike) -> None:
  """Removes a file or a folder where there is one."""
  path = epath.Path(path)
  if path.is_dir():
    path.rmtree()
  elif path.exists():
    path.unlink()


# --------------------------------------------------------------------- reading


def read_lines(path: epath.PathLike) -> list[Any]:
  """The values of a file of JSON lines."""
  return [json.loads(line)
          for line in epath.Path(path).read_text().splitlines()]


def absolute(path: epath.PathLike) -> epath.Path:
  path = epath.Path(path)
  return path if is_bucket(path) else path.absolute()


def is_same_place(path: epath.PathLike, other: epath.PathLike) -> bool:
  """Whether two paths, relative or through links, lead to one place."""
  real = lambda p: (os.fspath(p).rstrip("/") if is_bucket(p)
                    else os.path.realpath(p))
  return real(path) == real(other)


def local_path(path: epath.PathLike) -> epath.Path:
  """The place of a bucket's file on this machine; a local one is itself."""
  path = epath.Path(path)
  if not is_bucket(path):
    return path
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return epath.Path(cache) / "rlhf_jax" / str(path).removeprefix(_BUCKET)


def local_copy(path: epath.PathLike) -> epath.Path:
  """A file or folder on this machine: of a bucket what differs is fetched.

  Returns:
    `local_path(path)`.

  Raises:
    FileNotFoundError: nothing is there.
  """
  path = epath.Path(path)
  if not is_bucket(path):
    return path
  root = str(path).removeprefix(_BUCKET)
  found = _bucket_files().find(str(path), detail=True)
  if not found:
    raise FileNotFoundError(
        errno.ENOENT, os.strerror(errno.ENOENT), str(path))
  here = local_path(path)
  for name, info in found.items():
    file = _below(here, name.removeprefix(root).strip("/"))
    if not _is_same(file, info):
      _fetch(name, file)
  return here


def local_folder(path: epath.PathLike) -> epath.Path:
  """`local_copy` of a folder that does not change any more: looked at once."""
  return _copied_once(epath.Path(path), local_path(path))


@functools.cache
def _copied_once(path: epath.Path, here: epath.Path) -> epath.Path:
  local_copy(path)
  return here


def _is_same(file: epath.Path, info: dict) -> bool:
  """Whether a local file has the content of an object."""
  if not file.exists() or file.stat().length != info["size"]:
    return False
  with open(file, "rb") as f:
    digest = hashlib.file_digest(f, "md5").digest()
  # Composed objects have none, and are fetched again.
  return info.get("md5Hash") == base64.b64encode(digest).decode()


def _fetch(name: str, file: epath.Path) -> None:
  """Downloads an object; other processes of this machine may do the same."""
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
  _bucket_files().get_file(name, str(partial))
  partial.replace(file)


def _sizes(path: epath.Path) -> dict[str, int]:
  """Names below a local folder -> sizes; {"": size} of a file."""
  if path.is_dir():
    return {str(file.relative_to(path)): file.stat().length
            for folder, _, names in path.walk()
            for file in (folder / name for name in names)}
  return {"": path.stat().length} if path.exists() else {}


def _below(path: epath.Path, name: str) -> epath.Path:
  return path / name if name else path


def _bucket_files() -> fsspec.AbstractFileSystem:
  return fsspec.filesystem("gcs")
