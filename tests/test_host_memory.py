"""Freed memory stays with the process."""

import pathlib
import platform
import subprocess
import sys

from rlhf_jax import host_memory

PROGRAM = """
import pathlib
from rlhf_jax import host_memory

def resident_mb():
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmRSS:")[1].split()[0]) / 1024

if {keep}:
  assert host_memory.keep_freed_memory()
block = bytearray(300 * 2**20)
block[:] = bytes(len(block))
del block
print(resident_mb())
"""


def resident_after_freeing_300_mb(keep: bool) -> float:
  result = subprocess.run(
      [sys.executable, "-c", PROGRAM.format(keep=keep)], check=True,
      capture_output=True, text=True, cwd=pathlib.Path(__file__).parent.parent)
  return float(result.stdout)


def test_freed_blocks_are_kept():
  if platform.libc_ver()[0] != "glibc":  # nothing to set, and it says so
    assert not host_memory.keep_freed_memory()
    return
  assert resident_after_freeing_300_mb(keep=False) < 200
  assert resident_after_freeing_300_mb(keep=True) > 250
