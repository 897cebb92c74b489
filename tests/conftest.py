"""Eight virtual CPU devices for every test, before JAX starts its backend, and
one folder for all workers, before they start."""

import json
import os

# Threads of JAX's CPU client, read when it starts. By default there is one a
# device, and collectives that wait for each other can block them all.
os.environ.setdefault("NPROC", "64")

import jax
import pytest

from tests import shared

shared.folder()
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items):
  for item in items:
    if item.get_closest_marker("long"):
      item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish():
  shared.collect_seldom()


def pytest_addoption(parser):
  parser.addoption("--account", default="",
                   help="FILE for figures of what was tried, a JSON line each")


@pytest.fixture(name="account")
def _account(request):
  """`account(name, **figures)` adds a line to the file of --account."""
  path = request.config.getoption("--account")

  def add(name, **figures):
    if path:
      with open(path, "a") as f:
        f.write(json.dumps({"test": name, **figures}) + "\n")

  return add
