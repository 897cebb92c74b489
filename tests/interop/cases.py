"""Models of transformers with weights that tell every part from the others.

Configs are those that an importer is likely to get wrong; weights are far from
where training starts, because models near there are all alike.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors
import torch
import transformers

PAD_ID = 0  # of transformers; no real token of a case has it
_FORMS = {"policy": "ForCausalLM", "reward": "ForSequenceClassification",
          "body": ""}


@dataclasses.dataclass(frozen=True)
class Size:
  width: int
  num_layers: int
  vocab_size: int
  num_positions: int
  length: int  # of the rows that are scored
  response_length: int
  seed: int


GOLDEN = Size(16, 2, 41, 24, length=10, response_length=8, seed=2)
LIVE = Size(32, 3, 97, 48, length=24, response_length=16, seed=1)


@dataclasses.dataclass(frozen=True)
class Case:
  """One model and how it is saved.

  Attributes:
    family: "gpt2" or "opt".
    form: "policy", "reward", or "body", saved without the names around it.
    dtype: of the file.
    shard_bytes: of a file of many; 0 for one file.
    has_buffers: with the masks that old files hold.
    is_golden: also kept with the plain tests.
    stddev: of the weights.
    settings: of config.json; texts stand for multiples of the width.
  """

  family: str
  form: str = "policy"
  dtype: torch.dtype = torch.float32
  shard_bytes: int = 0
  has_buffers: bool = False
  is_golden: bool = False
  stddev: float = 0.3
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def _gpt2(**settings) -> Case:
  return _case("gpt2", **settings)


def _opt(**settings) -> Case:
  return _case("opt", **settings)


def _case(family: str, **settings) -> Case:
  """What is no field of a case's own is one of config.json."""
  own = {field.name for field in dataclasses.fields(Case)} & settings.keys()
  return Case(
      family, **{name: settings.pop(name) for name in own}, settings=settings)


CASES = {
    "gpt2": _gpt2(),
    "gpt2_scaled": _gpt2(
        scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-2,
        n_inner="1.5", is_golden=True),
    "gpt2_untied_gelu": _gpt2(
        tie_word_embeddings=False, activation_function="gelu", is_golden=True),
    "gpt2_relu": _gpt2(activation_function="relu", n_inner="1"),
    "gpt2_silu": _gpt2(activation_function="silu", n_inner="6"),
    "gpt2_old": _gpt2(form="body", has_buffers=True, is_golden=True),
    "gpt2_float16": _gpt2(dtype=torch.float16, is_golden=True),
    "gpt2_bfloat16": _gpt2(dtype=torch.bfloat16),
    "gpt2_sharded": _gpt2(shard_bytes=4096, tie_word_embeddings=False),
    "gpt2_reward": _gpt2(form="reward", is_golden=True),
    "opt": _opt(is_golden=True),
    "opt_post_projected": _opt(
        do_layer_norm_before=False, word_embed_proj_dim="0.5",
        is_golden=True),
    "opt_no_final_norm": _opt(
        _remove_final_layer_norm=True, activation_function="gelu",
        stddev=0.15),  # its hidden states have any size
    "opt_untied_projected": _opt(
        tie_word_embeddings=False, word_embed_proj_dim="0.75"),
    "opt_body": _opt(form="body", dtype=torch.bfloat16, is_golden=True),
    "opt_reward": _opt(form="reward"),
    "opt_reward_post_projected": _opt(
        form="reward", do_layer_norm_before=False, word_embed_proj_dim="0.5",
        is_golden=True),
}


def make(name: str, size: Size, folder: pathlib.Path) -> dict[str, Any]:
  """Writes a case's folder; returns what transformers computes with it.

  The numbers are of float32, with the file's values.
  """
  case = CASES[name]
  model = far_model(case, size)
  saved = model if case.form != "body" else model.base_model
  kwargs = {"max_shard_size": case.shard_bytes} if case.shard_bytes else {}
  saved.to(case.dtype).save_pretrained(folder, **kwargs)
  if case.has_buffers:
    _add_buffers(folder / "model.safetensors", size)
  return expected(model.float(), case, size)


def far_model(case: Case, size: Size):
  """The model with random weights, biases and scales too."""
  config = _config(case, size)
  prefix = {"gpt2": "GPT2", "opt": "OPT"}[case.family]
  form = _FORMS["policy" if case.form == "body" else case.form]
  if (prefix, form) == ("GPT2", "ForCausalLM"):
    form = "LMHeadModel"
  model = getattr(transformers, prefix + form)(config).eval()
  rng = np.random.default_rng(size.seed)
  with torch.no_grad():
    for path, leaf in sorted(model.named_parameters()):
      is_scale = leaf.ndim == 1 and path.endswith("weight")
      values = is_scale + rng.normal(0, case.stddev, tuple(leaf.shape))
      leaf.copy_(torch.tensor(values.astype(np.float32)).to(case.dtype))
  return model


def _config(case: Case, size: Size):
  scaled = {name: int(float(value) * size.width)
            if isinstance(value, str) and value[0].isdigit() else value
            for name, value in case.settings.items()}
  common = dict(
      vocab_size=size.vocab_size, pad_token_id=PAD_ID, bos_token_id=1,
      eos_token_id=2)
  if case.form == "reward":
    common["num_labels"] = 1
  if case.family == "gpt2":
    return transformers.GPT2Config(**common | dict(
        n_positions=size.num_positions, n_embd=size.width,
        n_layer=size.num_layers, n_head=4) | scaled)
  return transformers.OPTConfig(**common | dict(
      max_position_embeddings=size.num_positions, hidden_size=size.width,
      num_hidden_layers=size.num_layers, num_attention_heads=4,
      ffn_dim=2 * size.width, word_embed_proj_dim=size.width) | scaled)


def _add_buffers(path: pathlib.Path, size: Size) -> None:
  """The causal masks that files of old versions hold beside the weights."""
  tensors = safetensors.load_file(path)
  length = size.num_positions
  for block in range(size.num_layers):
    tensors[f"h.{block}.attn.bias"] = np.tril(
        np.ones((1, 1, length, length), np.uint8))
    tensors[f"h.{block}.attn.masked_bias"] = np.float32([-1e4])
  safetensors.save_file(tensors, path, metadata={"format": "pt"})


def expected(model, case: Case, size: Size) -> dict[str, np.ndarray]:
  """tokens, mask [4, L] with logits [4, L, V] and greedy continuations of
  prompts, or with scores [4]."""
  rng = np.random.default_rng(size.seed + 100)
  tokens, mask = rows(rng, size)
  with torch.no_grad():
    out = model(**inputs(case.family, tokens, mask)).logits.numpy()
  found = {"tokens": tokens, "mask": mask}
  if case.form == "reward":
    return found | {"scores": out[:, 0]}
  return found | {"logits": out} | continuations(model, rng, size)


def rows(rng, size: Size):
  """A whole row, one padded on the left, on the right, and on both sides."""
  place = np.arange(size.length)
  starts, ends = np.array([[0, 3, 0, 2], [0, 0, 4, 1]])[:, :, None]
  mask = (place >= starts) & (place < size.length - ends)
  tokens = rng.integers(1, size.vocab_size, mask.shape)
  return np.where(mask, tokens, PAD_ID).astype(np.int32), mask


def inputs(family: str, tokens, mask) -> dict[str, torch.Tensor]:
  """What a forward pass takes; GPT-2's finds no positions by itself."""
  found = dict(input_ids=torch.tensor(tokens, dtype=torch.long),
               attention_mask=torch.tensor(mask.astype(np.int64)))
  if family == "gpt2":
    found["position_ids"] = torch.tensor(
        np.maximum(np.cumsum(mask, 1) - 1, 0))
  return found


def continuations(model, rng, size: Size) -> dict[str, np.ndarray]:
  """Greedy ones of left-padded prompts, some of which end and some do not."""
  length = size.length // 2
  mask = np.arange(length) >= np.array([0, length - 1, 2, 1])[:, None]
  prompts = np.where(
      mask, rng.integers(1, size.vocab_size, mask.shape), PAD_ID)
  without_end = generate(model, prompts, mask, size.response_length, None)
  eos_id = _end_of_some(without_end)
  tokens = generate(model, prompts, mask, size.response_length, eos_id)
  is_end = tokens == eos_id
  before = np.cumsum(is_end, 1) - is_end  # ends before each token
  return dict(
      prompts=prompts.astype(np.int32), prompt_mask=mask,
      greedy=tokens.astype(np.int32), greedy_mask=before == 0,
      eos_id=np.int32(eos_id))


def generate(model, prompts, mask, length, eos_id) -> np.ndarray:
  """model.generate's greedy tokens [B, length]."""
  settings = transformers.GenerationConfig(
      max_new_tokens=length, do_sample=False, pad_token_id=PAD_ID,
      eos_token_id=eos_id)
  out = model.generate(
      torch.tensor(prompts, dtype=torch.long),
      attention_mask=torch.tensor(mask.astype(np.int64)),
      generation_config=settings)[:, prompts.shape[1]:].numpy()
  return np.pad(out, ((0, 0), (0, length - out.shape[1])),
                constant_values=PAD_ID)


def _end_of_some(tokens) -> int:
  """A token that ends some rows on the way, and not all."""
  for token in np.unique(tokens[tokens != PAD_ID]):
    has = (tokens[:, :-1] == token).any(1)
    if has.any() and not has.all() and (tokens[:, 0] != token).all():
      return int(token)
  raise AssertionError(f"all rows end alike: {tokens}")
