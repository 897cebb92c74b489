"""What it means when storage fails, and the way out.

The same full disk comes as an OSError from Python, as a ValueError from
tensorstore and as a RuntimeError from array_record; a bucket that does not
answer has even more names. `explain` knows them.
"""

from collections.abc import Iterator
import dataclasses
import errno
import logging
import os
import re
import sys

_SPACE = "free some space there"
_LOCAL = {
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the disk quota is used up",
                   f"{_SPACE} or have the quota raised"),
    errno.EFBIG: ("a file may not become that large",
                  "raise the limit ('ulimit -f unlimited'), or use a file "
                  "system without it"),
    errno.EROFS: ("the file system is read-only",
                  "have it mounted for writing (one with errors becomes "
                  "read-only by itself: see 'dmesg')"),
    errno.EACCES: ("no permission", "have it granted ('ls -ld' says to whom "
                                    "the folder belongs)"),
    errno.EIO: ("the disk reports an input/output error",
                "see 'dmesg', and move the folder if the disk is broken"),
    errno.ESTALE: ("the network file system lost the file",
                   "see that it is mounted"),
}
_LOCAL[errno.EPERM] = _LOCAL[errno.EACCES]
_BY_TEXT = {os.strerror(number): number for number in _LOCAL}
# tensorstore's, then array_record's
_TENSORSTORE = re.compile(r"\[os_error_code='(\d+)'")
_TENSORSTORE_PATH = re.compile(r'Failed \w+: "([^"]+)"|local file "([^"]+)"')
_ARRAY_RECORD = re.compile(r"\w+\(\) failed: ([^;]+); (?:writing|reading) "
                           r"([^;\n]+)")

_SILENT = ("the bucket does not answer",
           "wait until it does (https://status.cloud.google.com, the network)")
_DENIED = ("access to the bucket was taken away",
           "have it granted, or run 'gcloud auth application-default login'")
# Kinds of errors by module, for none of which it is imported here.
_SILENT_KINDS = (
    ("aiohttp", "ClientError"), ("requests", "ConnectionError"),
    ("requests", "Timeout"), ("requests.exceptions", "ChunkedEncodingError"),
    ("google.api_core.exceptions", "ServerError"),
    ("google.api_core.exceptions", "TooManyRequests"),
    ("google.api_core.exceptions", "RetryError"),
    ("google.auth.exceptions", "TransportError"),
    ("fsspec.exceptions", "FSTimeoutError"))
_DENIED_KINDS = (
    ("google.api_core.exceptions", "Forbidden"),
    ("google.api_core.exceptions", "Unauthorized"),
    ("google.auth.exceptions", "GoogleAuthError"))
_TENSORSTORE_BUCKET = re.compile(
    r"^(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|"
    r"UNAUTHENTICATED): .*(?:gs://|/storage/v1/)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Fault:
  """A failure of storage.

  Attributes:
    path: where, as far as the error says; else "".
    cause: what is wrong, in words.
    way_out: what somebody can do, in words.
  """

  path: str
  cause: str
  way_out: str


def explain(error: BaseException) -> Fault | None:
  """What an error says of storage; None where it says nothing.

  An error that came of another is searched to its origin, but what this
  package raised has its own message.
  """
  if type(error).__module__.startswith("rlhf_jax."):
    return None
  for one in _origins(error):
    if fault := _local(one) or _bucket(one):
      return fault
  return None


def first_line(error: BaseException) -> str:
  """What an error says, in one line; its kind where it says nothing."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def of_errno(number: int | None, path: object = None) -> Fault | None:
  """What an operating system's error number means, if it is one of storage."""
  if number not in _LOCAL:
    return None
  cause, way_out = _LOCAL[number]
  return Fault(str(path or ""), f"{cause} ({os.strerror(number)})", way_out)


def is_news(record: logging.LogRecord) -> bool:
  """A filter of logs. Each thread of the checkpoint library that meets a
  failed save logs its traceback; it is raised as well, and said once."""
  return not (record.exc_info and record.exc_info[1] is not None
              and explain(record.exc_info[1]))


def _origins(error: BaseException) -> Iterator[BaseException]:
  """The error and those it came of."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or (
        None if error.__suppress_context__ else error.__context__)


def _local(error: BaseException) -> Fault | None:
  if isinstance(error, OSError):
    return of_errno(error.errno, error.filename)
  text = str(error)
  if found := _TENSORSTORE.search(text):
    path = _TENSORSTORE_PATH.findall(text)
    return of_errno(int(found[1]), "".join(path[-1]) if path else "")
  if found := _ARRAY_RECORD.search(text):
    return of_errno(_BY_TEXT.get(found[1].strip()), found[2])
  return None


def _bucket(error: BaseException) -> Fault | None:
  text = str(error).strip()
  said = first_line(error)[:200]
  kind = None
  if _is_a(error, _SILENT_KINDS):
    kind = _SILENT
  elif _is_a(error, _DENIED_KINDS) or (
      isinstance(error, OSError) and text.startswith("Forbidden: ")):
    kind = _DENIED
  elif _is_a(error, [("gcsfs.retry", "HttpError")]):
    kind = _DENIED if getattr(error, "code", None) in (401, 403) else _SILENT
  elif found := _TENSORSTORE_BUCKET.match(text):
    is_denied = found[1] in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    kind = _DENIED if is_denied else _SILENT
  return kind and Fault("", f"{kind[0]} ({said})", kind[1])


def _is_a(error: BaseException, kinds) -> bool:
  """Whether an error is of one of the kinds whose modules are loaded."""
  return any(
      isinstance(error, getattr(sys.modules[module], name, ()))
      for module, name in kinds if module in sys.modules)
