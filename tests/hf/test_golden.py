"""Folders in Hugging Face's form with what transformers computes with them.

  python -m tests.interop.make_golden

wrote them; here they are read without transformers, and our numbers compared.
"""

import pathlib

import numpy as np
import pytest

from tests.hf import agreement

FOLDER = pathlib.Path(__file__).parent / "golden"
EXPECTED = "expected.npz"
CASES = sorted(path.name for path in FOLDER.iterdir())
# Sizes and meshes that no real token's numbers depend on.
OTHERS = {
    "on_a_mesh_with_more_rows_and_positions": dict(
        mesh="fsdp_tensor", vocab_multiple=20, context_length=50),
    "fewer_positions": dict(context_length=13),  # the longest text's
}


def expected(name: str) -> dict[str, np.ndarray]:
  """What transformers computes."""
  with np.load(FOLDER / name / EXPECTED) as found:
    return dict(found)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_transformers(name):
  check(name)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ["gpt2_untied_gelu", "opt_post_projected"])
def test_no_size_or_mesh_changes_a_real_tokens_numbers(name, other):
  check(name, **OTHERS[other])


def check(name, **changes):
  found = agreement.differences(FOLDER / name, expected(name), **changes)
  assert max(found.values()) < agreement.TOLERANCE, found


def test_all_kinds_are_there():
  kinds = {name.partition("_")[0] for name in CASES}
  assert kinds == {"gpt2", "opt"}
  for kind in kinds:
    with_scores = ["scores" in expected(name) for name in CASES
                   if name.startswith(kind)]
    assert {True, False} == set(with_scores)


@pytest.mark.parametrize("name", CASES)
def test_expectations_can_fail(name):
  """No answer is the same for all rows, or a constant."""
  found = expected(name)
  assert not found["mask"].all()
  if "scores" in found:
    assert np.ptp(found["scores"]) > 0.2
    return
  assert found["logits"].std() > 0.5
  ends = found["greedy_mask"].sum(1)
  assert ends.min() < ends.max() == found["greedy"].shape[1]
  assert len(np.unique(found["greedy"], axis=0)) == len(ends)
