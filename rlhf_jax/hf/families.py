"""Which architectures come in and go out, and all their names and places."""

from collections.abc import Iterator
import dataclasses
from types import ModuleType
from typing import Any

from rlhf_jax.hf import gpt2, layouts, opt
from rlhf_jax.hf.fields import FolderError, Fields
from rlhf_jax.models.transformer import TransformerConfig

FAMILIES = {module.MODEL_TYPE: module for module in (gpt2, opt)}
_BLOCKS = "transformer/blocks/"


def family_of(fields: Fields) -> ModuleType:
  """The module that knows a checkpoint's architecture.

  Raises:
    FolderError: there is none, or what is common to all asks for what the
      model cannot do.
  """
  kind = fields.get("model_type")
  if kind not in FAMILIES:
    fields.refuse("model_type", kind, "the architectures that can be read are "
                  f"{', '.join(FAMILIES)} (GPT-2 and its relatives, OPT)")
  fields.must_be("quantization_config", None,
                 "quantized weights cannot be trained; take the original ones")
  fields.must_be("auto_map", None, "it comes with code of its own")
  if fields.get("pruned_heads"):
    fields.refuse("pruned_heads", fields.get("pruned_heads"),
                  "blocks all have the same heads here")
  return FAMILIES[kind]


def settings_of(fields: Fields) -> dict[str, Any]:
  """config.json -> the keys of config.model that it decides."""
  found = family_of(fields).settings(fields)
  if found["d_model"] % found["num_heads"]:
    raise FolderError(
        f"{fields.place}: a width of {found['d_model']} does not divide over "
        f"{found['num_heads']} heads")
  return found


def family_for(c: TransformerConfig) -> ModuleType:
  """The module for a model of ours that goes out.

  Raises:
    FolderError: none can say what the model does.
  """
  module = opt if c.position_offset == 2 else gpt2
  is_post = c.norm_order == "post"
  wrong = {"attention_pattern": c.attention_pattern != "dense"}
  if module is gpt2:
    wrong |= {
        "norm_order": is_post, "final_norm": not c.final_norm,
        "embedding_size": c.d_embedding != c.d_model,
        "position_offset": c.position_offset != 0}
  else:
    wrong |= {
        "norm_epsilon": c.norm_epsilon != 1e-5,
        "scale_by_layer": c.scale_by_layer,
        "final_norm": is_post and c.final_norm}
  for name, is_wrong in wrong.items():
    if is_wrong:
      raise FolderError(
          f"config.model.{name} = {getattr(c, name)!r}: "
          f"{module.ARCHITECTURES['policy']} has nothing like it, so that "
          "other programs cannot run this model")
  return module


@dataclasses.dataclass(frozen=True)
class Place:
  """An array of ours: `layout` of one block of a stack, or of all of it."""

  path: str  # as "transformer/blocks/mlp/up_bias"
  block: int | None
  name: str  # what their names begin with
  layout: Any

  def shapes(self, c: TransformerConfig) -> layouts.Shapes:
    """Name and shape of every tensor that is read."""
    return {self.name + own: shape
            for own, shape in self.layout.shapes(c).items()}


def places(
    family: ModuleType, prefix: str, c: TransformerConfig, *,
    vocab_size: int, num_positions: int, last: str,
) -> Iterator[Place]:
  """Where each of our arrays lies, block by block.

  Args:
    family: gpt2 or opt.
    prefix: one of its PREFIXES.
    c: our sizes.
    vocab_size: rows of their token table.
    num_positions: positions of their table.
    last: what follows the hidden states: "policy", "reward_model" with a
      head, or "body", nothing.
  """
  body = family.body_layouts(prefix, vocab_size, num_positions, c)
  for path, layout in body.items():
    yield Place(f"transformer/{path}", None, "", layout)
  for path, layout in family.block_layouts().items():
    for number in range(c.num_layers):
      yield Place(
          _BLOCKS + path, number, family.block_name(prefix, number), layout)
  if last == "policy" and not c.tied_unembedding:
    yield Place("unembedding/embedding", None, "", layouts.Table(
        "lm_head.weight", vocab_size, c.d_embedding))
  if last == "reward_model":
    yield Place("head/kernel", None, "", layouts.Score("score.weight"))
