"""Laws of meshes: the same numbers, and the same samples, on all of them.

One iteration of PPO-ptx, reward-model and language-model steps on one device
and on eight, by axis rules of two kinds and in as many parts as there can be,
all against the same steps of one device in one part.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import ppo_step, rollout, sharding, train_state, tree
from rlhf_jax.trainers import lm, rm
from tests import tiny

BATCH, PROMPT, RESPONSE = 64, 5, 6
KEY = jax.random.key(3)
# Eight heads and 40 rows of vocabulary, to be cut over all devices.
SIZES = dict(num_heads=8)
POLICY, SCALAR = tiny.policy(**SIZES), tiny.scalar(**SIZES)
# Of these the last block is cut to the places that are read.
UNROLLED = {"scan_unroll": 2}
MOMENTUM = optax.sgd(0.1, momentum=0.9)

# (mesh, kind of rules, parts of a minibatch, of its pretraining rows, of a
# rollout, who else takes a step): each number that divides is somewhere.
CASES = (
    ("one_device", "large", 32, 16, 64, "rm"),
    ("data", "small", 1, 4, 8, "lm"),
    ("data", "large", 2, 1, 4, "rm"),
    ("fsdp", "small", 4, 2, 1, "rm"),
    ("fsdp", "large", 1, 4, 16, "lm"),
    ("fsdp_tensor", "small", 8, 8, 2, "lm"),
    ("fsdp_tensor", "large", 16, 1, 32, "rm"),
    ("all_axes", "small", 2, 2, 16, "rm"),
    ("all_axes", "large", 8, 4, 1, "lm"),
)


def _settings(**changes):
  return tiny.settings(ptx_coef=2.0, **changes)


def _ptx_tokens():
  return tiny.tokens(BATCH, 9, seed=4)


def _prompt_rows():
  tokens, mask = tiny.prompts(BATCH, PROMPT)
  return {"prompt_tokens": tokens, "prompt_mask": mask,
          "row_ids": np.arange(BATCH, dtype=np.int32)}


def _frozen():
  return ppo_step.Frozen(
      reference=tiny.params(POLICY), reward_model=tiny.params(SCALAR))


def _ppo_state():
  return ppo_step.init_state(
      _frozen().reference, _frozen().reward_model, tx=MOMENTUM,
      critic_tx=MOMENTUM, kl_coef=0.05)


def _lm_batch():
  tokens = tiny.tokens(BATCH, 10, seed=1)
  mask = np.arange(10) < 3 + np.arange(BATCH)[:, None] % 8
  return {"demonstrations": {
      "tokens": np.where(mask, tokens, tiny.PAD_ID), "mask": mask,
      "loss_mask": mask & (np.arange(10) > np.arange(BATCH)[:, None] % 3)}}


def _rm_batch():
  """Blocks of one prompt, two rows of two responses each."""
  rng = np.random.default_rng(0)
  texts = 1 + (np.arange(12) >= 6)  # two of six tokens share a row
  shape = (BATCH, 2, 12)
  return {
      "tokens": tiny.tokens(*shape, seed=6),
      "mask": np.broadcast_to(texts, shape).astype(np.int32),
      "last_token": np.broadcast_to(
          np.array([[5, 11, 17, 23]]), (BATCH, 1, 4)).astype(np.int32),
      "ranks": rng.integers(1, 4, (BATCH, 1, 4)).astype(np.int32),
      "response_mask": (
          np.arange(4) < 2 + np.arange(BATCH)[:, None, None] % 3)}


def _make_lm_step(num_microbatches=1):
  return lm.make_lm_step(
      POLICY, MOMENTUM, weights={"demonstrations": 1.0},
      num_microbatches=num_microbatches)


def _make_rm_step(num_microbatches=1):
  return rm.make_rm_step(
      SCALAR, MOMENTUM, denominator="kept", num_microbatches=num_microbatches)


@functools.cache
def _without_mesh():
  """{what: its result} of one device and one part, on the host."""
  generate = tiny.jit(rollout.make_generate(
      POLICY, response_length=RESPONSE, temperature=1.0, eos_id=tiny.EOS_ID))
  sampled = generate(_frozen().reference, KEY, **_prompt_rows())
  step = tiny.jit(ppo_step.make_ppo_step(
      POLICY, SCALAR, MOMENTUM, MOMENTUM, _settings()))
  found = {
      "rollout": sampled,
      "ppo": step(_ppo_state(), _frozen(), sampled, _ptx_tokens(), KEY),
      "lm": tiny.jit(_make_lm_step())(
          train_state.create(_frozen().reference, MOMENTUM), _lm_batch(), KEY),
      "rm": tiny.jit(_make_rm_step())(
          train_state.create(_frozen().reward_model, MOMENTUM), _rm_batch()),
  }
  return jax.device_get(found)


class SameNumbersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    tiny.in_a_hurry(self)
    _without_mesh()  # before one is current

  @parameterized.parameters(*CASES)
  def test_of_every_step(self, name, kind, num_parts, num_ptx_parts,
                         num_rollout_parts, other):
    mesh, rules = tiny.make_mesh(name), tiny.RULES[kind]
    put = lambda x: sharding.put_batch(x, mesh, rules)
    policy, critic = POLICY, SCALAR
    if kind == "large":
      policy, critic = (
          make(**SIZES, **UNROLLED) for make in (tiny.policy, tiny.scalar))
    with sharding.use(mesh, rules):
      frozen, _ = tiny.shard(_frozen(), mesh, rules)
      generate = tiny.make_generate(
          POLICY, mesh, kind, RESPONSE, num_rollout_parts)
      sampled = generate(frozen.reference, KEY, put(_prompt_rows()))
      self._check_rollout(sampled, mesh, rules)

      state, shardings = tiny.shard(_ppo_state(), mesh, rules)
      step = ppo_step.make_ppo_step(
          policy, critic, MOMENTUM, MOMENTUM, _settings(
              num_microbatches=num_parts, num_ptx_microbatches=num_ptx_parts))
      self._check_step("ppo", tiny.jit(
          step, donate_argnums=0, out_shardings=(shardings, None))(
              state, frozen, sampled, put(_ptx_tokens()), KEY))
      make, batch, params = {
          "lm": (_make_lm_step, (put(_lm_batch()), KEY), frozen.reference),
          "rm": (_make_rm_step, (put(_rm_batch()),), frozen.reward_model),
      }[other]
      state, shardings = tiny.shard(
          train_state.create(params, MOMENTUM), mesh, rules)
      self._check_step(other, tiny.jit(
          make(num_parts), donate_argnums=0,
          out_shardings=(shardings, None))(state, *batch))

  def _check_rollout(self, sampled, mesh, rules):
    expected = _without_mesh()["rollout"]
    shards = sharding.batch_shards(mesh.shape, rules)
    for field in ("prompt_tokens", "prompt_mask", "response_tokens",
                  "response_mask"):
      found = getattr(sampled, field)
      np.testing.assert_array_equal(found, getattr(expected, field))
      self.assertEqual(
          found.addressable_shards[0].data.shape[0], BATCH // shards)
    np.testing.assert_allclose(
        sampled.logprobs, expected.logprobs, atol=1e-5)

  def _check_step(self, what, found):
    expected = _without_mesh()[what]
    chex.assert_trees_all_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-4, atol=1e-5)

  def test_no_sample_is_a_near_tie(self):
    """Or another order of sums, of some 1e-6, might flip a token somewhere."""
    sampled = _without_mesh()["rollout"]
    logits = tiny.jit(POLICY.apply)(
        {"params": _frozen().reference}, sampled.tokens, sampled.mask
    )[:, PROMPT - 1:-1]
    noise = jax.vmap(lambda row: jax.vmap(lambda t: jax.random.gumbel(
        jax.random.fold_in(jax.random.fold_in(KEY, row), t),
        logits.shape[-1:]))(jnp.arange(RESPONSE)))(jnp.arange(BATCH))
    first, second = np.moveaxis(jax.lax.top_k(logits + noise, 2)[0], -1, 0)
    chosen = np.argmax(logits + noise, -1)
    mask = sampled.response_mask
    np.testing.assert_array_equal(chosen[mask], sampled.response_tokens[mask])
    self.assertGreater((first - second)[mask].min(), 1e-4)
    self.assertGreater((~mask).sum(), 0)


class Bfloat16Test(parameterized.TestCase):
  """Eight bits of precision: 2^-8 = .004 a number."""

  def setUp(self):
    super().setUp()
    _without_mesh()  # before one is current

  @parameterized.parameters("one_device", "fsdp_tensor")
  def test_a_step_is_close_to_float32(self, name):
    mesh, rules = tiny.make_mesh(name), tiny.RULES["large"]
    put = lambda x: sharding.put_batch(x, mesh, rules)
    policy, critic = (
        make(dtype="bfloat16", **SIZES) for make in (tiny.policy, tiny.scalar))
    with sharding.use(mesh, rules):
      frozen, _ = tiny.shard(_frozen(), mesh, rules)
      state, shardings = tiny.shard(_ppo_state(), mesh, rules)
      step = ppo_step.make_ppo_step(
          policy, critic, MOMENTUM, MOMENTUM, _settings())
      after, values = tiny.jit(step, out_shardings=(shardings, None))(
          state, frozen, put(_without_mesh()["rollout"]), put(_ptx_tokens()),
          KEY)
    exact, exact_values = _without_mesh()["ppo"]
    self._check(name, after, exact, _ppo_state())
    self.assertEqual(values["train/ppo/kl"], 0.0)
    self.assertLessEqual(values["train/ppo/first_ratio_deviation"], 1e-5)
    for figure in ("train/ppo/score", "train/ptx/loss", "train/critic/loss"):
      np.testing.assert_allclose(
          values[figure], exact_values[figure], rtol=0.02, err_msg=figure)

  def _check(self, name, after, exact, before):
    """Updates, not parameters: those hardly move."""
    for model in ("params", "critic"):
      update, exact_update = (
          jax.tree.map(
              lambda new, old: np.asarray(new) - old,
              getattr(x, model), getattr(before, model))
          for x in (after, exact))
      difference = tree.global_norm(
          jax.tree.map(np.subtract, update, exact_update))
      relative = difference / tree.global_norm(exact_update)
      self.assertBetween(relative, 1e-4, 0.05, f"{model} on {name}")


if __name__ == "__main__":
  absltest.main()
