"""The program begins again with its memory in large pages."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, pathlib, re, sys
from rlhf_jax import host_memory

print("begun", os.getpid(), flush=True)
host_memory.restart_with_large_pages()
block = bytearray(300 * 2**20)
block[:] = bytes(len(block))
huge = re.search(r"AnonHugePages: *(\\d+)",
                 pathlib.Path("/proc/self/smaps_rollup").read_text())
print(sys.argv[1:], sys.flags.utf8_mode, os.environ.get("GLIBC_TUNABLES"),
      int(huge[1]) // 1024, sep=";")
"""
_IS_GLIBC = platform.libc_ver()[0] == "glibc"
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def begin(**variables) -> tuple[list[str], list[str]]:
  """(ids of the process as it began, each time; what it printed then)."""
  environment = {name: value for name, value in os.environ.items()
                 if name != "GLIBC_TUNABLES"} | variables
  result = subprocess.run(
      [sys.executable, "-X", "utf8", "-c", PROGRAM, "--a=b c", ""], check=True,
      capture_output=True, text=True, env=environment,
      cwd=pathlib.Path(__file__).parent.parent)
  *begun, last = result.stdout.splitlines()
  return [line.split()[1] for line in begun], last.split(";")


def test_it_begins_once_more_as_the_same_process():
  begun, (arguments, utf8_mode, tunables, _) = begin()
  assert (arguments, utf8_mode) == ("['--a=b c', '']", "1")
  if _IS_GLIBC:
    assert len(begun) == 2 and begun[0] == begun[1]
    assert tunables == "glibc.malloc.hugetlb=1"
  else:
    assert len(begun) == 1 and tunables == "None"


@pytest.mark.parametrize("said", (
    "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=2:glibc.malloc.check=0"))
def test_what_the_user_said_of_large_pages_stays(said):
  begun, (_, _, tunables, _) = begin(GLIBC_TUNABLES=said)
  assert len(begun) == 1 and tunables == said


@pytest.mark.skipif(not _IS_GLIBC, reason="another C library")
def test_other_settings_stay():
  _, (_, _, tunables, _) = begin(GLIBC_TUNABLES="glibc.malloc.check=0")
  assert tunables == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


@pytest.mark.skipif(
    not _MODE.exists() or "[madvise]" not in _MODE.read_text(),
    reason="this kernel gives none, or to all")
def test_large_blocks_lie_in_large_pages():
  _, (*_, megabytes) = begin()
  _, (*_, without) = begin(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
  assert int(megabytes) > 250 and int(without) < 50
