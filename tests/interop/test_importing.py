"""transformers' numbers of a folder are ours, whatever its config and form."""

import pytest
import safetensors

from tests.hf import agreement
from tests.interop import cases


@pytest.mark.parametrize("name", cases.CASES)
def test_a_folder_means_the_same_here(name, tmp_path, account):
  expected = cases.make(name, cases.LIVE, tmp_path)
  check_form(cases.CASES[name], tmp_path)
  found = agreement.differences(tmp_path, expected)
  account(f"import/{name}", **found)
  assert max(found.values()) < agreement.TOLERANCE, found


def check_form(case, folder):
  """The case is saved in the form that it is there for."""
  files = sorted(folder.glob("*.safetensors"))
  assert (len(files) > 1) == bool(case.shard_bytes)
  names, dtypes = [], set()
  for path in files:
    with safetensors.safe_open(path, framework="np") as opened:
      names += opened.keys()
      dtypes |= {opened.get_slice(name).get_dtype() for name in opened.keys()}
  short = {"torch.float32": "F32", "torch.float16": "F16",
           "torch.bfloat16": "BF16"}[str(case.dtype)]
  assert short in dtypes
  outer = {"gpt2": "transformer.", "opt": "model."}[case.family]
  assert (case.form != "body") == any(n.startswith(outer) for n in names)
  assert case.has_buffers == any(n.endswith(".attn.bias") for n in names)
  is_untied = case.settings.get("tie_word_embeddings") is False
  assert is_untied == ("lm_head.weight" in names)
