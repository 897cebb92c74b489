"""Writes the folders of tests/hf/golden: small models, and what transformers
computes with them.

  python -m tests.interop.make_golden [--out=DIR]
"""

import argparse
import json
import pathlib
import shutil

import numpy as np

from tests.hf import test_golden
from tests.interop import cases


def make(out: pathlib.Path) -> None:
  """One folder a case: config.json, model.safetensors, expected.npz."""
  for name, case in cases.CASES.items():
    if case.is_golden:
      make_case(name, out / name)


def make_case(name: str, folder: pathlib.Path) -> None:
  shutil.rmtree(folder, ignore_errors=True)
  expected = cases.make(name, cases.GOLDEN, folder)
  np.savez_compressed(folder / test_golden.EXPECTED, **expected)
  # how transformers samples by default, which nobody here reads
  (folder / "generation_config.json").unlink(missing_ok=True)
  config = folder / "config.json"
  fields = json.loads(config.read_text())
  del fields["transformers_version"]  # another one writes the same file
  config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, default=test_golden.FOLDER)
  make(parser.parse_args().out)


if __name__ == "__main__":
  main()
