"""Keeps freed host memory for the next step, where the C library is glibc.

On CPU every step frees its buffers and allocates them again. By default glibc
hands large ones back to the system, which clears each page anew. Results do
not depend on it. Which devices there are is not known yet when it must be
called; beside an accelerator the process merely keeps its peak of host memory.
"""

import ctypes
import platform

# malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Call before JAX starts its threads, which else have heaps of their own;
  False where the C library is not glibc."""
  if platform.libc_ver()[0] != "glibc":
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all((
      mallopt(_MMAP_MAX, 0),  # large blocks from the heap, which is kept
      mallopt(_TRIM_THRESHOLD, 2**31 - 1),
      mallopt(_ARENA_MAX, 1),  # other heaps are too small for them
  ))
