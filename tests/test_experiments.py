"""Experiments: valid as built, the paper's numbers, misspelt keys."""

import importlib
import math
import pathlib
import sys
import tempfile

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import jax
from ml_collections import config_flags
import numpy as np

from experiments import common, first_look, hh, ppo, ppo_ptx
from rlhf_jax import config as config_lib
from rlhf_jax.models.policy import Policy
from rlhf_jax.run import init_params, transformer_config
from tests import dialogues

EXPERIMENTS = ("ppo_ptx", "ppo", "rm", "rm_pairs", "rm_folds", "rounds",
               "labeling", "sft", "sft_select", "pretrain")
# SPEC section 2: parameters, pretraining batch in tokens, learning rate.
TABLE = {
    "125m": (125_226_240, 0.5e6, 6.0e-4),
    "350m": (355_871_744, 0.5e6, 3.0e-4),
    "760m": (760_300_032, 0.5e6, 2.5e-4),
    "1.3b": (1_315_723_264, 1e6, 2.0e-4),
    "2.7b": (2_651_553_280, 1e6, 1.6e-4),
    "6b": (6_658_404_352, 2e6, 1.2e-4),
    "13b": (12_853_386_240, 2e6, 1.0e-4),
    "175b": (174_604_259_328, 3.2e6, 0.6e-4),
}


def _transformer(config, **changes):
  return transformer_config(config.to_dict() | changes, 0.0)


class ValidityTest(parameterized.TestCase):

  @parameterized.product(
      name=(*EXPERIMENTS, "first_look"), device_count=(1, 8))
  def test_mini(self, name, device_count):
    experiment = importlib.import_module(f"experiments.{name}")
    config_lib.validate(experiment.get_config(), device_count)

  def test_a_first_look_is_the_whole_method_with_less_of_it(self):
    less = first_look.get_config().to_dict()
    whole = ppo_ptx.get_config().to_dict()
    changed = {
        f"{part}.{key}" for part in whole if isinstance(whole[part], dict)
        for key in whole[part] if whole[part][key] != less[part][key]}
    self.assertEqual(changed, {
        "smallworld.num_documents", "smallworld.num_demonstrations",
        "smallworld.num_prompts", "pretrain.num_steps", "sft.num_steps",
        "rl_init.num_steps", "collect.num_prompts",
        "collect.num_validation_prompts", "ppo.num_iters",
        "evaluate.num_prompts"})
    self.assertEqual(less.keys(), whole.keys())
    self.assertEqual(less["stages"], whole["stages"])

  @parameterized.product(name=(*EXPERIMENTS, "hh", "hh_rm"), size=tuple(TABLE))
  def test_paper_sizes(self, name, size):
    """On the fewest devices that its mesh allows."""
    config = importlib.import_module(f"experiments.{name}").get_config(size)
    devices = math.prod(common.MESHES[size])
    config_lib.validate(config, devices, check_inputs=False)

  @parameterized.parameters(("1.3b", 16), ("6b", 64), ("175b", 512))
  def test_sizes_on_the_chips_of_their_plans(self, size, devices):
    config_lib.validate(
        ppo_ptx.get_config(size), devices, check_inputs=False)

  def test_fewer_rows_than_batch_shards_are_filled_up(self):
    """The paper's 32 demonstrations a batch on 64 chips, and no minibatch."""
    config = ppo_ptx.get_config("6b")
    mesh = {"data": 4, "fsdp": 16, "tensor": 1}
    self.assertEqual(
        list(config_lib.filled_up(config.to_dict(), mesh)), [
            ("config.sft.batch_size", 32, 64),
            ("config.rl_init.batch_size", 32, 64),
            ("config.rl_init.pretrain_batch_size", 32, 64)])
    config.sft.num_microbatches = 2
    with self.assertRaisesRegex(
        config_lib.ConfigError,
        r"sft.batch_size = 32 is not a multiple of 128 \(64 batch shards"):
      config_lib.validate(config, 64, check_inputs=False)

  @parameterized.parameters("125m", "1.3b", "175b")
  def test_a_6b_reward_model_needs_an_sft_of_its_size(self, size):
    config = ppo_ptx.get_config(size)
    devices = math.prod(common.MESHES[size])
    with self.assertRaisesRegex(config_lib.ConfigError, "inputs.rm_sft"):
      config_lib.validate(config, devices)
    config.rm.init_from = "sft"
    with self.assertRaisesRegex(config_lib.ConfigError, "another size"):
      config_lib.validate(config, devices, check_inputs=False)

  def test_6b_needs_no_other(self):
    config = ppo_ptx.get_config("6b")
    config.model.vocab_size = config.rm_model.vocab_size = 1_016
    config_lib.validate(config, 16)

  def test_a_vocabulary_of_gpt3_needs_text_to_learn_it_from(self):
    config = ppo_ptx.get_config("6b")
    with self.assertRaisesRegex(
        config_lib.ConfigError, "model.vocab_size = 50257.*data.pretrain"):
      config_lib.validate(config, 16)
    config_lib.validate(config, 16, check_inputs=False)  # to plan it

  def test_the_papers_policy_begins_with_what_docs_pods_names(self):
    """Two runs on files as hh.py wants them, and nothing else is asked for."""
    place = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    first, second = hh.get_config("6b"), hh.get_config("1.3b")
    for config in (first, second):
      config.data.root = str(dialogues.write(place / "data"))
    first.stages = ("pretrain", "sft")
    config_lib.validate(first, 64)
    sft = place / "hh_6b" / "sft"
    sft.mkdir(parents=True)
    (sft / "done.json").write_text("{}")
    second.inputs.rm_sft = str(sft)
    config_lib.validate(second, 16)

  @parameterized.parameters(*EXPERIMENTS)
  def test_unknown_size(self, name):
    experiment = importlib.import_module(f"experiments.{name}")
    with self.assertRaisesRegex(ValueError, r"unknown size '7b'.*'6b'"):
      experiment.get_config("7b")


class ParametersTest(parameterized.TestCase):

  @parameterized.parameters(*TABLE)
  def test_counts_are_the_papers(self, size):
    model = _transformer(common.model(size))
    self.assertEqual(model.num_params, TABLE[size][0])

  def test_gpt2_small(self):
    model = _transformer(common.model("125m"), context_length=1024)
    self.assertEqual(model.num_params, 124_439_808)

  def test_initialised_parameters_are_those_counted(self):
    config = _transformer(common.model("mini"), vocab_size=1000, num_layers=2)
    params = jax.eval_shape(
        lambda: init_params(Policy(config), jax.random.key(0)))
    total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    padding = (config.padded_vocab_size - config.vocab_size) * config.d_model
    self.assertGreater(padding, 0)
    self.assertEqual(total - padding, config.num_params)


class PaperTest(parameterized.TestCase):
  """SPEC sections 2 to 5."""

  @parameterized.parameters(*TABLE)
  def test_pretraining(self, size):
    settings = common.pretrain(size)
    _, tokens, rate = TABLE[size]
    self.assertEqual(settings["optimizer"]["learning_rate"], rate)
    self.assertEqual(settings["optimizer"]["weight_decay"], 0.1)
    batch_tokens = settings["pretrain_batch_size"] * 2048
    self.assertBetween(batch_tokens / tokens, 0.95, 1.06)
    self.assertBetween(batch_tokens * settings["num_steps"] / 300e9, .99, 1.01)

  @parameterized.parameters(
      ("1.3b", 9.65e-6, 5e-6, 32, 9e-6),
      ("6b", 9.65e-6, 1.04e-5, 32, 9e-6),
      ("175b", 5.03e-6, 2.45e-6, 8, 5e-6))
  def test_rows(self, size, sft_rate, init_rate, batch_size, critic_rate):
    config = ppo_ptx.get_config(size)
    self.assertEqual(config.sft.optimizer.learning_rate, sft_rate)
    self.assertEqual(config.rl_init.optimizer.learning_rate, init_rate)
    self.assertEqual(config.sft.batch_size, batch_size)
    self.assertEqual(config.rl_init.batch_size, batch_size)
    self.assertEqual(config.ppo.critic_optimizer.learning_rate, critic_rate)
    sft = config.sft
    self.assertEqual((sft.num_epochs, sft.dropout_rate), (16, 0.2))
    self.assertEqual(config.rl_init.num_epochs, 2)
    self.assertEqual(config.rl_init.pretrain_weight, 0.1)
    for stage in (config.sft, config.rl_init, config.rm):
      self.assertEqual(stage.optimizer.final_fraction, 0.1)
      self.assertEqual(stage.optimizer.warmup_steps, 0)
    self.assertEqual(config.rm_model, common.model("6b"))

  @parameterized.parameters("1.3b", "6b", "175b")
  def test_reward_model(self, size):
    config = ppo_ptx.get_config(size)
    self.assertEqual(config.rm.batch_size, 64)
    self.assertEqual(config.rm.num_epochs, 1)
    self.assertEqual(config.rm.optimizer.learning_rate, 9e-6)
    collect = config.collect
    self.assertEqual((collect.min_responses, collect.max_responses), (4, 9))

  @parameterized.parameters("1.3b", "6b", "175b")
  def test_ppo(self, size):
    stage = ppo_ptx.get_config(size).ppo
    method = stage.method
    self.assertEqual((stage.num_iters, stage.batch_size), (500, 512))
    self.assertEqual(stage.ptx_batch_size, 8 * stage.batch_size)
    self.assertEqual((method.num_epochs, method.num_minibatches), (1, 8))
    self.assertEqual((method.kl_coef, method.ptx_coef), (0.02, 27.8))
    self.assertEqual((method.clip_eps, method.value_clip_eps), (0.2, 0.2))
    self.assertEqual((method.discount, method.gae_lambda), (1.0, 0.95))
    self.assertEqual(method.temperature, 1.0)
    self.assertAlmostEqual(method.ema_decay, 0.992, places=3)
    for adam in (stage.optimizer, stage.critic_optimizer):
      self.assertEqual((adam.b1, adam.b2), (0.9, 0.95))
      self.assertEqual((adam.warmup_iters, adam.start_fraction), (10, 0.1))

  def test_plain_ppo_differs_in_one_key(self):
    lines = config_lib.differing(
        ppo_ptx.get_config("1.3b").to_dict(), ppo.get_config("1.3b").to_dict())
    self.assertEqual(lines, [
        "name: 'ppo_ptx_1.3b' -> 'ppo_1.3b'",
        "ppo.method.ptx_coef: 27.8 -> 0.0"])


  def test_pairs_differ_in_batches_alone(self):
    for size in ("mini", "6b"):
      kwise, pairs = common.rm(size), common.rm_pairs(size)
      changed = {key for key in pairs if pairs[key] != kwise[key]}
      self.assertLessEqual(changed, {
          "batching", "batch_size", "block_rows", "num_microbatches",
          "num_row_parts"})
      self.assertEqual(pairs["batching"], "pairs")


class CommandLineTest(absltest.TestCase):

  def _parse(self, *overrides):
    argv = ["main", f"--config={ppo_ptx.__file__}:mini", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    with absltest.mock.patch.object(sys, "argv", argv):
      values(argv)
    return values.config

  def test_overrides(self):
    config = self._parse("--config.ppo.method.kl_coef=0.1",
                         "--config.rm.half=1", "--config.rm.fold=(0,5)",
                         "--config.rm.max_prompts=100", "--config.mesh.fsdp=4")
    self.assertEqual(config.ppo.method.kl_coef, 0.1)
    self.assertEqual(config.rm.half, 1)
    self.assertEqual(config.rm.fold, (0, 5))
    self.assertEqual(config.rm.max_prompts, 100)
    config_lib.validate(config, 4)

  def test_a_misspelt_key_is_named(self):
    with self.assertRaisesRegex(AttributeError, "kl_coeff.*kl_coef"):
      self._parse("--config.ppo.method.kl_coeff=0.1")


if __name__ == "__main__":
  absltest.main()
