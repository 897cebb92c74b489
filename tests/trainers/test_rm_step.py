"""Laws of one reward-model step: all pairs of a prompt, prompts alike."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import train_state
from rlhf_jax.data import batches
from rlhf_jax.models import scalar
from rlhf_jax.trainers import rm
from tests import tiny

PROMPTS, RESPONSES, LENGTH = 8, 4, 10


def _batch(sizes=2 + np.arange(PROMPTS) % 3, responses=RESPONSES):
  """K of 2 to 4 or `sizes`, ties, one prompt all tied; rows of many lengths.

  Every prompt is a block of its own, every response a row.
  """
  rng = np.random.default_rng(0)
  tokens, mask = tiny.prompts(len(sizes) * responses, LENGTH)
  mask = mask[:, ::-1]  # padding on the right
  shape = (len(sizes), responses, LENGTH)
  ranks = rng.integers(1, responses, shape[:2]).astype(np.int32)
  ranks[2] = 2
  mask = mask.reshape(shape)
  last_token = mask.sum(-1) - 1 + LENGTH * np.arange(responses)
  return {
      "tokens": tokens[:, ::-1].reshape(shape),
      "mask": mask.astype(np.int32),
      "last_token": last_token.astype(np.int32)[:, None],
      "ranks": ranks[:, None],
      "response_mask": (np.arange(responses) < sizes[:, None])[:, None],
  }


def _state(tx=optax.sgd(1.0)):
  return train_state.create(tiny.params(tiny.scalar()), tx)


@functools.cache
def _step(denominator="kept", num_microbatches=1):
  """A step of plain gradient descent: the update is minus the gradient."""
  return tiny.jit(rm.make_rm_step(
      tiny.scalar(), optax.sgd(1.0), denominator=denominator,
      num_microbatches=num_microbatches))


def _gradients(state, batch, **step):
  after, values = _step(**step)(state, batch)
  return jax.tree.map(jnp.subtract, state.params, after.params), values


def _looped_margins(params, batch):
  """Yields (K, [score of the better minus that of the worse, ...]) of each
  prompt with an untied pair, pair by pair."""
  flat = lambda x: x.reshape(-1, LENGTH)
  values = tiny.scalar().apply(
      {"params": params}, flat(batch["tokens"]), flat(batch["mask"]))
  values = values.reshape(batch["mask"].shape)
  for prompt, ranks in enumerate(batch["ranks"][:, 0]):
    real = np.flatnonzero(batch["response_mask"][prompt, 0])
    score = {
        k: values[prompt, k, np.flatnonzero(batch["mask"][prompt, k])[-1]]
        for k in real}
    kept = [(i, j) for i, j in itertools.permutations(real, 2)
            if ranks[i] < ranks[j]]
    if kept:
      yield len(real), jnp.stack([score[i] - score[j] for i, j in kept])


def _looped_loss(params, batch, denominator):
  """InstructGPT eq. 1, pair by pair: (loss, (pairs right, pairs))."""
  losses, correct, pairs = [], 0.0, 0
  for number, margins in _looped_margins(params, batch):
    count = len(margins) if denominator == "kept" else (
        number * (number - 1) / 2)
    losses.append(-jax.nn.log_sigmoid(margins).sum() / count)
    correct += (margins > 0).sum()
    pairs += len(margins)
  return sum(losses) / len(losses), (correct, pairs)


def _looped_pairs_loss(params, batch):
  """The mean over all pairs of all prompts, each weighing the same."""
  margins = jnp.concatenate([m for _, m in _looped_margins(params, batch)])
  return -jax.nn.log_sigmoid(margins).mean()


class ObjectiveTest(parameterized.TestCase):

  @parameterized.product(
      denominator=("kept", "all_pairs"), largest=(RESPONSES, 16))
  def test_is_the_loop_over_pairs(self, denominator, largest):
    """With K of 2 to 4, and of every size from 2 to 16."""
    state, batch = _state(), _batch()
    if largest == 16:
      batch = _batch(np.arange(2, 17), 16)
    (loss, (correct, pairs)), grads = tiny.jit(jax.value_and_grad(
        lambda p: _looped_loss(p, batch, denominator), has_aux=True)
    )(state.params)
    found, values = _gradients(state, batch, denominator=denominator)
    np.testing.assert_allclose(values["train/rm/loss"], loss, rtol=1e-5)
    self.assertEqual(values["train/rm/pairs"], pairs)
    np.testing.assert_allclose(
        values["train/rm/accuracy"], correct / pairs, rtol=1e-6)
    chex.assert_trees_all_close(found, grads, rtol=1e-4, atol=1e-6)

  def test_empty_slots_and_padding_have_no_effect(self):
    batch = _batch()
    empty = ~batch["response_mask"]
    real = batch["mask"] * ~empty[:, 0, :, None]
    other = batch | {
        "tokens": np.where(
            real, batch["tokens"],
            tiny.tokens(PROMPTS, RESPONSES, LENGTH, seed=5)),
        "mask": real,
        "last_token": np.where(empty, 3, batch["last_token"]),
        "ranks": np.where(empty, 9, batch["ranks"])}
    first, values = _gradients(_state(), batch)
    second, other_values = _gradients(_state(), other)
    chex.assert_trees_all_equal(values, other_values)
    chex.assert_trees_all_close(first, second, atol=1e-7)

  def test_equal_scores_cost_ln_2_and_the_bias_nothing(self):
    state, batch = _state(), _batch()
    flat = scalar.shift_and_scale(state.params, bias=0.0, scale=0.0)
    _, values = _gradients(state.replace(params=flat), batch)
    np.testing.assert_allclose(
        values["train/rm/loss"], np.log(2.0), rtol=1e-6)
    self.assertEqual(values["train/rm/accuracy"], 0.5)
    shifted = scalar.shift_and_scale(state.params, bias=3.0, scale=1.0)
    grads, values = _gradients(state.replace(params=shifted), batch)
    expected, before = _gradients(state, batch)
    np.testing.assert_allclose(
        values["train/rm/loss"], before["train/rm/loss"], rtol=1e-5)
    chex.assert_trees_all_close(grads, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["head"]["bias"], 0.0, atol=1e-6)

  def test_all_tied_is_no_update(self):
    batch = _batch()
    batch["ranks"] = np.ones_like(batch["ranks"])
    grads, values = _gradients(_state(), batch)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0.0)
    self.assertEqual(values["train/rm/loss"], 0.0)

  def test_untied_pairs_equal_brute_force(self):
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 3, (200, 4)).astype(np.int32)
    mask = rng.random((200, 4)) < 0.6
    expected = [
        len(set(row[real].tolist())) > 1 for row, real in zip(ranks, mask)]
    np.testing.assert_array_equal(rm.has_untied_pair(ranks, mask), expected)


class PackingTest(parameterized.TestCase):

  @parameterized.parameters((2, 40, 8, 2), (3, 20, 4, 3), (4, 10, 1, 8))
  def test_prompts_that_share_rows_make_the_same_update(
      self, num_rows, length, max_prompts, num_blocks):
    state, batch = _state(), _batch()
    packed = _packed(
        batch, length=length, num_rows=num_rows, max_prompts=max_prompts)
    self.assertLen(packed["ranks"], num_blocks)
    expected, values = _gradients(state, batch)
    found, packed_values = _gradients(state, packed)
    chex.assert_trees_all_close(packed_values, values, rtol=1e-5)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


class PairsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("kept", 1, 40, 2), ("all_pairs", 1, 40, 2), ("kept", 2, 20, 4),
      ("kept", 2, 10, 1))
  def test_every_pair_weighs_the_same(
      self, denominator, num_rows, length, max_prompts):
    """Not by prompt: a prompt with more pairs has more of the gradient."""
    state, batch = _state(), _batch()
    pairs = batches.untied_pairs(_rows(batch), seed=0)
    packed = _packed_rows(
        pairs, max_responses=2, length=length, num_rows=num_rows,
        max_prompts=max_prompts)
    loss, grads = tiny.jit(jax.value_and_grad(
        lambda p: _looped_pairs_loss(p, batch)))(state.params)
    found, values = _gradients(state, packed, denominator=denominator)
    self.assertEqual(values["train/rm/pairs"], len(pairs))
    self.assertEqual(values["train/rm/prompts"], len(pairs))
    np.testing.assert_allclose(values["train/rm/loss"], loss, rtol=1e-5)
    chex.assert_trees_all_close(found, grads, rtol=1e-4, atol=1e-6)
    by_prompt, _ = _looped_loss(state.params, batch, "kept")
    self.assertGreater(abs(by_prompt - loss), 1e-3)


def _packed(batch, **sizes):
  """The batch's prompts in blocks; writes their first tokens into it."""
  return _packed_rows(_rows(batch), max_responses=RESPONSES, **sizes)


def _packed_rows(rows, **sizes):
  """Prepared comparisons in blocks, all in one batch."""
  examples = batches.comparison_examples(
      rows, None, pad_id=tiny.PAD_ID, **sizes)
  packed = batches.Batches(examples, len(examples))(0)
  packed.pop("row_mask")
  return packed


def _rows(batch):
  """The batch as prepared comparisons, after writing one first token, their
  prompt, into all texts of a block."""
  rows = []
  for tokens, mask, ranks, real in zip(
      batch["tokens"], batch["mask"], batch["ranks"][:, 0],
      batch["response_mask"][:, 0]):
    prompt = tokens[0, :1]
    tokens[:, 0] = prompt
    texts = [t[m > 0] for t, m in zip(tokens[real], mask[real])]
    rows.append({
        "prompt_tokens": prompt, "response_tokens": [t[1:] for t in texts],
        "ranks": ranks[real]})
  return rows


class MicrobatchTest(parameterized.TestCase):

  @parameterized.parameters((2, False), (4, False), (2, True))
  def test_parts_do_not_change_the_update(self, num_microbatches, is_packed):
    batch = _batch()
    if is_packed:
      # one part has more prompts than the other
      batch = _packed(batch, length=40, num_rows=2, max_prompts=8)
      per_block = batch["response_mask"].any(-1).sum(-1)
      self.assertNotEqual(per_block[0], per_block[1])
    expected, whole = _gradients(_state(), batch)
    found, values = _gradients(
        _state(), batch, num_microbatches=num_microbatches)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(values, whole, rtol=1e-5)


class LoopTest(parameterized.TestCase):

  def test_compiles_once_gives_its_buffers_back_and_learns(self):
    state = jax.tree.map(jnp.copy, _state(tiny.adam(3e-2)))
    step = chex.assert_max_traces(rm.make_rm_step(
        tiny.scalar(), tiny.adam(3e-2), denominator="kept",
        num_microbatches=1), n=1)
    step = tiny.jit(step, donate_argnums=0)
    for _ in range(60):
      before = state
      state, values = step(state, _batch())
      for leaf in jax.tree.leaves(before):
        self.assertTrue(leaf.is_deleted())
    self.assertEqual(state.step, 60)
    self.assertGreater(values["train/rm/accuracy"], 0.9)
    self.assertLess(values["train/rm/loss"], 0.4)


if __name__ == "__main__":
  absltest.main()
