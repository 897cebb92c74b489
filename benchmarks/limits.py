"""What this machine can do at most: FMA rate, bandwidth, matrix products.

  python -m benchmarks.limits --size=tiny

prints NumPy's products as the systems print theirs; the rest needs a C
compiler (`cc`, GCC's or Clang's with OpenMP).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks import work

NAME = "numpy"
_TRIES = 5  # of a second or two
_SOURCE = pathlib.Path(__file__).with_name("limits.c")


def program(folder: str) -> list[str]:
  """Compiles limits.c into `folder`; its command, empty without a compiler
  that can."""
  compiler = shutil.which("cc")
  if compiler is None:
    return []
  path = os.path.join(folder, "limits")
  done = subprocess.run(
      [compiler, "-O3", "-march=native", "-mprefer-vector-width=512",
       "-ffp-contract=fast", "-fopenmp", str(_SOURCE), "-o", path],
      check=False, stderr=subprocess.PIPE)
  return [] if done.returncode else [path]


def measure(launcher: list[str]) -> dict[str, Any]:
  """`fma_flops`, `stream_bytes` and `threads`, or an empty dict: the best of
  some tries, since others may be busy during one."""
  with tempfile.TemporaryDirectory() as folder:
    command = program(folder)
    if not command:
      return {}
    found = [
        json.loads(subprocess.run(
            [*launcher, *command], check=True, stdout=subprocess.PIPE,
            text=True).stdout)
        for _ in range(_TRIES)]
  return {name: max(each[name] for each in found) for name in found[0]}


def make_gemm(m: int, k: int, n: int):
  a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
  out = np.empty((m, n), np.float32)
  return lambda: np.matmul(a, b, out=out)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--size", required=True, choices=work.SIZES)
  size = work.SIZES[parser.parse_args().size]
  rates = timing.gemm_rates(sys.modules[__name__], size)
  print(timing.MARK + json.dumps({"gemm": rates}))


if __name__ == "__main__":
  main()
