"""What this code writes, transformers reads: the same numbers, and bits."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch
import transformers

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.hf import exporting, model_files, vocabulary
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from tests import tiny
from tests.hf import agreement, folders
from tests.interop import cases

_DTYPES = {torch.float32: "float32", torch.float16: "float16",
           torch.bfloat16: "bfloat16"}
# Sizes of ours that have a counterpart, each with one thing that is unusual.
SIZES = {
    "gpt2": dict(num_heads=4),
    "scaled": dict(scale_by_layer=True, mlp_size=40, norm_epsilon=1e-3),
    "untied": dict(tied_unembedding=False, activation="gelu"),
    "opt": dict(position_offset=2, activation="relu"),
    "opt_post": dict(position_offset=2, activation="relu", norm_order="post",
                     final_norm=False, embedding_size=8),
    "opt_no_norm": dict(position_offset=2, final_norm=False),
}


def tensors_of(folder):
  """Name -> array, of all files, without the masks that are no weights."""
  found = {}
  for path in folder.glob("*.safetensors"):
    found |= safetensors_numpy.load_file(path)
  return {name.removeprefix("transformer.").removeprefix("model."): x
          for name, x in found.items()
          if not name.endswith((".attn.bias", ".attn.masked_bias"))}


@pytest.mark.parametrize("name", cases.CASES)
def test_a_round_trip_changes_no_bit(name, tmp_path):
  case = cases.CASES[name]
  cases.make(name, cases.LIVE, tmp_path / "in")
  is_reward = case.form == "reward"
  loaded = (agreement.scalar if is_reward else agreement.policy)(
      tmp_path / "in")
  c = loaded.model.config
  made = exporting.make_tensors(
      loaded.params, c, last="reward_model" if is_reward else "policy",
      vocab_size=c.vocab_size, dtype=_DTYPES[case.dtype])
  (tmp_path / "out").mkdir()
  exporting.write(made, tmp_path / "out", case.shard_bytes or 10**9)
  theirs, ours = (tensors_of(tmp_path / way) for way in ("in", "out"))
  assert ours.keys() == theirs.keys()
  for tensor, x in theirs.items():
    assert ours[tensor].dtype == x.dtype
    assert ours[tensor].tobytes() == x.tobytes(), tensor


def write(folder, model, last):
  """A model of ours with all its files."""
  c = model.config
  params = dict(tiny.params(model))
  if last == "reward_model":
    params["head"] = params["head"] | {"bias": np.float32(1.5)}
  words = (vocabulary.of_policy if last == "policy"
           else vocabulary.of_reward_model)(tokenizer())
  made = exporting.make_tensors(
      params, c, last=last, dtype="float32",
      vocab_size=max(c.vocab_size, words.id_of(words.pad) + 1))
  folder.mkdir()
  exporting.write(made, folder, 10**9)
  model_files.write(made, words, folder, temperature=1.0, max_new_tokens=9)
  vocabulary.write(words, folder, context_length=c.context_length,
                   template="{{ messages[0]['content'] }}")
  return params, words


def tokenizer():
  return tokenizer_lib.train(["the cat sat on the mat"] * 9, 261)


def rows(c, num_tokens):
  rng = np.random.default_rng(3)
  size = dataclasses.replace(
      cases.LIVE, vocab_size=num_tokens, num_positions=c.context_length)
  return cases.rows(rng, size)


@pytest.mark.parametrize("name", SIZES)
def test_a_policy_of_ours_is_theirs(name, tmp_path, account):
  model = Policy(tiny.config(**dict(vocab_size=261) | SIZES[name]))
  params, _ = write(tmp_path / "out", model, "policy")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert not theirs.training
  family = theirs.config.model_type
  assert family == ("opt" if name.startswith("opt") else "gpt2")
  tokens, mask = rows(model.config, 261)
  with torch.no_grad():
    want = theirs(**cases.inputs(family, tokens, mask)).logits.numpy()
  got = agreement.logits(
      agreement.Loaded(model, params, tiny.make_mesh("one_device")), tokens,
      mask)
  difference = float(np.abs(want - got)[mask].max())
  account(f"export/{name}", logits=difference)
  assert difference < agreement.TOLERANCE
  assert theirs.num_parameters() == model.config.num_params


@pytest.mark.parametrize("name", SIZES)
def test_a_reward_model_of_ours_is_theirs(name, tmp_path, account):
  model = Scalar(tiny.config(**dict(vocab_size=261) | SIZES[name]))
  params, words = write(tmp_path / "out", model, "reward_model")
  theirs = (transformers.AutoModelForSequenceClassification
            .from_pretrained(tmp_path / "out"))
  assert theirs.config.num_labels == 1
  tokens, mask = rows(model.config, 261)
  pad_id = words.id_of(words.pad)
  with torch.no_grad():
    found = theirs(**cases.inputs(
        theirs.config.model_type, np.where(mask, tokens, pad_id), mask)).logits
  want = found[:, 0].numpy()
  got = agreement.scores(
      agreement.Loaded(model, params, tiny.make_mesh("one_device")), tokens,
      mask)
  difference = float(np.abs(want - got).max())
  account(f"export/{name}_reward", scores=difference)
  assert np.ptp(got) > 0.1
  assert difference < agreement.TOLERANCE


def test_the_vocabulary_is_read_as_it_is_here(tmp_path):
  model = Policy(tiny.config(vocab_size=261))
  write(tmp_path / "out", model, "policy")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  ours = tokenizer()
  for text in ("the cat", " the  mat\n", "caf\u00e9 \U0001f41d 12!"):
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
  assert theirs.eos_token_id == theirs.pad_token_id == ours.eos_id
  assert theirs.padding_side == "left"


def test_our_half_precision_is_theirs(tmp_path):
  spec = folders.make(tmp_path / "in", folders.OPT)
  del spec
  whole = agreement.policy(tmp_path / "in")
  c = whole.model.config
  for dtype in ("bfloat16", "float16"):
    made = exporting.make_tensors(
        whole.params, c, last="policy", vocab_size=c.vocab_size, dtype=dtype)
    out = tmp_path / dtype
    out.mkdir()
    exporting.write(made, out, 10**9)
    (out / "config.json").write_text(json.dumps(folders.OPT))
    theirs = transformers.OPTForCausalLM.from_pretrained(
        out, dtype=torch.float32)
    want = transformers.OPTForCausalLM.from_pretrained(
        tmp_path / "in", dtype=getattr(torch, dtype)).float()
    for one, other in zip(theirs.parameters(), want.parameters()):
      assert torch.equal(one, other)
  assert jax.tree.leaves(whole.params)[0].dtype == np.float32
