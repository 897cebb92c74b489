"""Checkpoints of others: into any shards, and refused with one message."""

import json

import huggingface_hub
from huggingface_hub import errors as hub_errors
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from rlhf_jax import run, sharding
from rlhf_jax.hf import folder as folder_lib, importing
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from tests import tiny
from tests.hf import folders

GPT2, OPT = folders.GPT2, folders.OPT
CONFIGS = {
    "gpt2": GPT2,
    "untied": GPT2 | dict(tie_word_embeddings=False, n_inner=40),
    "opt": OPT,
    "projected": OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=16),
}


def load(spec, config, mesh=(1, 1, 1), model=Policy, rules="small", **changes):
  """The parameters, in the shards of a mesh."""
  c = folders.sizes(config, **changes)
  rules = tiny.RULES[rules]
  mesh = sharding.make_mesh(**dict(zip(sharding.MESH_AXES, mesh)),
                            devices=jax.devices()[:np.prod(mesh)])
  with sharding.use(mesh, rules):
    init = lambda: run.init_params(model(c), jax.random.key(0))
    abstract = sharding.abstract_of(init, mesh, rules)
    if model is Policy:
      return importing.policy_params(spec, c, abstract)
    return importing.scalar_params(
        spec, c, abstract, lambda: jax.jit(init)()["head"])


def same(one, other):
  return jax.tree.all(jax.tree.map(
      np.array_equal, jax.device_get(one),
      jax.device_get(other)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shard_is_read_by_itself(name, tmp_path):
  config = CONFIGS[name]
  spec = folders.make(tmp_path, config)
  whole = load(spec, config)
  assert same(whole, load(spec, config, (2, 2, 2), rules="large"))
  split = load(spec, config, (1, 2, 4))
  assert same(whole, split)
  kernel = split["transformer"]["blocks"]["attention"]["qkv_kernel"]
  assert kernel.addressable_shards[0].data.shape == (3, 12, 1, 3, 6)


def test_no_part_is_larger_than_a_shard(tmp_path, monkeypatch):
  spec = folders.make(tmp_path, GPT2)
  parts = []
  read = folder_lib.Folder.read

  def watched(folder, name, index):
    parts.append((name, read(folder, name, index)))
    return parts[-1][1]

  monkeypatch.setattr(folder_lib.Folder, "read", watched)
  load(spec, GPT2, (1, 2, 4))
  sizes = lambda end: {x.size for name, x in parts if name.endswith(end)}
  assert sizes("c_fc.weight") == {24 * 96 // 8}
  assert sizes("wpe.weight") == {32 * 24 // 2}  # cut over fsdp only
  parts.clear()
  load(spec, GPT2, (8, 1, 1))  # all devices have all, which is read once
  assert len(parts) == len({name for name, _ in parts}) + 2 * 3 * 2


@pytest.mark.parametrize("num_files", (1, 3))
def test_files_and_old_names(num_files, tmp_path):
  arrays = folders.tensors(GPT2)
  spec = folders.write(tmp_path / "a", GPT2, arrays)
  old = {name.removeprefix("transformer."): x for name, x in arrays.items()}
  old |= {f"h.{n}.attn.bias": np.ones((1, 1, 32, 32), np.float32)
          for n in range(3)}
  old["lm_head.weight"] = arrays["transformer.wte.weight"]
  other = folders.write(tmp_path / "b", GPT2, old, num_files)
  assert same(load(spec, GPT2), load(other, GPT2))


@pytest.mark.parametrize("dtype", (np.float16, ml_dtypes.bfloat16))
def test_half_precision_is_read_exactly(dtype, tmp_path):
  arrays = {name: x.astype(dtype) for name, x in folders.tensors(OPT).items()}
  spec = folders.write(tmp_path / "half", OPT, arrays)
  whole = {name: x.astype(np.float32) for name, x in arrays.items()}
  assert same(load(spec, OPT), load(folders.write(tmp_path, OPT, whole), OPT))


@pytest.mark.parametrize("config", (GPT2, OPT))
def test_longer_and_shorter_contexts(config, tmp_path):
  spec = folders.make(tmp_path, config)
  table = lambda **changes: np.asarray(load(spec, config, **changes)[
      "transformer"]["position_embedding"]["embedding"])
  known, first = table(), 2 if config is OPT else 0
  assert len(known) == 32 + first
  longer = table(context_length=75)
  assert np.array_equal(longer[:len(known)], known)
  own = known[first:]
  assert np.array_equal(
      longer[first:], np.concatenate([own, own, own[:11]]))
  assert np.array_equal(table(context_length=20), known[:20 + first])


def test_a_vocabulary_in_a_larger_table(tmp_path):
  spec = folders.make(tmp_path, GPT2)
  table = lambda **changes: np.asarray(load(spec, GPT2, **changes)[
      "transformer"]["token_embedding"]["embedding"])
  assert table().shape == (56, 24) and table(vocab_multiple=64).shape == (
      64, 24)
  assert np.array_equal(table()[:50], table(vocab_multiple=64)[:50])
  assert not table()[50:].any()


def test_a_reward_model_has_its_head_and_a_policy_gets_one(tmp_path):
  arrays = folders.tensors(GPT2, last="reward_model")
  spec = folders.write(tmp_path / "rm", GPT2, arrays)
  head = load(spec, GPT2, model=Scalar)["head"]
  assert np.array_equal(head["kernel"], arrays["score.weight"][0])
  assert head["bias"] == 0
  untied = CONFIGS["untied"]
  body = load(folders.make(tmp_path / "lm", untied), untied, model=Scalar)
  assert set(body) == {"transformer", "head"} and body["head"]["kernel"].any()


def damaged(**arrays):
  """GPT2's tensors, some replaced or (None) left out."""
  found = folders.tensors(GPT2) | arrays
  return {name: x for name, x in found.items() if x is not None}


CFC = "transformer.h.1.mlp.c_fc.weight"
BAD_TENSORS = (
    ({CFC: None}, f"no file has the tensor {CFC}"),
    ({CFC: np.zeros((24, 95), np.float32)},
     rf"model.safetensors: {CFC} has shape \(24, 95\), but .*config.json makes "
     r"it \(24, 96\)"),
    ({CFC: np.zeros((24, 96), np.int8)}, f"{CFC} is of type I8.*quantized"),
    ({CFC: np.zeros((24, 96), np.float64)}, f"{CFC} is of type F64"),
    ({CFC: np.full((24, 96), np.nan, np.float32)},
     f"{CFC} has 2,304 numbers that are not finite"),
    ({"transformer.adapter.weight": np.zeros(3, np.float32)},
     "adapter.weight is nothing that the model has"),
    ({"lm_head.weight": np.zeros((50, 24), np.float32)},
     "lm_head.weight is not transformer.wte.weight.*tie_word_embeddings"),
    ({"score.weight": np.zeros((1, 24), np.float32)}, "is a reward model"),
)


@pytest.mark.parametrize("change, message", BAD_TENSORS)
def test_bad_tensors_are_named(change, message, tmp_path):
  spec = folders.write(tmp_path, GPT2, damaged(**change))
  with pytest.raises(FolderError, match=message):
    load(spec, GPT2)


BAD_FIELDS = (
    (GPT2, "model_type", "llama", "model_type = 'llama'.*gpt2, opt"),
    (GPT2, "scale_attn_weights", False, "scale_attn_weights = False"),
    (GPT2, "add_cross_attention", True, "no cross-attention"),
    (GPT2, "activation_function", "mish", "activation_function = 'mish'"),
    (GPT2, "n_head", 5, "width of 24 does not divide over 5 heads"),
    (GPT2, "n_layer", "12", "n_layer = '12'.*whole number"),
    (GPT2, "n_layer", True, "n_layer = True"),
    (GPT2, "layer_norm_epsilon", -1, "layer_norm_epsilon = -1"),
    (GPT2, "tie_word_embeddings", "no", "tie_word_embeddings = 'no'"),
    (GPT2, "quantization_config", {"bits": 8}, "quantization_config"),
    (GPT2, "auto_map", {"AutoModel": "x.Y"}, "auto_map.*code of its own"),
    (OPT, "enable_bias", False, "enable_bias = False"),
    (OPT, "layer_norm_elementwise_affine", False, "elementwise_affine"),
)


@pytest.mark.parametrize("config, name, value, message", BAD_FIELDS)
def test_fields_that_the_model_cannot_follow(
    config, name, value, message, tmp_path):
  spec = folders.make(tmp_path, config)
  (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
  with pytest.raises(FolderError, match=message) as raised:
    load(spec, config | {name: value})
  assert "config.json" in str(raised.value)


def test_files_that_are_missing_or_broken(tmp_path):
  spec = folders.make(tmp_path, GPT2, num_files=3)

  def refused(message):
    with pytest.raises(FolderError, match=message):
      load(spec, GPT2)

  second = tmp_path / "model-00002-of-00003.safetensors"
  content = second.read_bytes()
  second.write_bytes(content[:-100])
  refused(r"model-00002-of-00003.safetensors, [\d,]+ bytes, is no whole")
  second.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
  refused("half a download, or a pointer")
  arrays = safetensors_numpy.load(content)
  first = min(arrays)
  safetensors_numpy.save_file(
      {name: x for name, x in arrays.items() if name != first}, second)
  refused(f"model-00002-of-00003.safetensors lacks {first}")
  second.unlink()
  refused("lists model-00002-of-00003.safetensors, of 3 files")
  for path in tmp_path.glob("model*"):
    path.unlink()
  refused("has no model.safetensors and no model.safetensors.index.json")
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
  refused("pytorch_model.bin is pickled.*python -c .*save_pretrained")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(FolderError, match="config.json is no JSON"):
    load(spec, GPT2)


@pytest.mark.parametrize("spec, message", (
    ("hf:/nowhere/at/all", "there is no folder /nowhere/at/all"),
    ("hf:gs://bucket/model", "fetch the folder.*name the copy"),
    ("hf:setup.py", "is a file; name the folder"),
))
def test_places_that_are_none(spec, message):
  with pytest.raises(FolderError, match=message):
    folder_lib.locate(spec)


def test_names_are_asked_of_the_hub(tmp_path, monkeypatch):
  asked = {}

  def download(name, **options):
    asked[name] = options
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert folder_lib.locate("hf:someone/model@v2") == tmp_path
  assert asked["someone/model"]["revision"] == "v2"
  assert not any("bin" in p for p in asked["someone/model"]["allow_patterns"])

  def offline(name, **options):
    raise hub_errors.LocalEntryNotFoundError("no network\nat all")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(FolderError, match=r"\(no network\).*hf download gpt2"):
    folder_lib.locate("hf:gpt2")
