"""Made checkpoints in Hugging Face's form, without their library."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.hf import families, fields
from rlhf_jax.models.transformer import TransformerConfig
from tests import tiny

GPT2 = dict(model_type="gpt2", vocab_size=50, n_positions=32, n_embd=24,
            n_layer=3, n_head=4)
OPT = dict(model_type="opt", vocab_size=50, max_position_embeddings=32,
           hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
           ffn_dim=40)


def sizes(config: dict, **changes) -> TransformerConfig:
  """The model that a config.json describes."""
  found = families.settings_of(fields.Fields(config, "config.json"))
  return tiny.config(**(found | changes))


def tensors(config: dict, last: str = "policy", seed: int = 0) -> dict:
  """Random ones, by name, far from any start."""
  c = sizes(config)
  family = families.FAMILIES[config["model_type"]]
  rng = np.random.default_rng(seed)
  return {
      name: rng.normal(scale=0.3, size=shape).astype(np.float32)
      for place in families.places(
          family, family.PREFIXES[0], c, vocab_size=c.vocab_size,
          num_positions=c.context_length, last=last)
      for name, shape in place.shapes(c).items()}


def write(path: pathlib.Path, config: dict, arrays: dict,
          num_files: int = 1) -> str:
  """A folder in one file or several; returns how config.init names it."""
  path.mkdir(parents=True, exist_ok=True)
  (path / "config.json").write_text(json.dumps(config))
  if num_files == 1:
    safetensors_numpy.save_file(arrays, path / "model.safetensors")
    return f"hf:{path}"
  names = sorted(arrays)
  files = {}
  for number in range(num_files):
    file = f"model-{number + 1:05}-of-{num_files:05}.safetensors"
    own = names[number::num_files]
    safetensors_numpy.save_file({name: arrays[name] for name in own},
                                path / file)
    files |= dict.fromkeys(own, file)
  (path / "model.safetensors.index.json").write_text(
      json.dumps({"metadata": {}, "weight_map": files}))
  return f"hf:{path}"


def make(path: pathlib.Path, config: dict, last: str = "policy",
         **options) -> str:
  """The same with random tensors."""
  return write(path, config, tensors(config, last), **options)


def add_tokenizer(path: pathlib.Path, texts, vocab_size: int) -> None:
  """tokenizer.json, learnt from `texts`, without a word on special tokens."""
  made = tokenizer_lib.train(texts, vocab_size)
  (path / "tokenizer.json").write_text(made.bpe.to_str())
