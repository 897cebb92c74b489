"""The examples of docstrings: each piece alone, in a few lines."""

import doctest
import importlib
import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_jax"


def with_examples():
  """The modules whose sources have any."""
  for path in sorted(PACKAGE.rglob("*.py")):
    if ">>> " in path.read_text():
      parts = path.relative_to(ROOT).with_suffix("").parts
      yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(autouse=True, scope="module")
def _compiled_in_a_hurry():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_say_what_comes_out(name):
  found = doctest.testmod(importlib.import_module(name))
  assert found.attempted and not found.failed


@pytest.mark.parametrize("piece", [
    "models.transformer", "models.policy", "models.scalar", "rollout",
    "advantages", "losses", "ppo_step", "labelers", "data.smallworld"])
def test_a_piece_that_works_alone_shows_it(piece):
  assert f"rlhf_jax.{piece}" in set(with_examples())
