"""Laws of one language-model step: which tokens count, and how much."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import sharding, train_state
from rlhf_jax.trainers import lm
from tests import tiny

MIXED = {"demonstrations": 0.9, "pretrain": 0.1}
ALONE = {"demonstrations": 1.0}
KEY = jax.random.key(0)


def _demonstrations(batch=8, length=12, seed=0):
  """Rows of 3 to 12 tokens; 1 to 4 of them are the prompt, not trained on."""
  sizes = 3 + np.arange(batch) * 9 // (batch - 1)
  prompts = np.minimum(1 + np.arange(batch) % 4, sizes - 1)
  at = np.arange(length)
  mask = at < sizes[:, None]
  tokens = np.where(mask, tiny.tokens(batch, length, seed=seed), tiny.PAD_ID)
  return {"tokens": tokens, "mask": mask,
          "loss_mask": mask & (at >= prompts[:, None])}


def _batch():
  tokens = tiny.tokens(8, 10, seed=1)
  mask = np.ones_like(tokens, bool)
  return {"demonstrations": _demonstrations(),
          "pretrain": {"tokens": tokens, "mask": mask, "loss_mask": mask}}


@functools.cache
def _step(weights=tuple(ALONE.items()), num_microbatches=1, **model):
  """A step of plain gradient descent: the update is minus the gradient."""
  return tiny.jit(lm.make_lm_step(
      tiny.policy(**model), optax.sgd(1.0), weights=dict(weights),
      num_microbatches=num_microbatches))


def _state(tx=optax.sgd(1.0)):
  return train_state.create(tiny.params(tiny.policy()), tx)


def _gradients(state, batch, key=KEY, **step):
  after, values = _step(**step)(state, batch, key)
  return jax.tree.map(jnp.subtract, state.params, after.params), values


@functools.cache
def _looped_loss():
  """The mean over trained tokens, row by row."""
  model = tiny.policy()

  def loss(params, rows):
    logits = model.apply({"params": params}, rows["tokens"], rows["mask"])
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    targets = jax.nn.one_hot(rows["tokens"][:, 1:], logits.shape[-1])
    total = count = 0
    for row, one_hot, trained in zip(
        logprobs, targets, rows["loss_mask"][:, 1:]):
      total -= (one_hot * row * trained[:, None]).sum()
      count += trained.sum()
    return total / count

  return tiny.jit(jax.value_and_grad(loss))


class ObjectiveTest(parameterized.TestCase):

  def test_is_the_mean_over_response_tokens(self):
    batch, state = _batch(), _state()
    loss, grads = _looped_loss()(state.params, batch["demonstrations"])
    found, values = _gradients(state, batch)
    np.testing.assert_allclose(
        values["train/demonstrations/loss"], loss, rtol=1e-5)
    self.assertEqual(
        values["train/demonstrations/tokens"],
        batch["demonstrations"]["loss_mask"].sum())
    chex.assert_trees_all_close(found, grads, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        values["train/grad_norm"], optax.tree.norm(grads), rtol=1e-5)

  def test_streams_are_weighted_means(self):
    batch, state = _batch(), _state()
    losses, grads = zip(*(
        _looped_loss()(state.params, batch[name]) for name in sorted(MIXED)))
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, *grads)
    found, values = _gradients(state, batch, weights=tuple(MIXED.items()))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        [values[f"train/{name}/loss"] for name in sorted(MIXED)], losses,
        rtol=1e-5)

  @parameterized.parameters((True, 0.0), (False, 0.01))
  def test_prompt_tokens_have_no_influence_as_targets(self, is_prompt, least):
    # The last token of a row is a target and nothing else.
    rows = _demonstrations()
    rows["loss_mask"][-1, -1] = not is_prompt
    other = rows | {"tokens": rows["tokens"].copy()}
    other["tokens"][-1, -1] = (rows["tokens"][-1, -1] + 1) % tiny.VOCAB_SIZE
    first, _ = _gradients(_state(), {"demonstrations": rows})
    second, _ = _gradients(_state(), {"demonstrations": other})
    difference = max(
        np.abs(a - b).max() for a, b in zip(
            jax.tree.leaves(first), jax.tree.leaves(second)))
    if is_prompt:
      self.assertEqual(difference, 0.0)
    self.assertGreaterEqual(difference, least)

  def test_nothing_to_train_on_is_no_update(self):
    rows = _demonstrations()
    rows["loss_mask"] = np.zeros_like(rows["loss_mask"])
    grads, values = _gradients(_state(), {"demonstrations": rows})
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0.0)
    self.assertEqual(values["train/demonstrations/loss"], 0.0)

  def test_uniform_model_has_the_entropy_of_the_true_vocabulary(self):
    state = _state()
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    _, values = _gradients(state.replace(params=zeros), _batch())
    np.testing.assert_allclose(
        values["train/demonstrations/loss"], np.log(tiny.VOCAB_SIZE),
        rtol=1e-6)


class MicrobatchTest(parameterized.TestCase):

  @parameterized.parameters(2, 4)
  def test_parts_do_not_change_the_update(self, num_microbatches):
    state, batch = _state(), _batch()
    expected, whole = _gradients(state, batch)
    found, values = _gradients(
        state, batch, num_microbatches=num_microbatches)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(values, whole, rtol=1e-5)


  def test_two_parts_need_half_the_memory(self):
    batch = {"demonstrations": _demonstrations(batch=64, length=32)}

    def temporary_bytes(num_microbatches):
      program = _step(num_microbatches=num_microbatches).lower(
          _state(), batch, KEY).compile()
      return program.memory_analysis().temp_size_in_bytes

    self.assertLess(temporary_bytes(2), 0.6 * temporary_bytes(1))


class DropoutTest(parameterized.TestCase):

  def test_noise_follows_key_and_step(self):
    state, batch = _state(), _batch()
    loss = lambda state, key: _gradients(
        state, batch, key, dropout_rate=0.2)[1]["train/demonstrations/loss"]
    first = loss(state, KEY)
    self.assertEqual(first, loss(state, KEY))
    self.assertNotEqual(first, loss(state, jax.random.key(1)))
    self.assertNotEqual(first, loss(state.replace(step=jnp.int32(1)), KEY))

  def test_off_at_rate_zero(self):
    state, batch = _state(), _batch()
    first, _ = _gradients(state, batch, KEY)
    second, _ = _gradients(state, batch, jax.random.key(1))
    chex.assert_trees_all_equal(first, second)


class LoopTest(parameterized.TestCase):

  def test_compiles_once_gives_its_buffers_back_and_learns(self):
    state, batch = _state(tiny.adam()), _batch()
    state = jax.tree.map(jnp.copy, state)
    step = chex.assert_max_traces(lm.make_lm_step(
        tiny.policy(), tiny.adam(), weights=ALONE, num_microbatches=1), n=1)
    step = tiny.jit(step, donate_argnums=0)
    losses = []
    for number in range(20):
      before = state
      state, values = step(state, batch, KEY)
      losses.append(float(values["train/demonstrations/loss"]))
      self.assertEqual(state.step, number + 1)
      for leaf in jax.tree.leaves(before):
        self.assertTrue(leaf.is_deleted())
    self.assertLess(losses[-1], losses[0] - 0.5)


class MeshTest(parameterized.TestCase):

  @parameterized.parameters("fsdp", "all_axes")
  def test_no_device_holds_the_whole_batch(self, name):
    step = lm.make_lm_step(
        tiny.policy(), optax.sgd(1.0), weights=ALONE, num_microbatches=1)
    state = _state()
    mesh, mesh_in_use = tiny.use_mesh(name)
    with mesh_in_use:
      state, shardings = tiny.shard(state, mesh)
      batch = sharding.put_batch(_batch(), mesh, tiny.AXIS_RULES)
      program = tiny.jit(step, out_shardings=(shardings, None)).lower(
          state, batch, KEY).compile().as_text()
    # arrays of a program are those of one device: rows [8 * 12, D], [8, 12, D]
    # of whole width; while embeddings are looked up, it has a part of that
    self.assertNotRegex(program, r"f32\[(8,12|8,1,12|96),(16|40|64)\]")
    self.assertNotRegex(program, "collective-permute")
    self.assertIn("all-gather", program)


if __name__ == "__main__":
  absltest.main()
