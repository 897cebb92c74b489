"""The folders beside the plain tests are what their script writes now."""

import json

import numpy as np
import pytest

from tests.hf import test_golden
from tests.interop import cases, make_golden


def test_cases_are_those_of_the_script():
  assert set(test_golden.CASES) == {
      name for name, case in cases.CASES.items() if case.is_golden}


@pytest.mark.parametrize("name", test_golden.CASES)
def test_the_script_writes_what_is_there(name, tmp_path):
  kept, now = test_golden.FOLDER / name, tmp_path / name
  make_golden.make_case(name, now)
  assert ({path.name for path in kept.iterdir()}
          == {path.name for path in now.iterdir()})
  assert (json.loads((kept / "config.json").read_text())
          == json.loads((now / "config.json").read_text()))
  assert ((kept / "model.safetensors").read_bytes()
          == (now / "model.safetensors").read_bytes())
  check_expected(test_golden.expected(name), now / test_golden.EXPECTED)


def check_expected(kept, now):
  """Tokens are the same, other numbers as near as processors are alike."""
  with np.load(now) as found:
    assert set(kept) == set(found)
    for key, value in kept.items():
      assert value.dtype == found[key].dtype
      np.testing.assert_allclose(found[key], value, atol=1e-5, err_msg=key)
