"""GPT-2 and what is made of its code, as Cerebras-GPT.

Fields and names are those of `GPT2LMHeadModel` in Hugging Face's transformers.
"""

from typing import Any

from rlhf_jax.hf import layouts
from rlhf_jax.hf.fields import Fields
from rlhf_jax.models.transformer import TransformerConfig

MODEL_TYPE = "gpt2"
ARCHITECTURES = {"policy": "GPT2LMHeadModel",
                 "reward_model": "GPT2ForSequenceClassification"}
# GPT2Model alone is saved without the first part of its names.
PREFIXES = ("transformer.", "")
# Masks that old versions kept among the weights.
BUFFERS = (".attn.bias", ".attn.masked_bias")
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
    "swish": "silu",
}
_ACTIVATION_NAMES = {
    "gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def settings(fields: Fields) -> dict[str, Any]:
  """config.json -> the keys of config.model that it decides.

  Raises:
    FolderError: a field is wrong or asks what the model cannot do.
  """
  fields.must_be("scale_attn_weights", True,
                 "attention without its scale is not there")
  fields.must_be("add_cross_attention", False,
                 "the model has no cross-attention")
  width = fields.whole("n_embd", 768)
  return dict(
      vocab_size=fields.whole("vocab_size", 50257),
      context_length=fields.whole("n_positions", 1024),
      d_model=width,
      num_layers=fields.whole("n_layer", 12),
      num_heads=fields.whole("n_head", 12),
      mlp_size=fields.whole("n_inner", 4 * width),
      activation=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
      norm_order="pre",
      norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
      final_norm=True,
      tied_unembedding=fields.flag("tie_word_embeddings", True),
      embedding_size=width,
      position_offset=0,
      scale_by_layer=fields.flag("scale_attn_by_inverse_layer_idx", False),
      attention_pattern="dense",
  )


def fields_of(c: TransformerConfig) -> dict[str, Any]:
  """The inverse of `settings`."""
  return dict(
      vocab_size=c.vocab_size,
      n_positions=c.context_length,
      n_embd=c.d_model,
      n_layer=c.num_layers,
      n_head=c.num_heads,
      n_inner=c.d_mlp,
      activation_function=_ACTIVATION_NAMES[c.activation],
      layer_norm_epsilon=c.norm_epsilon,
      scale_attn_weights=True,
      scale_attn_by_inverse_layer_idx=c.scale_by_layer,
      tie_word_embeddings=c.tied_unembedding,
      attn_pdrop=0.0, embd_pdrop=c.dropout_rate, resid_pdrop=c.dropout_rate,
  )


def block_name(prefix: str, number: int) -> str:
  """What the names of a block's tensors begin with."""
  return f"{prefix}h.{number}."


def block_layouts() -> layouts.Layouts:
  """Path within a block of ours -> layout, with names within theirs."""
  return {
      **layouts.norm("attention_norm", "ln_1"),
      "attention/qkv_kernel": layouts.Heads(
          ("attn.c_attn.weight",), has_rows=True),
      "attention/qkv_bias": layouts.Heads(
          ("attn.c_attn.bias",), has_rows=False),
      "attention/out_kernel": layouts.Merge("attn.c_proj.weight"),
      "attention/out_bias": layouts.vector("attn.c_proj.bias", "d_model"),
      **layouts.norm("mlp_norm", "ln_2"),
      "mlp/up_kernel": layouts.matrix(
          "mlp.c_fc.weight", "d_model", "d_mlp", is_transposed=False),
      "mlp/up_bias": layouts.vector("mlp.c_fc.bias", "d_mlp"),
      "mlp/down_kernel": layouts.matrix(
          "mlp.c_proj.weight", "d_mlp", "d_model", is_transposed=False),
      "mlp/down_bias": layouts.vector("mlp.c_proj.bias", "d_model"),
  }


def body_layouts(prefix: str, vocab_size: int, num_positions: int,
                 c: TransformerConfig) -> layouts.Layouts:
  """The same of what is not in a block.

  Args:
    prefix: one of PREFIXES.
    vocab_size: rows of their token table.
    num_positions: rows of their position table.
    c: our sizes.
  """
  return {
      "token_embedding/embedding": layouts.Table(
          f"{prefix}wte.weight", vocab_size, c.d_model),
      "position_embedding/embedding": layouts.Table(
          f"{prefix}wpe.weight", num_positions, c.d_model, repeat_from=0),
      **layouts.norm("final_norm", f"{prefix}ln_f"),
  }
