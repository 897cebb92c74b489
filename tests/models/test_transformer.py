"""Laws of the decoder: causality, padding, patterns, numerics, dropout."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses, run
from rlhf_jax.evals import language_loss
from rlhf_jax.models import transformer
from rlhf_jax.plan import costs, hlo
from tests import tiny

PATTERNS = ("dense", "alternating")


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, mask):
  return model.apply({"params": params}, tokens, mask)


def _numpy_logits(params, tokens, config):
  """GPT-2 in float64, one row of real tokens [L] -> [L, V]."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["transformer"])

  def norm(x, at):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * at["scale"] + at["bias"]

  def attention(x, at, band):
    qkv = np.einsum("ld,dhck->chlk", x, at["qkv_kernel"])
    query, key, value = qkv + at["qkv_bias"].swapaxes(0, 1)[:, :, None]
    scores = query @ key.swapaxes(1, 2) / np.sqrt(config.head_dim)
    distance = np.subtract.outer(np.arange(len(x)), np.arange(len(x)))
    seen = (distance >= 0) & (distance < band)
    weights = np.where(seen, np.exp(scores), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum(
        "hlk,hkd->ld", weights @ value, at["out_kernel"]) + at["out_bias"]

  def mlp(x, at):
    x = x @ at["up_kernel"] + at["up_bias"]
    x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ at["down_kernel"] + at["down_bias"]

  table = p["token_embedding"]["embedding"]
  x = table[tokens] + p["position_embedding"]["embedding"][:len(tokens)]
  for layer in range(config.num_layers):
    block = jax.tree.map(lambda a, at=layer: a[at], p["blocks"])
    is_banded = config.attention_pattern == "alternating" and layer % 2 == 1
    band = config.band_width if is_banded else len(tokens)
    x = x + attention(
        norm(x, block["attention_norm"]), block["attention"], band)
    x = x + mlp(norm(x, block["mlp_norm"]), block["mlp"])
  return norm(x, p["final_norm"]) @ table[:config.vocab_size].T


class ForwardTest(parameterized.TestCase):

  @parameterized.parameters(*PATTERNS)
  def test_equals_gpt2_in_numpy(self, pattern):
    model = tiny.policy(attention_pattern=pattern)
    params = tiny.params(model)
    tokens = tiny.tokens(6, 12)
    logits = _logits(model, params, tokens, np.ones_like(tokens, bool))
    for row, found in zip(tokens, logits):
      expected = _numpy_logits(params, row, model.config)
      np.testing.assert_allclose(
          found[:, :tiny.VOCAB_SIZE], expected, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*PATTERNS)
  def test_a_token_changes_nothing_before_it(self, pattern):
    model = tiny.policy(attention_pattern=pattern)
    params, tokens = tiny.params(model), tiny.tokens(6, 12)
    mask = np.ones_like(tokens, bool)
    before = _logits(model, params, tokens, mask)
    for t in range(12):
      changed = tokens.copy()
      changed[:, t] = (changed[:, t] + 1) % tiny.VOCAB_SIZE
      after = _logits(model, params, changed, mask)
      np.testing.assert_array_equal(after[:, :t], before[:, :t])
      for later in range(t, 12):  # dense blocks see all that was before
        self.assertGreater(
            np.abs(after - before)[:, later, :tiny.VOCAB_SIZE].max(), 1e-4)

  @parameterized.product(
      pattern=PATTERNS, dtype=(("float32", 1e-5), ("bfloat16", 2e-2)))
  def test_padding_moves_no_logit(self, pattern, dtype):
    dtype, tolerance = dtype
    model = tiny.policy(attention_pattern=pattern, dtype=dtype)
    params, row = tiny.params(model), tiny.tokens(7)
    # Row p: p pads on the left, 5 - p on the right, noise under all of them.
    tokens, mask = tiny.tokens(6, 12, seed=1), np.zeros((6, 12), bool)
    for p in range(6):
      tokens[p, p:p + 7], mask[p, p:p + 7] = row, True
    padded = _logits(model, params, tokens, mask)
    expected = _logits(model, params, row[None], np.ones((1, 7), bool))[0]
    scale = np.abs(expected[:, :tiny.VOCAB_SIZE]).max()
    for p in range(6):
      np.testing.assert_allclose(
          padded[p, p:p + 7], expected, atol=tolerance * max(scale, 1))

  @parameterized.parameters(*PATTERNS)
  def test_texts_of_one_row_do_not_see_each_other(self, pattern):
    model = tiny.policy(attention_pattern=pattern)
    params, texts = tiny.params(model), (tiny.tokens(7), tiny.tokens(4, seed=1))
    tokens, mask = tiny.tokens(1, 12, seed=2), np.zeros((1, 12), np.int32)
    for start, number, text in ((0, 1, texts[0]), (7, 2, texts[1])):
      stop = start + len(text)
      tokens[0, start:stop], mask[0, start:stop] = text, number
    packed = _logits(model, params, tokens, mask)[0]
    for start, text in ((0, texts[0]), (7, texts[1])):
      alone = _logits(
          model, params, text[None], np.ones((1, len(text)), bool))[0]
      np.testing.assert_allclose(
          packed[start:start + len(text)], alone, atol=1e-5)

  @parameterized.parameters(*PATTERNS)
  def test_content_of_padding_is_irrelevant(self, pattern):
    model = tiny.policy(attention_pattern=pattern)
    params = tiny.params(model)
    tokens, mask = tiny.prompts(6, 12)
    other = np.where(mask, tokens, tiny.tokens(6, 12, seed=2))
    np.testing.assert_array_equal(
        _logits(model, params, tokens, mask)[mask],
        _logits(model, params, other, mask)[mask])

  def test_a_row_of_padding_is_finite(self):
    model = tiny.policy()
    tokens = np.full((1, 7), tiny.PAD_ID, np.int32)
    logits = _logits(
        model, tiny.params(model), tokens, np.zeros((1, 7), bool))
    self.assertTrue(np.isfinite(logits).all())

  def test_padded_vocabulary_has_no_probability_and_no_gradient(self):
    model, tokens = tiny.policy(), tiny.tokens(2, 8)
    self.assertEqual(model.config.padded_vocab_size, 40)
    params, mask = tiny.params(model), np.ones_like(tokens, bool)

    def loss(params):
      logits = model.apply({"params": params}, tokens, mask)
      return losses.token_logprobs(logits, jnp.asarray(tokens)).sum(), logits

    grads, logits = tiny.jit(jax.grad(loss, has_aux=True))(params)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_array_equal(
        jax.nn.softmax(logits)[..., tiny.VOCAB_SIZE:], 0.0)
    table = grads["transformer"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[tiny.VOCAB_SIZE:], 0.0)
    self.assertGreater(np.abs(table[:tiny.VOCAB_SIZE]).min(), 0.0)

  def test_bfloat16_computes_and_float32_keeps(self):
    model, tokens = tiny.policy(dtype="bfloat16"), tiny.tokens(2, 8)
    params, mask = tiny.params(model), np.ones_like(tokens, bool)
    hidden = jax.eval_shape(lambda: model.apply(
        {"params": params}, tokens, mask, method="hidden"))
    self.assertEqual(hidden.dtype, jnp.bfloat16)
    init = jax.eval_shape(
        lambda: model.init(jax.random.key(0), tokens, mask))
    self.assertEqual(
        {x.dtype for x in jax.tree.leaves(init)}, {np.dtype("float32")})


  def test_start_is_that_of_gpt2(self):
    model = tiny.policy(d_model=64, num_layers=8, init_stddev=0.05)
    params = tiny.jit(run.init_params, static_argnums=0)(
        model, jax.random.key(0))["transformer"]
    block = params["blocks"]
    residual = 0.05 / 16**0.5  # two additions a block
    for kernel, stddev in (
        (block["attention"]["qkv_kernel"], 0.05),
        (block["mlp"]["up_kernel"], 0.05),
        (block["attention"]["out_kernel"], residual),
        (block["mlp"]["down_kernel"], residual)):
      np.testing.assert_allclose(kernel.std(), stddev, rtol=0.05)
      self.assertGreater(np.abs(kernel[0] - kernel[1]).min(), 0.0)
    for table, stddev in (("token", 0.05), ("position", 0.025)):
      np.testing.assert_allclose(
          params[f"{table}_embedding"]["embedding"].std(), stddev, rtol=0.05)
    for norm in (block["mlp_norm"], params["final_norm"]):
      np.testing.assert_array_equal(norm["scale"], 1.0)
      np.testing.assert_array_equal(norm["bias"], 0.0)


class MaskTest(parameterized.TestCase):

  def test_positions_count_real_tokens(self):
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
    np.testing.assert_array_equal(
        transformer.positions_of(mask),
        [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3], [0, 0, 1, 1, 2]])

  def test_positions_start_anew_with_each_packed_text(self):
    mask = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 3, 0, 0]])
    np.testing.assert_array_equal(
        transformer.positions_of(mask)[:, :5],
        [[0, 1, 2, 0, 1], [0, 0, 1, 0, 1]])

  @parameterized.parameters(1, 2, 3, 8)
  def test_banded_mask_equals_brute_force(self, band):
    config = tiny.config(attention_pattern="alternating", band_width=band)
    key_mask = np.random.default_rng(0).random((6, 8)) < 0.7
    positions = transformer.positions_of(key_mask)
    dense, banded = transformer.attention_masks(
        config, query_positions=positions, key_positions=positions,
        key_mask=key_mask, causal=transformer.causal_mask(8))
    for b, query, key in np.ndindex(6, 8, 8):
      if not key_mask[b, query]:
        continue  # nothing reads what padding attends to
      is_seen = key <= query and key_mask[b, key]
      distance = key_mask[b, key:query].sum()  # in real tokens
      self.assertEqual(dense[b, query, key], is_seen)
      self.assertEqual(banded[b, query, key], is_seen and distance < band)


class EquivalentProgramsTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(remat="block"), dict(remat="dots"), dict(scan_unroll=2))
  def test_memory_and_unrolling_change_no_gradient(self, **changes):
    chex.assert_trees_all_close(
        _gradients(tiny.policy(**changes)), _gradients(tiny.policy()),
        rtol=1e-5, atol=1e-6)


class PlacesTest(parameterized.TestCase):
  """Hidden states of some places are those of all, cut."""

  @parameterized.named_parameters(
      ("unrolled", dict(scan_unroll=3)),
      ("scanned", {}),
      ("banded", dict(scan_unroll=3, attention_pattern="alternating")),
      ("post", dict(scan_unroll=3, norm_order="post", final_norm=False)),
      ("scaled", dict(scan_unroll=3, scale_by_layer=True)),
      ("one_block", dict(scan_unroll=1, num_layers=1)),
  )
  def test_values_and_gradients(self, changes):
    model = tiny.policy(**dict(num_layers=3) | changes)
    tokens, mask = tiny.prompts(6, 8)
    seen = np.where(mask, 1 + (np.arange(8) > 4), 0)  # two texts a row

    def hidden(params, places):
      return model.apply(
          {"params": params}, tokens, seen, places=places, method="hidden")

    whole = lambda params: hidden(params, None)[:, 3:7]
    cut = lambda params: hidden(params, (3, 7))
    for function in (whole, cut):
      self.assertEqual(
          jax.eval_shape(function, tiny.params(model)).shape, (6, 4, 16))
    weights = np.random.default_rng(0).normal(size=(6, 4, 16))
    weights *= mask[:, 3:7, None]  # what padding sees is nobody's matter
    weights /= weights.size
    loss = lambda function: tiny.jit(jax.value_and_grad(
        lambda params: (function(params) * weights).sum()))
    chex.assert_trees_all_close(
        loss(cut)(tiny.params(model)), loss(whole)(tiny.params(model)),
        rtol=1e-5, atol=1e-6)

  def test_the_last_block_does_less(self):
    """Its query, its output and its MLP are of one place in eight; keys and
    values are of all."""
    flops = {}
    for name, places in (("whole", None), ("cut", (7, 8))):
      model = tiny.policy(num_layers=1)
      compiled = tiny.jit(lambda params, model=model, places=places: (
          model.apply({"params": params}, tiny.tokens(64, 8),
                      jnp.ones((64, 8), bool), places=places,
                      method="hidden"))).lower(tiny.params(model)).compile()
      module = hlo.parse(compiled.as_text())
      flops[name] = costs.total(costs.count(module, (1,), ())).flops
    width, rows = 16, 64 * 8
    products = 2 * rows * width * width * (1 + 1 + 8)  # query, output, MLP
    attention = 2 * rows * 8 * width * 2
    self.assertEqual(flops["whole"] - flops["cut"],
                     (products + attention) * 7 / 8)


@functools.cache
def _gradients(model):
  tokens = tiny.tokens(2, 8)

  def loss(params):
    logits = model.apply({"params": params}, tokens, tokens >= 0)
    return losses.token_logprobs(logits, jnp.asarray(tokens)).mean()

  return tiny.jit(jax.value_and_grad(loss))(tiny.params(model))


class DropoutTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.model = tiny.policy(dropout_rate=0.3)
    self.params = tiny.params(self.model)
    self.tokens = tiny.tokens(2, 8)
    self.mask = np.ones_like(self.tokens, bool)

  def test_training_depends_on_the_key_alone(self):

    @tiny.jit
    def hidden(seed):
      return self.model.apply(
          {"params": self.params}, self.tokens, self.mask, method="hidden",
          deterministic=False, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(hidden(0), hidden(0))
    self.assertGreater(np.abs(hidden(0) - hidden(1)).min(), 0.0)

  def test_evaluation_drops_nothing(self):
    without = tiny.policy()
    rows = {"tokens": self.tokens, "mask": self.mask, "loss_mask": self.mask,
            "row_mask": np.ones(2, bool)}
    found, expected = (
        tiny.jit(language_loss.make_eval_step(model))(self.params, rows)
        for model in (self.model, without))
    self.assertEqual(found, expected)


if __name__ == "__main__":
  absltest.main()
