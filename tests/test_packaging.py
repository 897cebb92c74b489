"""What is built and published has all that it needs, and says one version."""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml

import rlhf_jax

ROOT = pathlib.Path(__file__).parent.parent
# What a checkout may hold beside its files.
_NOT_COPIED = shutil.ignore_patterns(
    ".*", "*.egg-info", "__pycache__", "build", "dist", "runs")


@pytest.fixture(name="built", scope="module")
def _built(tmp_path_factory):
  """(names in the sdist, names in the built package): setuptools' own, without
  a network."""
  folder = tmp_path_factory.mktemp("built") / "tree"
  shutil.copytree(ROOT, folder, ignore=_NOT_COPIED)
  subprocess.run(
      [sys.executable, "setup.py", "-q", "sdist", "--formats=tar",
       "build", "--build-lib=lib"], cwd=folder, check=True, timeout=120,
      capture_output=True)
  [archive] = (folder / "dist").iterdir()
  with tarfile.open(archive) as opened:
    source = {name.partition("/")[2] for name in opened.getnames()}
  return source, files_in(folder / "lib")


def files_in(folder, *parts):
  return {str(path.relative_to(folder))
          for path in folder.joinpath(*parts).rglob("*")
          if path.is_file() and path.suffix != ".pyc" and not any(
              part.startswith(".") for part in path.relative_to(folder).parts)}


def test_a_wheel_has_the_package_and_nothing_else(built):
  assert built[1] == files_in(ROOT, "rlhf_jax")
  assert {"rlhf_jax/report/page.html", "rlhf_jax/py.typed"} <= built[1]


def test_an_sdist_has_all_that_a_checkout_has(built):
  folders = [path.name for path in ROOT.iterdir()
             if path.is_dir() and not path.name.startswith((".", "_"))
             and path.name not in ("build", "dist", "runs", "venv")
             and path.suffix != ".egg-info"]
  assert {"experiments", "launch", "docs", "tests"} <= set(folders)
  missing = set().union(*(files_in(ROOT, name) for name in folders)) - built[0]
  assert not missing
  assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff",
          "pyproject.toml", "pytest.ini"} <= built[0]


def test_one_version():
  version = rlhf_jax.__version__
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  changes = (ROOT / "CHANGELOG.md").read_text()
  assert citation["version"] == version
  assert version in re.findall(r"^## \[(\d[\d.]*)\]", changes, re.MULTILINE)


def test_the_guide_names_what_is_there():
  guide = (ROOT / "CONTRIBUTING.md").read_text()
  named = set(re.findall(
      r"`((?:rlhf_jax|tests|experiments|launch|docs|benchmarks|\.ci)[\w/.]*)`",
      guide)) | {f"tests/{name}" for name in re.findall(
          r"`(?!tests/)((?:\w+/)?test_\w+\.py|\w+/)`", guide)
          if not (ROOT / name).exists()}
  assert len(named) > 20
  assert not [name for name in named if not (ROOT / name).exists()]
