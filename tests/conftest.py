"""Eight virtual CPU devices for every test, before JAX starts its backend."""

import json
import os

# Threads of JAX's CPU client, read when it starts. By default there is one a
# device, and collectives that wait for each other can block them all.
os.environ.setdefault("NPROC", "64")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser):
  parser.addoption(
      "--account", default="",
      help="A file to which tests append what they did, a JSON line each.")


@pytest.fixture
def account(request):
  """`account(name, **figures)` appends {"test": name, ...} to --account."""
  path = request.config.getoption("--account")

  def append(name, **figures):
    if path:
      with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps({"test": name} | figures) + "\n")

  return append
