"""gcsfs that keeps on asking a bucket which fails for a while.

gcsfs gives up after about half a minute. A bucket, or the network to it, may
well be gone for longer, and a run that waits loses less than one that ends.
tensorstore, which moves the arrays of checkpoints, has a patience of its own:
32 attempts with pauses of 1 s doubling to 32 s, about a quarter of an hour;
the checkpoint library offers no setting for it.
"""

import asyncio
import random
import sys
import time

import gcsfs
from gcsfs import retry

from rlhf_jax import faults

SECONDS = 300.0  # how long one request is tried
_LONGEST_PAUSE = 32.0
_PAUSE_TO_TELL = 4.0  # shorter outages are not worth a line
# A run that ends for it asks for more on its way out: each request once.
_has_given_up = False


class PatientFileSystem(gcsfs.GCSFileSystem):
  """The file system of gs://, its requests tried for `SECONDS`."""

  async def _request(self, *args, **kwargs):
    return await _patiently(super()._request.__wrapped__, self, args, kwargs)

  async def _get_file_request(self, *args, **kwargs):
    return await _patiently(
        super()._get_file_request.__wrapped__, self, args, kwargs)


async def _patiently(ask, files, args, kwargs):
  """The answer to `ask`, which is not the library's impatient version of it.

  Raises:
    What `ask` does, if it is no matter of time or `SECONDS` are over.
  """
  global _has_given_up
  until = time.monotonic() + (0.0 if _has_given_up else SECONDS)
  pause, is_told = 1.0, False
  while True:
    try:
      answer = await ask(files, *args, **kwargs)
      _has_given_up = False
      return answer
    except Exception as error:
      left = until - time.monotonic()
      if not retry.is_retriable(error):
        raise
      if left <= 0:
        _has_given_up = True
        raise
      if pause > _PAUSE_TO_TELL and not is_told:
        is_told = True
        print(f"\nthe bucket does not answer ({faults.first_line(error)}): "
              f"trying again for {left:.0f} s", file=sys.stderr, flush=True)
      # Not all clients at the same moment.
      await asyncio.sleep(min(pause * random.uniform(0.8, 1.2), max(0.1, left)))
      pause = min(2 * pause, _LONGEST_PAUSE)
