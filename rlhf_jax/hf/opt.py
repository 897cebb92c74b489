"""OPT (Zhang et al. 2022).

Fields and names are those of `OPTForCausalLM` in Hugging Face's transformers.
"""

from typing import Any

from rlhf_jax.hf import layouts
from rlhf_jax.hf.fields import Fields
from rlhf_jax.hf.gpt2 import ACTIVATIONS
from rlhf_jax.models.transformer import TransformerConfig

MODEL_TYPE = "opt"
ARCHITECTURES = {"policy": "OPTForCausalLM",
                 "reward_model": "OPTForSequenceClassification"}
# OPTModel alone is saved without "model.", the decoder without both.
PREFIXES = ("model.decoder.", "decoder.", "")
BUFFERS = ()
# Its positions count from the third row on.
_OFFSET = 2
_ACTIVATION_NAMES = {
    "gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def settings(fields: Fields) -> dict[str, Any]:
  """config.json -> the keys of config.model that it decides.

  Raises:
    FolderError: a field is wrong or asks what the model cannot do.
  """
  fields.must_be("enable_bias", True, "the model's blocks have biases")
  fields.must_be("layer_norm_elementwise_affine", True,
                 "the model's LayerNorms have scales and biases")
  width = fields.whole("hidden_size", 768)
  is_pre = fields.flag("do_layer_norm_before", True)
  is_removed = fields.flag("_remove_final_layer_norm", False)
  return dict(
      vocab_size=fields.whole("vocab_size", 50272),
      context_length=fields.whole("max_position_embeddings", 2048),
      d_model=width,
      num_layers=fields.whole("num_hidden_layers", 12),
      num_heads=fields.whole("num_attention_heads", 12),
      mlp_size=fields.whole("ffn_dim", 3072),
      activation=fields.choice("activation_function", ACTIVATIONS, "relu"),
      norm_order="pre" if is_pre else "post",
      norm_epsilon=1e-5,
      final_norm=is_pre and not is_removed,
      tied_unembedding=fields.flag("tie_word_embeddings", True),
      embedding_size=fields.whole("word_embed_proj_dim", width),
      position_offset=_OFFSET,
      scale_by_layer=False,
      attention_pattern="dense",
  )


def fields_of(c: TransformerConfig) -> dict[str, Any]:
  """The inverse of `settings`."""
  is_pre = c.norm_order == "pre"
  return dict(
      vocab_size=c.vocab_size,
      max_position_embeddings=c.context_length,
      hidden_size=c.d_model,
      num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads,
      ffn_dim=c.d_mlp,
      word_embed_proj_dim=c.d_embedding,
      activation_function=_ACTIVATION_NAMES[c.activation],
      do_layer_norm_before=is_pre,
      _remove_final_layer_norm=is_pre and not c.final_norm,
      enable_bias=True,
      layer_norm_elementwise_affine=True,
      tie_word_embeddings=c.tied_unembedding,
      attention_dropout=0.0, dropout=c.dropout_rate,
  )


def block_name(prefix: str, number: int) -> str:
  """What the names of a block's tensors begin with."""
  return f"{prefix}layers.{number}."


def block_layouts() -> layouts.Layouts:
  """Path within a block of ours -> layout, with names within theirs."""
  parts = [f"self_attn.{part}_proj" for part in "qkv"]
  return {
      **layouts.norm("attention_norm", "self_attn_layer_norm"),
      "attention/qkv_kernel": layouts.Heads(
          tuple(f"{part}.weight" for part in parts), has_rows=True,
          is_transposed=True),
      "attention/qkv_bias": layouts.Heads(
          tuple(f"{part}.bias" for part in parts), has_rows=False),
      "attention/out_kernel": layouts.Merge(
          "self_attn.out_proj.weight", is_transposed=True),
      "attention/out_bias": layouts.vector(
          "self_attn.out_proj.bias", "d_model"),
      **layouts.norm("mlp_norm", "final_layer_norm"),
      "mlp/up_kernel": layouts.matrix(
          "fc1.weight", "d_model", "d_mlp", is_transposed=True),
      "mlp/up_bias": layouts.vector("fc1.bias", "d_mlp"),
      "mlp/down_kernel": layouts.matrix(
          "fc2.weight", "d_mlp", "d_model", is_transposed=True),
      "mlp/down_bias": layouts.vector("fc2.bias", "d_model"),
  }


def body_layouts(prefix: str, vocab_size: int, num_positions: int,
                 c: TransformerConfig) -> layouts.Layouts:
  """The same of what is not in a block.

  Args:
    prefix: one of PREFIXES.
    vocab_size: rows of their token table.
    num_positions: positions of their table, without the rows before.
    c: our sizes.
  """
  found: layouts.Layouts = {
      "token_embedding/embedding": layouts.Table(
          f"{prefix}embed_tokens.weight", vocab_size, c.d_embedding),
      "position_embedding/embedding": layouts.Table(
          f"{prefix}embed_positions.weight", num_positions + _OFFSET,
          c.d_model, repeat_from=_OFFSET),
  }
  if c.final_norm:
    found |= layouts.norm("final_norm", f"{prefix}final_layer_norm")
  if c.d_embedding != c.d_model:
    found["project_in/kernel"] = layouts.matrix(
        f"{prefix}project_in.weight", "d_embedding", "d_model",
        is_transposed=True)
    found["project_out/kernel"] = layouts.matrix(
        f"{prefix}project_out.weight", "d_model", "d_embedding",
        is_transposed=True)
  return found
