"""A virtual environment for each system that is measured.

  python -m benchmarks.make_environments FOLDER [SYSTEM ...]

makes FOLDER/SYSTEM of benchmarks/requirements/SYSTEM.txt, all four by
default; one that is there already is brought to those versions. This code's
own holds this checkout. Where PyTorch should come without CUDA, let
`--torch` name where a build for CPUs is found, as pip's --extra-index-url.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import venv

_REQUIREMENTS = pathlib.Path(__file__).with_name("requirements")
_ROOT = pathlib.Path(__file__).parent.parent
OURS = "rlhf_jax"


def systems() -> list[str]:
  return sorted(path.stem for path in _REQUIREMENTS.glob("*.txt"))


def command(python: str, system: str, torch: str = "") -> list[str]:
  """What installs a system's packages.

  Args:
    python: of its environment.
    system: one of `systems()`.
    torch: an index with builds of PyTorch; '' for pip's own.
  """
  install = [python, "-m", "pip", "install", "--quiet", "--requirement",
             str(_REQUIREMENTS / f"{system}.txt")]
  if system == OURS:
    install += ["--editable", str(_ROOT)]
  return install + (["--extra-index-url", torch] if torch else [])


def make(folder: str, system: str, torch: str = "") -> None:
  path = os.path.join(folder, system)
  venv.create(path, with_pip=True, symlinks=True)
  subprocess.run(
      command(os.path.join(path, "bin", "python"), system, torch), check=True)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder")
  parser.add_argument("systems", nargs="*")
  parser.add_argument("--torch", default="")
  args = parser.parse_args()
  for system in args.systems or systems():
    if system not in systems():
      sys.exit(f"{system!r} is no system: there are {', '.join(systems())}")
    print(f"{os.path.join(args.folder, system)} ...", flush=True)
    make(args.folder, system, args.torch)


if __name__ == "__main__":
  main()
