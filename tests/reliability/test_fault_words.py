"""What an error says of storage, whichever library raised it."""

import errno
import os

from etils import epath
from gcsfs import retry as gcsfs_retry
from google.api_core import exceptions
import pytest
import requests
import tensorstore as ts

from rlhf_jax import faults, pipeline
from rlhf_jax.data import records
from tests import bucket

FULL = (errno.ENOSPC, os.strerror(errno.ENOSPC))


def chained(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize("error, cause, path", [
    (OSError(*FULL, "/a/b"), "the disk is full", "/a/b"),
    (PermissionError(errno.EACCES, "", "/a"), "no permission", "/a"),
    (OSError(errno.EIO, ""), "input/output error", ""),
    (chained(RuntimeError("lost"), OSError(*FULL, "/a")), "disk is full", "/a"),
    (ValueError('OUT_OF_RANGE: Error writing "w" in OCDBT database at local '
                'file "/c/": Failed writing: "/c/d": Failed to write 9 bytes '
                "to file 4: No space left on device [os_error_code='28']"),
     "the disk is full", "/c/d"),
    (RuntimeError("write() failed: No space left on device; writing /c/x; at "
                  "byte 0"), "the disk is full", "/c/x"),
    (exceptions.ServiceUnavailable("x"), "the bucket does not answer", ""),
    (requests.ConnectionError("x"), "the bucket does not answer", ""),
    (gcsfs_retry.HttpError({"code": 429}), "the bucket does not answer", ""),
    (gcsfs_retry.HttpError({"code": 403}), "access to the bucket was", ""),
    (exceptions.Forbidden("x"), "access to the bucket was", ""),
    (OSError("Forbidden: gs://b/x\nno"), "access to the bucket was", ""),
    (ValueError("UNAVAILABLE: Error writing gs://b/x: CURL error"),
     "the bucket does not answer", ""),
])
def test_what_an_error_says(error, cause, path):
  fault = faults.explain(error)
  assert cause in fault.cause and fault.path == path and fault.way_out


@pytest.mark.parametrize("error", [
    ZeroDivisionError("x"), FileNotFoundError(errno.ENOENT, "", "/a"),
    ValueError("UNAVAILABLE: a device"), ConnectionResetError("x"),
    RuntimeError("the model says: No space left on device"),
    chained(records.DataError("said"), PermissionError(errno.EACCES, "")),
])
def test_other_errors_are_not_of_storage(error):
  assert faults.explain(error) is None
  with pytest.raises(type(error)):
    with pipeline.storage_faults(None, epath.Path("/run")):
      raise error


def test_the_stand_in_tells_what_it_was_asked_for():
  """Without the generation of what was read, a write that depends on it ends
  as "Malformed StorageGeneration"."""
  bucket.start()
  store = ts.KvStore.open(
      {"driver": "gcs", "bucket": bucket.NAME, "path": "words/"}).result()
  store.write("a", b"1").result()
  read = store.read("a").result().stamp.generation
  for text, is_written in ((b"2", True), (b"3", False)):
    store.write("a", text, if_equal=read).result()
    assert (store.read("a").result().value == text) == is_written
