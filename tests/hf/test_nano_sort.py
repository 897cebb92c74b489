"""A trained GPT-2 that is no language model: minGPT's sorter of six letters.

  RLHF_JAX_DATA=DIR python -m pytest tests/hf/test_nano_sort.py

DIR holds weights/gpt_nano_sort: weights.npz with minGPT's names and the
original program's activations. Without it the same tests run on random weights
of that shape, and on what NumPy computes with them.

That weights.npz lacks the biases of queries, keys and values. Each block's
outputs, 1,584 numbers for three rows, determine the 96 of them that matter (a
bias of keys changes no attention), so they are solved for. Logits are no part
of what is fitted, and are off by 0.75 without these biases; the sorting of all
729 inputs is right with them and without, and says less.
"""

import functools
import itertools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import scipy.optimize

from rlhf_jax.models import transformer
from tests import tiny
from tests.hf import agreement

FOLDER = pathlib.Path(
    os.environ.get("RLHF_JAX_DATA", "")) / "weights" / "gpt_nano_sort"
HAS_TRAINED = bool(os.environ.get("RLHF_JAX_DATA")) and FOLDER.is_dir()
LAYERS, HEADS, WIDTH, VOCAB, CONTEXT = 3, 3, 48, 3, 11
SHAPES = {
    "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,),
    "attn.c_attn.weight": (3 * WIDTH, WIDTH), "attn.c_attn.bias": (3 * WIDTH,),
    "attn.c_proj.weight": (WIDTH, WIDTH), "attn.c_proj.bias": (WIDTH,),
    "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
    "mlp.c_fc.weight": (4 * WIDTH, WIDTH), "mlp.c_fc.bias": (4 * WIDTH,),
    "mlp.c_proj.weight": (WIDTH, 4 * WIDTH), "mlp.c_proj.bias": (WIDTH,),
}


# ----------------------------------------------- the model in NumPy, float64


def norm(x, w, name):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + (
      w[f"{name}.bias"])


def attend(x, w, name, bias):
  """x [B, T, D]; bias [3 D] of queries, keys and values."""
  batch, length, _ = x.shape
  qkv = norm(x, w, f"{name}.ln_1") @ w[f"{name}.attn.c_attn.weight"].T + bias
  q, k, v = (part.reshape(batch, length, HEADS, -1).swapaxes(1, 2)
             for part in np.split(qkv, 3, -1))
  scores = q @ k.swapaxes(2, 3) / np.sqrt(WIDTH // HEADS)
  scores = np.where(np.tri(length) > 0, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  heads = weights / weights.sum(-1, keepdims=True) @ v
  rows = heads.swapaxes(1, 2).reshape(x.shape)
  return rows @ w[f"{name}.attn.c_proj.weight"].T + (
      w[f"{name}.attn.c_proj.bias"])


def block(x, w, number, bias):
  name = f"transformer.h.{number}"
  x = x + attend(x, w, name, bias)
  up = norm(x, w, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + (
      w[f"{name}.mlp.c_fc.bias"])
  up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
  return x + up @ w[f"{name}.mlp.c_proj.weight"].T + (
      w[f"{name}.mlp.c_proj.bias"])


def activations(w, idx):
  """By the names of the original program's."""
  x = w["transformer.wte.weight"][idx] + (
      w["transformer.wpe.weight"][:idx.shape[1]])
  found = {"idx": idx, "x": x}
  for number in range(LAYERS):
    x = block(x, w, number, w[f"transformer.h.{number}.attn.c_attn.bias"])
    found[f"block{number}"] = x
  found["ln_f"] = norm(x, w, "transformer.ln_f")
  return found | {"lm_head": found["ln_f"] @ w["lm_head.weight"].T}


# ------------------------------------------------------------------ the cases


def trained():
  """(weights, reference activations) of the data folder."""
  w = {name: x.astype(np.float64)
       for name, x in np.load(FOLDER / "weights.npz").items()}
  reference = dict(np.load(FOLDER / "reference_activations.npz"))
  for number in range(LAYERS):
    before = reference[f"block{number - 1}"] if number else reference["x"]
    w[f"transformer.h.{number}.attn.c_attn.bias"] = solved(
        w, number, before.astype(np.float64), reference[f"block{number}"])
  return w, reference


def solved(w, number, before, after):
  """The bias [3 D] with which a block turns `before` into `after`."""
  whole = lambda part: np.concatenate(
      [part[:WIDTH], np.zeros(WIDTH), part[WIDTH:]])
  result = scipy.optimize.least_squares(
      lambda part: (block(before, w, number, whole(part)) - after).ravel(),
      np.zeros(2 * WIDTH), xtol=1e-12, ftol=1e-12, gtol=1e-12)
  assert np.abs(result.fun).max() < 2e-6  # far more equations than unknowns
  return whole(result.x)


def made():
  """The same of random weights."""
  rng = np.random.default_rng(5)
  shapes = {f"transformer.h.{n}.{name}": shape for n in range(LAYERS)
            for name, shape in SHAPES.items()}
  shapes |= {"transformer.wte.weight": (VOCAB, WIDTH),
             "transformer.wpe.weight": (CONTEXT, WIDTH),
             "transformer.ln_f.weight": (WIDTH,),
             "transformer.ln_f.bias": (WIDTH,),
             "lm_head.weight": (VOCAB, WIDTH)}
  w = {name: rng.normal(scale=0.2, size=shape) + (len(shape) == 1)
       for name, shape in shapes.items()}
  return w, activations(w, rng.integers(0, VOCAB, (3, CONTEXT)))


CASES = {"made": made} | ({"trained": trained} if HAS_TRAINED else {})
weights = functools.cache(lambda name: CASES[name]())


@pytest.fixture(name="loaded", params=CASES)
def _loaded(request, tmp_path):
  """(the model as a run reads it, its case's name)."""
  w, _ = weights(request.param)
  tensors = {
      name: np.ascontiguousarray(
          x.T if ".c_" in name and x.ndim == 2 else x, np.float32)
      for name, x in w.items()}  # GPT-2's linear maps are [in, out]
  safetensors_numpy.save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(dict(
      model_type="gpt2", vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH,
      n_layer=LAYERS, n_head=HEADS, tie_word_embeddings=False)))
  # one place more: a response's last token is sampled, and read by nobody
  return agreement.policy(tmp_path, context_length=CONTEXT + 1), request.param


def test_every_activation_is_the_originals(loaded):
  (model, params, _), name = loaded
  _, reference = weights(name)
  c, body = model.config, params["transformer"]
  idx = reference["idx"]
  mask = np.ones(idx.shape, bool)
  positions = transformer.positions_of(mask)
  masks = transformer.attention_masks(
      c, query_positions=positions, key_positions=positions, key_mask=mask,
      causal=transformer.causal_mask(idx.shape[1]))
  x = model.apply({"params": params}, idx, positions,
                  method=lambda m, *args: m.transformer.embed(*args))
  found = {"x": x}
  apply = tiny.jit(lambda layer, x: transformer.Block(c).apply(
      {"params": layer}, x, 0, masks, None, None, True)[0])
  for number in range(LAYERS):
    x = apply(jax.tree.map(lambda x, n=number: x[n], body["blocks"]), x)
    found[f"block{number}"] = x
  found["ln_f"] = model.apply(
      {"params": params}, x, method=lambda m, x: m.transformer.finish(x))
  found["lm_head"] = agreement.logits(
      agreement.Loaded(model, params, tiny.make_mesh("one_device")), idx, mask)
  for key, value in found.items():
    np.testing.assert_allclose(
        value, reference[key], atol=2e-5, rtol=2e-5, err_msg=key)


def test_greedy_letters_are_those_of_the_original(loaded):
  loaded, name = loaded
  inputs = np.array(list(itertools.product(range(VOCAB), repeat=6)))
  got, _ = agreement.greedy(
      loaded, inputs, np.ones(inputs.shape, bool), length=6, eos_id=-1)
  if name == "trained":
    np.testing.assert_array_equal(got, np.sort(inputs, axis=1))
    return
  w, _ = weights(name)
  text = inputs[::27]
  for _ in range(6):
    logits = activations(w, text)["lm_head"][:, -1]
    text = np.concatenate([text, logits.argmax(-1)[:, None]], axis=1)
  np.testing.assert_array_equal(got[::27], text[:, 6:])
