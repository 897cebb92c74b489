"""Random weights of the four models, one folder each in Hugging Face's form.

All systems read the same ones: that their outputs agree is shown before
anything is timed.
"""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from benchmarks import work
from benchmarks.work import Size

_STDDEV = 0.02
_END_PULL = 40.0  # how far hidden states go along the end token's direction


def make(size: Size, folder: pathlib.Path) -> None:
  """Writes `folder`/policy, reference, value and reward."""
  for seed, name in enumerate(work.model_names()):
    has_head = name in ("value", "reward")
    _write(folder / name, size, tensors(size, seed, has_head), has_head)


def make_ending(size: Size, folder: pathlib.Path) -> None:
  """Writes `folder`/ending: a policy that samples its last id at every token
  with the same probability, so that lengths are geometric."""
  arrays = tensors(size, 4, has_head=False)
  rng = np.random.default_rng(5)
  along = rng.normal(size=size.width)
  along = (along / np.linalg.norm(along)).astype(np.float32)
  table = arrays["transformer.wte.weight"]
  table -= (table @ along)[:, None] * along  # others do not feel the pull
  # p = e^x / (e^x + V - 1): others' logits are about 0
  chance = 1 / work.REFILL_MEAN
  wanted = np.log(chance / (1 - chance) * (size.vocab - 1))
  table[-1] = wanted / _END_PULL * along
  arrays["transformer.ln_f.bias"] = _END_PULL * along
  _write(folder / "ending", size, arrays, False)


def tensors(size: Size, seed: int, has_head: bool) -> dict[str, np.ndarray]:
  """GPT-2's tensors by name, biases and scales away from their start too: a
  system that forgot one of them would not agree with the others."""
  rng = np.random.default_rng(seed)
  d = size.width

  def normal(*shape):
    return (_STDDEV * rng.standard_normal(shape, np.float32))

  found = {"wte.weight": normal(size.vocab, d),
           "wpe.weight": normal(size.context, d)}
  for layer in range(size.layers):
    for name in ("ln_1", "ln_2"):
      found[f"h.{layer}.{name}.weight"] = 1 + normal(d)
      found[f"h.{layer}.{name}.bias"] = normal(d)
    for name, rows, columns in (
        ("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d),
        ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)):
      found[f"h.{layer}.{name}.weight"] = normal(rows, columns)
      found[f"h.{layer}.{name}.bias"] = normal(columns)
  found |= {"ln_f.weight": 1 + normal(d), "ln_f.bias": normal(d)}
  found = {f"transformer.{name}": x for name, x in found.items()}
  if has_head:
    found["score.weight"] = normal(1, d) / np.float32(_STDDEV * d**0.5)
  return found


def _write(path: pathlib.Path, size: Size, arrays, has_head: bool) -> None:
  path.mkdir(parents=True, exist_ok=True)
  config = dict(
      model_type="gpt2", vocab_size=size.vocab, n_positions=size.context,
      n_embd=size.width, n_layer=size.layers, n_head=size.heads,
      activation_function="gelu_new", layer_norm_epsilon=1e-5,
      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
      tie_word_embeddings=True, dtype="float32",
      bos_token_id=None, eos_token_id=None, pad_token_id=None,
      architectures=["GPT2ForSequenceClassification" if has_head
                     else "GPT2LMHeadModel"])
  if has_head:
    config["num_labels"] = 1
  (path / "config.json").write_text(json.dumps(config))
  safetensors_numpy.save_file(
      arrays, path / "model.safetensors", metadata={"format": "pt"})
