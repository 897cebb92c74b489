"""Attention over whole rows, by plain products or by a fused kernel.

The plain form stores the scores of all pairs of places. The kernels never do:
cuDNN's on GPUs (through `jax.nn.dot_product_attention`) and, on TPUs, the
Pallas kernel that comes with JAX, both of the kind of Dao et al. 2022.
Decoding with a cache always takes the plain form: its queries are one place.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.sharding import on_shards

KERNELS = ("plain", "cudnn", "flash")
# kernel -> the kind of device that has it
PLATFORMS = {"cudnn": "gpu", "flash": "tpu"}
# Large negative, finite: a fully masked row gives a uniform softmax, not NaN.
MASKED = -1e10
_FLASH_BLOCK = 128  # places; its blocks divide a row


def plain(query, key, value, mask, *, scale):
  """Softmax attention, written out; what is divided by the sum of weights is
  the result, which is smaller than the weights.

  Args:
    query: [B, H, L, K].
    key, value: [B, H, S, K].
    mask: bool [B, L, S], true where a query sees a key.
    scale: of the scores, a number or a scalar array.

  Returns:
    [B, H, L, K], in the dtype of `value`; scores and softmax are float32.
  """
  scores = jnp.einsum(
      "bhlk,bhsk->bhls", query, key, preferred_element_type=jnp.float32
  ) * scale
  scores = jnp.where(mask[:, None], scores, MASKED)
  weights = jnp.exp(scores - jax.lax.stop_gradient(
      scores.max(-1, keepdims=True)))
  total = weights.sum(-1, keepdims=True)
  out = jnp.einsum("bhls,bhsk->bhlk", weights.astype(value.dtype), value)
  return (out / total).astype(value.dtype)


def cudnn(query, key, value, mask, *, scale: float):
  """The same by cuDNN's fused kernel: bfloat16, and a GPU to run on."""
  places_first = lambda x: jnp.swapaxes(x, 1, 2)  # [B, L, H, K]
  return places_first(jax.nn.dot_product_attention(
      places_first(query), places_first(key), places_first(value),
      mask=mask[:, None], scale=scale, implementation="cudnn"))


def flash(query, key, value, texts, *, scale: float):
  """The same by the Pallas kernel for TPUs.

  It is causal, and a place sees its own text alone. The rows of padding,
  which nobody reads, come out otherwise than of `plain`: there a place sees
  nothing, here the padding before it.

  Args:
    query, key, value: [B, H, L, K].
    texts: int32 [B, L]; 0 is padding, one number a text.
    scale: of the scores.

  Returns:
    [B, H, L, K].
  """
  # a third of a second to import, and seldom needed
  from jax.experimental.pallas.ops.tpu import flash_attention  # pylint: disable=g-import-not-at-top

  length = query.shape[2]
  fill = -length % _FLASH_BLOCK
  pad = lambda x, axis: jnp.pad(
      x, [(0, fill if i == axis else 0) for i in range(x.ndim)])

  def on_one_device(query, key, value, texts):
    return flash_attention.flash_attention(
        query, key, value,
        segment_ids=flash_attention.SegmentIds(texts, texts),
        causal=True, sm_scale=scale)

  heads = ("batch", "heads", None, None)
  out = on_shards(
      on_one_device, (heads, heads, heads, ("batch", None)), heads)(
          pad(query, 2), pad(key, 2), pad(value, 2), pad(texts, 1))
  return out[:, :, :length]
