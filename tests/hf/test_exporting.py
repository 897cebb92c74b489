"""Our parameters as others' tensors, and their tokenizers."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from rlhf_jax import run, sharding
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.hf import exporting, importing, model_files, vocabulary
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar, at_last_token
from tests import tiny
from tests.hf import folders

GPT2, OPT = folders.GPT2, folders.OPT
CONFIGS = {
    "gpt2": GPT2,
    "untied": GPT2 | dict(tie_word_embeddings=False, n_inner=40),
    "opt": OPT,
    "projected": OPT | dict(word_embed_proj_dim=16),
    "post_norm": OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=16),
    "no_final_norm": OPT | dict(_remove_final_layer_norm=True),
}
TEXTS = ["the cat sat on the mat", "a red fox and 12 owls"] * 4


def load(spec, c, model):
  """Imported parameters, on one device."""
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1,
                            devices=jax.devices()[:1])
  with sharding.use(mesh, tiny.AXIS_RULES):
    abstract = sharding.abstract_of(
        lambda: run.init_params(model(c), jax.random.key(0)), mesh,
        tiny.AXIS_RULES)
    if model is Policy:
      return importing.policy_params(spec, c, abstract)
    return importing.scalar_params(spec, c, abstract, None)


def tensors(params, c, **changes):
  """On their way out, by default as a policy in float32."""
  return exporting.make_tensors(params, c, **dict(
      last="policy", vocab_size=c.vocab_size, dtype="float32") | changes)


def write(folder, config, c, made, most=10**9):
  """Weights and the config.json that they were read with; what config.init
  names."""
  folder.mkdir()
  files = exporting.write(made, folder, most)
  (folder / "config.json").write_text(
      json.dumps(config | {"vocab_size": made.vocab_size}))
  return f"hf:{folder}", files


@pytest.mark.parametrize("last,model", [
    ("policy", Policy), ("reward_model", Scalar)])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_comes_in_goes_out_to_the_last_bit(name, last, model, tmp_path):
  config = CONFIGS[name]
  spec = folders.make(tmp_path / "in", config, last)
  c = folders.sizes(config)
  made = tensors(load(spec, c, model), c, last=last)
  _, (file,) = write(tmp_path / "out", config, c, made)
  theirs = safetensors_numpy.load_file(tmp_path / "in" / file)
  ours = safetensors_numpy.load_file(tmp_path / "out" / file)
  assert ours.keys() == theirs.keys()
  for tensor, x in theirs.items():
    assert ours[tensor].tobytes() == x.tobytes(), tensor
    assert ours[tensor].shape == x.shape


def test_config_json_says_what_was_read(tmp_path):
  for name, config in CONFIGS.items():
    c = folders.sizes(config)
    made = tensors(tiny.params(Policy(c)), c)
    words = vocabulary.of_policy(tokenizer_lib.train(TEXTS, 300))
    fields = model_files.config(made, words)
    assert folders.sizes(fields) == c, name
    model_files.write(made, words, tmp_path, temperature=0.0, max_new_tokens=5)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert (found["do_sample"], found["max_new_tokens"]) == (False, 5)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_stay_though_the_bias_is_elsewhere(name, tmp_path):
  config = CONFIGS[name]
  c = folders.sizes(config)
  params = dict(tiny.params(Scalar(c)))
  params["head"] = params["head"] | {"bias": np.float32(2.5)}
  ids = np.arange(24, dtype=np.int32).reshape(2, 12) % c.vocab_size
  mask = np.arange(12) < np.array([[12], [7]])

  @tiny.jit
  def scores(own):
    return at_last_token(Scalar(c).apply({"params": own}, ids, mask), mask)

  spec, _ = write(tmp_path / "out", config, c,
                  tensors(params, c, last="reward_model"))
  again = load(spec, c, Scalar)
  assert float(again["head"]["bias"]) == 0
  np.testing.assert_allclose(scores(again), scores(params), atol=2e-5)


def test_a_bias_that_has_no_place():
  c = folders.sizes(GPT2)
  params = dict(tiny.params(Scalar(c)))
  params["head"] = {"kernel": np.zeros(24, np.float32), "bias": np.float32(1)}
  with pytest.raises(FolderError, match="head/bias = 1, but head/kernel is "):
    tensors(params, c, last="reward_model")


def test_a_row_for_padding_is_zero_whatever_ours_holds(tmp_path):
  c = folders.sizes(GPT2)
  made = tensors(tiny.params(Scalar(c)), c, last="reward_model",
                 vocab_size=c.vocab_size + 1)
  table = dict(made)["transformer.wte.weight"]
  assert table.shape == (51, 24)
  assert not table[-1].any() and table[-2].any()
  assert len(made.arrays["transformer/token_embedding/embedding"]) > 51


def test_files_are_as_large_as_asked(tmp_path):
  c = folders.sizes(GPT2)
  params = tiny.params(Policy(c))
  made = tensors(params, c)
  spec, files = write(tmp_path / "out", GPT2, c, made, most=8_000)
  assert len(files) > 2
  assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
  found = {file: safetensors_numpy.load_file(tmp_path / "out" / file)
           for file in files}
  sizes = {file: sum(x.nbytes for x in own.values())
           for file, own in found.items()}
  for file, own in found.items():
    assert sizes[file] <= 8_000 or len(own) == 1, file
  index = json.loads(
      (tmp_path / "out" / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(sizes.values())
  assert index["weight_map"] == {
      name: file for file, own in found.items() for name in own}
  assert (tmp_path / "out" / files[0]).stat().st_mode & 0o777 == (
      tmp_path / "out" / "config.json").stat().st_mode & 0o777
  again = load(spec, c, Policy)
  for path, x in jax.tree_util.tree_leaves_with_path(again["transformer"]):
    ours = params["transformer"]
    for key in path:
      ours = ours[key.key]
    if x.shape[0] == c.padded_vocab_size:
      x, ours = x[:c.vocab_size], ours[:c.vocab_size]
    np.testing.assert_array_equal(x, ours)


def test_shards_hold_what_fits():
  sizes = {"a": 3, "b": 3, "c": 9, "d": 1, "e": 5}
  assert exporting.shards(sizes, 6) == [["a", "b"], ["c"], ["d", "e"]]
  assert exporting.shards(sizes, 100) == [list("abcde")]
  assert exporting.shards(sizes, 1) == [[name] for name in sizes]


@pytest.mark.parametrize("dtype,exact,inexact,nearest", [
    ("bfloat16", 1.0078125, 1.0118, 1.015625),
    ("float16", 1.0009765625, 1.0012, 1.0009765625)])
def test_numbers_are_rounded_to_the_nearest(dtype, exact, inexact, nearest):
  x = np.array([exact, inexact, -inexact], np.float32)
  found = exporting.rounded("x", x, dtype)
  assert found.dtype == exporting.DTYPES[dtype]
  assert found.astype(np.float64).tolist() == [exact, nearest, -nearest]


def test_what_float16_cannot_hold_is_named():
  c = folders.sizes(GPT2)
  params = jax.tree.map(np.array, tiny.params(Policy(c)))
  params["transformer"]["blocks"]["mlp"]["up_bias"][1, 3] = -7e4
  with pytest.raises(FolderError) as refused:
    exporting.check(tensors(params, c, dtype="float16"))
  assert str(refused.value) == (
      "transformer.h.1.mlp.c_fc.bias holds -70000, and no float16 is larger "
      "than 65504; use --dtype=float32 or --dtype=bfloat16")
  exporting.check(tensors(params, c, dtype="bfloat16"))
  params["transformer"]["blocks"]["mlp"]["up_bias"][1, 3] = np.nan
  with pytest.raises(FolderError, match="holds 1 numbers that are not finite"):
    exporting.check(tensors(params, c))


def test_a_model_without_counterpart():
  c = dataclasses.replace(folders.sizes(GPT2), attention_pattern="alternating")
  with pytest.raises(FolderError, match="config.model.attention_pattern = "):
    tensors(tiny.params(Policy(c)), c)


def test_bfloat16_files_hold_bfloat16(tmp_path):
  c = folders.sizes(GPT2)
  params = tiny.params(Policy(c))
  write(tmp_path / "out", GPT2, c, tensors(params, c, dtype="bfloat16"))
  table = safetensors_numpy.load_file(
      tmp_path / "out" / "model.safetensors")["transformer.wpe.weight"]
  ours = np.asarray(params["transformer"]["position_embedding"]["embedding"])
  np.testing.assert_array_equal(table, ours.astype(ml_dtypes.bfloat16))


# ------------------------------------------------------------------- tokenizers


def opts():
  """A tokenizer as OPT's: a start, padding, the start is the end as well."""
  bpe = tokenizer_lib.tokenizers.Tokenizer.from_str(
      tokenizer_lib.train(TEXTS, 300).bpe.to_str())
  bpe.add_special_tokens(["</s>", "<pad>"])
  return tokenizer_lib.Tokenizer(bpe, end="</s>", start="</s>")


def saved(words, folder, template=""):
  vocabulary.write(words, folder, context_length=32, template=template)
  return json.loads((folder / "tokenizer_config.json").read_text())


def test_a_policy_gets_no_new_token(tmp_path):
  ours = tokenizer_lib.train(TEXTS, 300)
  found = saved(vocabulary.of_policy(ours), tmp_path)
  assert found["pad_token"] == found["eos_token"] == tokenizer_lib.END
  assert (found["padding_side"], found["model_max_length"]) == ("left", 32)
  again = tokenizer_lib.load(str(tmp_path))
  assert again.vocab_size == ours.vocab_size
  assert (again.end, again.start) == (ours.end, "")


def test_a_reward_model_never_takes_the_end_for_padding(tmp_path):
  ours = tokenizer_lib.train(TEXTS, 300)
  words = vocabulary.of_reward_model(ours)
  found = saved(words, tmp_path)
  assert (found["pad_token"], found["padding_side"]) == ("<|pad|>", "right")
  assert words.ids == {"bos_token_id": ours.eos_id, "eos_token_id": ours.eos_id,
                       "pad_token_id": ours.vocab_size}
  assert ours.bpe.token_to_id("<|pad|>") is None  # the run's is as it was


@pytest.mark.parametrize("make", [
    vocabulary.of_policy, vocabulary.of_reward_model])
def test_a_start_and_padding_of_its_own(make, tmp_path):
  ours = opts()
  words = make(ours)
  found = saved(words, tmp_path)
  assert words.pad == found["pad_token"] == "<pad>"
  assert found["bos_token"] == found["eos_token"] == "</s>"
  text = "a cat, \u00e9\n"
  others = tokenizer_lib.tokenizers.Tokenizer.from_file(
      str(tmp_path / "tokenizer.json"))  # which follow the file alone
  assert others.encode(text).ids == [*ours.start_ids, *ours.encode(text)]
  for spec in (tmp_path, f"{tmp_path}/vocab.json,{tmp_path}/merges.txt"):
    again = tokenizer_lib.load(str(spec))
    assert (again.end, again.start) == ("</s>", "</s>")
    assert again.encode(text) == ours.encode(text)


def test_what_a_file_would_add_and_the_run_does_not(tmp_path):
  ours = tokenizer_lib.train(TEXTS, 300)
  ours.bpe.post_processor = vocabulary.processors.TemplateProcessing(
      single=f"$A {ours.end}", special_tokens=[(ours.end, ours.eos_id)])
  saved(vocabulary.of_policy(ours), tmp_path)
  others = tokenizer_lib.tokenizers.Tokenizer.from_file(
      str(tmp_path / "tokenizer.json"))
  assert others.encode("a cat").ids == ours.encode("a cat")


def test_other_ways_of_cutting_words_need_their_own_file(tmp_path):
  ours = tokenizer_lib.train(TEXTS, 300)
  ours.bpe.pre_tokenizer = tokenizer_lib.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False)
  saved(vocabulary.of_policy(ours), tmp_path)
  assert (tmp_path / "tokenizer.json").exists()
  assert not (tmp_path / "merges.txt").exists()
