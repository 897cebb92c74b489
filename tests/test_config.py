"""Each rule fires with its numbers and keys, and only when it should."""

import dataclasses
import inspect
import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
from ml_collections import ConfigDict

from experiments import common, hh, ppo_ptx
from rlhf_jax import config as config_lib
from rlhf_jax import optimizer, pipeline
from rlhf_jax.config import ConfigError
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.models.transformer import TransformerConfig
from rlhf_jax.ppo_step import PPOSettings


def _config(**overrides):
  """The mini experiment; `a__b=value` sets config.a.b."""
  config = ppo_ptx.get_config()
  for path, value in overrides.items():
    _set(config, path.replace("__", "."), value)
  return config


def _set(config, path, value):
  *parents, last = path.split(".")
  for name in parents:
    config = config[name]
  with config.ignore_type(), config.unlocked():
    config[last] = value


# (key, value, what the message says)
_VIOLATIONS = (
    # stages, and who reads whom
    ("stages", (), "config.stages is empty"),
    ("stages", ("pretrain", "dpo"), "unknown 'dpo'"),
    ("stages", ("pretrain", "pretrain"), "'pretrain' 2 times"),
    ("stages", ("pretrain", "judge"), "config.judge is missing"),
    ("stages", ("sft", "pretrain"), "'pretrain' comes after 'sft'"),
    ("stages", ("sft",), "config.sft.init_from = 'pretrain', but no such"),
    ("stages", ("pretrain", "sft", "rm"),
     "config.rm.collected = 'collect', but no such"),
    ("sft.init_from", "rm", r"config.sft.init_from = 'rm'.*none of"),
    ("collect.policies", (("elsewhere", 1.0),), "config.inputs.elsewhere"),
    ("collect.policies", (("rm", 1.0),), "policies = 'rm'.*none of"),
    ("collect.policies", (), "must be ..stage, weight., ...., each stage once"),
    ("collect.policies", (("sft", 1.0), ("sft", 2.0)), "each stage once"),
    ("collect.policies", (("sft", 0.0),), "weights above 0"),
    ("collect.policies", (("sft", 1.0), 2), "each stage once"),
    ("collect.policies", ("sft", 1.0), "each stage once"),
    ("collect.policies", ((1, 2),), "each stage once"),
    ("collect.labeler", "ann", "config.collect.labeler = 'ann', but no such"),
    ("collect.labeler", "sft", "config.collect.labeler = 'sft'.*none of"),
    ("collect.labeler", "jsonl:/nowhere.jsonl",
     "config.collect.labeler: no file at '/nowhere.jsonl'"),
    ("collect.labeler", "jsonl:/nowhere.jsonl",
     "config.collect.roster: no file at ''"),
    ("collect.num_train_labels", 0, "num_train_labels = 0 must be >= 1"),
    ("collect.num_train_labels", 9,
     "num_train_labels = 9 asks more .* than config.labelers.num_train = 8"),
    ("collect.num_heldout_labels", 5, "config.labelers.num_heldout = 4"),
    ("rm.collected", ("collect@2",), "config.rm.collected = 'collect@2'"),
    ("evaluate.collected", ("rm",), "config.evaluate.collected = 'rm'.*none"),
    ("sft.select", "best", "sft.select = 'best' must be one of"),
    ("sft.select", "rm_score", "no stage of config.stages selects"),
    ("sft.every_eval_steps", 0, "chooses among the evaluated checkpoints, but"),
    ("sft.eval_streams", ("pretrain",), "loss on demonstrations, which"),
    ("ppo.reward_model", "sft", "config.ppo.reward_model = 'sft'"),
    ("ppo.init_from", "nothing", "config.ppo.init_from = 'nothing'"),
    ("evaluate.policies", ("sft", "rm"), "config.evaluate.policies = 'rm'"),
    ("evaluate.policies", ("ppo",), "baseline = 'sft' is not in"),
    ("evaluate.reference", "rm", "config.evaluate.reference = 'rm'"),
    ("evaluate.judge", "judge", "config.evaluate.judge = 'judge', but no"),
    ("evaluate.judge", "rm", "which PPO optimised"),
    ("inputs", {"sft": "/nowhere/sft"}, "'/nowhere/sft' has no done.json"),
    # models
    ("model.num_heads", 3, "d_model = 128 .*num_heads = 3; .*d_model=129"),
    ("rm_model.d_model", 126, "config.rm_model.d_model = 126"),
    ("rm_model.vocab_size", 1000, "vocab_size = 1016 .* = 1000 differ"),
    ("rm_model.num_layers", 2,
     r"config.model.num_layers = 4.*= 2: a reward model of another size needs"
     " its own pretrain and sft chain.*config.inputs.rm_sft"),
    ("model.dtype", "float16", "model.dtype = 'float16' must be one of"),
    ("model.remat", "all", "model.remat = 'all' must be one of"),
    ("model.attention_pattern", "sparse", "attention_pattern = 'sparse'"),
    ("model.attention_kernel", "fused", "attention_kernel = 'fused' must be"),
    ("model.attention_kernel", "cudnn",
     "computes in bfloat16 and config.model.dtype = 'float32'"),
    ("model.band_width", 0, "model.band_width = 0 must be >= 1"),
    ("model.context_length", 1, "context_length = 1 must be >= 2"),
    ("model.vocab_size", 200, "vocab_size = 200 is too small .* 257"),
    ("decode.dtype", "int8", "decode.dtype = 'int8' must be one of"),
    ("rm_model.context_length", 50,
     "max_prompt_tokens = 26 .*= 30 make 56 .*rm_model.context_length = 50"),
    # batches and streams
    ("sft.batch_size", 33, "sft.batch_size = 33 .* multiple of 8 .* use .* 32"),
    ("sft.num_microbatches", 8, r"8 batch shards x 8 microbatches"),
    ("rl_init.pretrain_batch_size", 12,
     "rl_init.pretrain_batch_size = 12 "),
    ("pretrain.eval_batch_size", 12, "pretrain.eval_batch_size = 12 "),
    ("rm.batch_size", 12, "config.rm.batch_size = 12 .*; use e.g. 16"),
    ("rm.eval_batch_size", 100, "rm.eval_batch_size = 100 .* of 8 "),
    ("collect.prompts_per_batch", 31,
     "prompts_per_batch = 31 x 9 responses .* of 8 .*; use e.g. 32"),
    ("evaluate.batch_size", 100, "evaluate.batch_size = 100"),
    ("ppo.batch_size", 120,
     "ppo.batch_size = 120 .* of 32 .*8 batch shards x 4 minibatches x 1 mic"),
    ("ppo.method.num_minibatches", 32, "ppo.batch_size = 128 .* of 256 "),
    ("ppo.ptx_batch_size", 100, "ppo.ptx_batch_size = 100 .* of 32 "),
    ("ppo.method.num_epochs", 3, "ppo.ptx_batch_size = 128 .*96 .*3 epochs"),
    ("ppo.method.num_ptx_microbatches", 8, "128 .*256 .*8 ptx microbatches"),
    ("ppo.ptx_batch_size", 0, "ptx_batch_size = 0, but method.ptx_coef = 1"),
    ("sft.batch_size", 0,
     "sft.batch_size = 0, but config.sft.pretrain_weight = 0.2"),
    ("rl_init.pretrain_batch_size", 0, "pretrain_weight = 0.2 gives pretrain"),
    ("sft.pretrain_weight", 1.5, r"pretrain_weight = 1.5 must be in \[0, 1\]"),
    ("sft.num_steps", 0, "sft.num_steps = 0 and num_epochs = 0"),
    ("sft.eval_streams", ("ppo",), r"eval_streams = \('ppo',\)"),
    # ranges
    ("sft.optimizer.learning_rate", 0.0, "sft.optimizer.learning_rate = 0.0"),
    ("ppo.critic_optimizer.learning_rate", -1.0, "critic_optimizer.*> 0"),
    ("ppo.optimizer.warmup_iters", -1, "optimizer.warmup_iters = -1"),
    ("rm.optimizer.warmup_steps", -1, "rm.optimizer.warmup_steps = -1"),
    ("rm.optimizer.b2", 1.0, r"rm.optimizer.b2 = 1.0 must be in \[0, 1\)"),
    ("sft.dropout_rate", 1.0, r"sft.dropout_rate = 1.0 must be in \[0, 1\)"),
    ("sft.keep_checkpoints", 0, "sft.keep_checkpoints = 0 must be >= 1"),
    ("collect.temperature", 0.0, "collect.temperature = 0.0 must be > 0"),
    ("collect.min_responses", 1, "min_responses = 1 must be >= 2"),
    ("collect.min_responses", 10, "min_responses = 10 and max_responses = 9"),
    ("collect.max_responses", 17, "max_responses = 17 .* within 16"),
    ("rm.max_responses", 8, "rm.max_responses = 8 .*collect.* = 9"),
    ("rm.block_rows", 4, "block_rows = 4 rows of 128 .* 9 .* of 56 .* use 5"),
    ("rm.block_prompts", 0, "rm.block_prompts = 0 must be >= 1"),
    ("rm.denominator", "all", "rm.denominator = 'all' must be one of"),
    ("rm.half", 2, "rm.half = 2 must be 0 or 1"),
    ("rm.batching", "listwise", "rm.batching = 'listwise' must be one of"),
    ("rm.fold", (2, 2), r"rm.fold = \(2, 2\) must be None or \(index, count"),
    ("rm.fold", (0, 1), r"rm.fold = \(0, 1\) must be None or"),
    ("rm.fold", (-1, 3), r"rm.fold = \(-1, 3\) must be None or"),
    ("rm.fold", (0, 2, 3), r"rm.fold = \(0, 2, 3\) must be None or"),
    ("rm.fold", 5, "rm.fold = 5 must be None or"),
    ("rm.fold", (0, 9), r"rm.fold = \(0, 9\) .*num_train = 8 labelers; use"),
    ("rm.max_prompts", 0, r"rm.max_prompts = 0 must be None \(all\) or >= 1"),
    ("rm.max_prompts", 4501, "but at most 4500 are compared .config.collect"),
    ("ppo.reward_unit", "z", "ppo.reward_unit = 'z' must be one of"),
    ("ppo.method.temperature", 0.0, "method.temperature = 0.0 must be > 0"),
    ("ppo.method.clip_eps", 0.0, "method.clip_eps = 0.0 must be > 0"),
    ("ppo.method.gae_lambda", 1.1, r"gae_lambda = 1.1 must be in \[0, 1\]"),
    ("ppo.method.discount", 0.0, r"discount = 0.0 must be in \(0, 1\]"),
    ("ppo.method.kl_coef", -0.1, "kl_coef = -0.1 must be >= 0"),
    ("ppo.method.kl_coef", float("nan"),
     "kl_coef = nan must be a finite number"),
    ("ppo.method.ptx_coef", -1.0, "ptx_coef = -1.0 must be >= 0"),
    ("ppo.method.kl_target", -1.0, "kl_target = -1.0 must be >= 0"),
    ("ppo.method.ema_decay", 1.0, r"ema_decay = 1.0 must be in \[0, 1\)"),
    ("ppo.method.num_minibatches", 0, "num_minibatches = 0 must be >= 1"),
    ("evaluate.temperature", -1.0, "evaluate.temperature = -1.0"),
    # data
    ("data.validation_fraction", 0.9, "= 0.9 and test_fraction = 0.2 sum to 1"),
    ("data.test_fraction", 0.0,
     "test_fraction = 0.0 leaves 'evaluate' no prompts to measure by; use e.g."
     " 0.1, or leave 'evaluate' out of config.stages"),
    ("data.validation_fraction", 0.0, "= 0.0 leaves 'evaluate' no texts to"),
    ("data.test_fraction", 1.0, r"test_fraction = 1.0 must be in \[0, 1\)"),
    ("data.prompts", "csv:x", "data.prompts = 'csv:x' is not a source"),
    ("data.prompts", "collect", "data.prompts = 'collect' is not a source"),
    ("data.pretrain", "tfds:wiki", "data.pretrain = 'tfds:wiki' is not"),
    ("data.pretrain", "jsonl:", "data.pretrain = 'jsonl:' is not a source"),
    ("data.comparisons", "smallworld", "comparisons.* write 'collect'"),
    ("data.pretrain", "jsonl:no.jsonl", "data.pretrain: nothing at 'no.jsonl'"),
    ("data.tokenizer", "no.json", "data.tokenizer: nothing at 'no.json'"),
    ("data.prompts", "jsonl:no.jsonl", "'collect', judged by Smallworld's"),
    ("smallworld.num_people", 0, "smallworld.num_people = 0 must be >= 1"),
    ("smallworld.few_shot_sets", -1, "few_shot_sets = -1 must be >= 0"),
    ("labelers.num_train", 1, "labelers.num_train = 1 must be >= 2"),
    ("labelers.num_heldout", 0, "labelers.num_heldout = 0"),
    # keys
    ("ppo.method.kl_beta", 0.1, "config.ppo.method has unknown kl_beta"),
    ("model.rope", True, "config.model has unknown rope"),
    ("pre_train", {}, "config has unknown pre_train"),
    # mesh
    ("mesh", dict(data=3, fsdp=1, tensor=1), "needs 3 devices, but 8"),
    ("mesh", dict(data=1, fsdp=1, tensor=8),
     "model.num_heads = 4 does not divide over 8 devices"),
    ("mesh", dict(data=1, fsdp=1, tensor=8),
     r"puts 'heads' on 'tensor'\); make that a divisor of 4, as 4"),
    ("decode.axis_rules", (("heads", ("fsdp", "tensor")),),
     "config.model.num_heads = 4 does not divide over 8 devices .*config.decode"
     ".axis_rules puts 'heads' on .'fsdp', 'tensor'.*divisor of 4"),
    ("decode.axis_rules", (("batch", "fsdq"),),
     "config.decode.axis_rules maps 'batch' to unknown 'fsdq'"),
    ("ppo.num_rollout_parts", 0, "ppo.num_rollout_parts = 0 must be >= 1"),
    ("ppo.num_rollout_parts", 3,
     "ppo.batch_size = 128 is not a multiple of 24 .8 batch shards of decoding "
     "x 3 rollout parts; .*; use e.g. 96, .*'batch' in config.decode.axis_ru"),
    ("axis_rules", (("embed", "fdsp"),), "maps 'embed' to unknown 'fdsp'"),
    ("axis_rules", (("width", "fsdp"),), "unknown 'width'"),
)


class RulesTest(parameterized.TestCase):

  def _folder(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    return pathlib.Path(folder.name)

  @parameterized.parameters(*_VIOLATIONS)
  def test_fires(self, key, value, message):
    config = _config()
    _set(config, key, ConfigDict(value) if isinstance(value, dict) else value)
    with self.assertRaisesRegex(ConfigError, message):
      config_lib.validate(config, 8)

  def test_all_violations_come_at_once_one_a_line(self):
    config = _config(sft__batch_size=33, ppo__method__clip_eps=0.0)
    with self.assertRaises(ConfigError) as caught:
      config_lib.validate(config, 8)
    self.assertLen(str(caught.exception).splitlines(), 2)

  def test_folds_of_people_are_not_those_of_smallworld(self):
    config = _config(collect__labeler="export", rm__fold=(0, 10))
    config_lib.validate(config, 8)

  def test_a_reward_model_as_labeler_is_no_group(self):
    config = _config(rm__fold=(0, 5))
    config.collect.labeler = "judge"
    with self.assertRaisesRegex(ConfigError, "has a reward model, which is on"):
      config_lib.validate(config, 8)

  def test_one_evaluation_of_all_rounds(self):
    config = _config()
    config.stages = (*config.stages, "evaluate@2")
    config["evaluate@2"] = config.evaluate
    with self.assertRaisesRegex(ConfigError, "one 'evaluate' measures"):
      config_lib.validate(config, 8)

  def test_a_missing_key_is_named(self):
    config = _config()
    del config.ppo.method["kl_coef"]
    with self.assertRaisesRegex(ConfigError, "ppo.method lacks kl_coef"):
      config_lib.validate(config, 1)

  @parameterized.parameters("data.comparisons", "rm.optimizer", "decode")
  def test_a_missing_sub_tree_is_named(self, path):
    config = _config()
    parent, _, name = path.rpartition(".")
    del (config[parent] if parent else config)[name]
    with self.assertRaisesRegex(ConfigError, f"lacks {name}"):
      config_lib.validate(config, 1)

  def test_kernels_need_their_devices_and_their_pattern(self):
    config = ppo_ptx.get_config("mini")
    config.model.attention_kernel = "flash"
    config_lib.validate(config, 1, platform="tpu")
    with self.assertRaisesRegex(
        config_lib.ConfigError,
        r"= 'flash' runs on TPUs alone and the devices here are CPUs; use one "
        r"of \['plain'\]"):
      config_lib.validate(config, 1, platform="cpu")
    config.model.attention_pattern = "alternating"
    with self.assertRaisesRegex(config_lib.ConfigError, "knows no bands"):
      config_lib.validate(config, 1)

  def test_slices_lie_along_data(self):
    config = _config(mesh__data=2, mesh__fsdp=4)
    config_lib.validate(config, 8, slice_count=2)
    with self.assertRaisesRegex(
        ConfigError, "data=2 is not a multiple of the 4 TPU slices.*"
        "config.mesh.data a multiple of 4.*2 devices of a slice"):
      config_lib.validate(config, 8, slice_count=4)

  def test_decoding_cuts_the_policy_alone_and_batches_its_own_way(self):
    config = _config(
        mesh__data=2, mesh__fsdp=4, axis_rules=(("batch", "fsdp"),),
        decode__axis_rules=(("batch", "data"), ("heads", ("fsdp", "tensor"))))
    config.rm_model.num_heads = 2
    config.rm.init_from = "rm_sft"
    config.collect.update(prompts_per_batch=4, max_responses=5)
    config_lib.validate(config, 8, check_inputs=False)
    with config.ignore_type():
      config.decode.axis_rules = (("batch", ("data", "fsdp")),)
    with self.assertRaisesRegex(
        ConfigError, "collect.prompts_per_batch = 4 x 5 responses is not a "
        "multiple of 8 .8 batch shards of decoding x 1 rollout parts; .*"
        "; use e.g. 8"):
      config_lib.validate(config, 8, check_inputs=False)

  def test_one_way_out_for_both_rules(self):
    config = _config(ppo__batch_size=100, ppo__num_rollout_parts=3)
    with self.assertRaises(ConfigError) as caught:
      config_lib.validate(config, 8)
    [line] = str(caught.exception).splitlines()
    self.assertIn("use e.g. 96,", line)
    config_lib.validate(
        _config(ppo__batch_size=96, ppo__num_rollout_parts=3,
                ppo__ptx_batch_size=96), 8)

  def test_the_number_proposed_is_valid(self):
    of_16 = {f"{stage}__{key}": 16
             for stage in ("sft", "rl_init")
             for key in ("batch_size", "pretrain_batch_size")}
    of_16 |= dict(rm__batch_size=16)
    config = _config(collect__prompts_per_batch=31, ppo__batch_size=120,
                     **of_16)
    with self.assertRaises(ConfigError) as caught:
      config_lib.validate(config, 16)
    first, second = str(caught.exception).splitlines()
    self.assertIn("use e.g. 32", first)
    self.assertIn("use e.g. 128", second)
    config_lib.validate(
        _config(collect__prompts_per_batch=32, ppo__batch_size=128, **of_16),
        16)

  def test_a_block_of_pairs_needs_room_for_two_responses(self):
    config = _config(rm__batching="pairs", rm__block_rows=1)
    config_lib.validate(config, 8)
    config.rm.batching = "kwise"
    with self.assertRaisesRegex(ConfigError, "block_rows = 1 rows .* use 5"):
      config_lib.validate(config, 8)

  def test_streams_without_weight_need_no_batch(self):
    config_lib.validate(
        _config(ppo__method__ptx_coef=0.0, ppo__ptx_batch_size=0), 8)

  def test_epochs_need_demonstrations_that_weigh(self):
    with self.assertRaisesRegex(
        config_lib.ConfigError, "pretrain.num_epochs = 1 counts demonstra.*"
        "reads none .batch_size = 16, pretrain_weight = 1.0.; set num_steps"):
      config_lib.validate(
          _config(pretrain__num_steps=0, pretrain__num_epochs=1,
                  pretrain__batch_size=16), 8)

  def test_lengths_of_zero_are_named(self):
    with self.assertRaisesRegex(
        config_lib.ConfigError, "max_response_tokens = 0 must be >= 1"):
      config_lib.validate(_config(
          data__max_prompt_tokens=0, data__max_response_tokens=0), 8)

  def test_inputs_replace_stages(self):
    folder = self._folder()
    (folder / "done.json").write_text("{}")
    config = _config(stages=("sft",))
    config.inputs.pretrain = str(folder)
    config_lib.validate(config, 1)

  def test_inputs_may_be_left_open(self):
    config = _config(stages=("ppo", "evaluate"), data__pretrain="jsonl:no")
    config_lib.validate(config, 1, check_inputs=False)
    with self.assertRaisesRegex(ConfigError, "config.inputs.rl_init to the"):
      config_lib.validate(config, 1)

  def test_later_rounds_follow_the_rules_of_their_kind(self):
    config = _config(stages=("pretrain", "sft", "sft@2"))
    with config.unlocked():
      config["sft@2"] = common.sft("mini") | dict(init_from="sft")
    config_lib.validate(config, 8)
    config["sft@2"].batch_size = 33
    with self.assertRaisesRegex(ConfigError, "config.sft@2.batch_size = 33"):
      config_lib.validate(config, 8)

  def test_files_are_found_below_the_root(self):
    root = self._folder()
    (root / "part-0.jsonl").write_text("{}")
    config = _config(data__root=str(root), data__pretrain="jsonl:part-*.jsonl")
    config_lib.validate(config, 1)

  def test_a_judge_stage_is_a_reward_model(self):
    config = _config(stages=("pretrain", "sft", "collect", "rm", "judge",
                             "rl_init", "ppo", "evaluate"),
                     rm__half=0, evaluate__judge="judge")
    with config.unlocked():
      config.judge = common.rm("mini") | dict(half=1)
    config_lib.validate(config, 8)

  def test_no_judge_taught_a_policy(self):
    """Nor one that a policy began as."""
    config = hh.get_config()
    config.ppo.reward_model = "judge"
    refused = lambda message: self.assertRaisesRegex(
        ConfigError, f"config.evaluate.judge = 'judge' is {message}")
    with refused("config.ppo.reward_model, which PPO optimised"):
      config_lib.validate(config, 1, check_inputs=False)
    config.evaluate.policies = ("pretrain", "sft", "rl_init")
    config_lib.validate(config, 1, check_inputs=False)

    config.stages = (*config.stages[:-1], "ppo@2", "evaluate")
    config["ppo@2"] = config.ppo.copy_and_resolve_references()
    config["ppo@2"].update(init_from="ppo", reward_model="rm")
    config.evaluate.policies = ("sft", "ppo@2")
    with refused("config.ppo.reward_model, which PPO optimised"):
      config_lib.validate(config, 1, check_inputs=False)

    config["sft_select"] = common.sft_select("mini") | dict(
        reward_model="judge")
    config.sft.select = "rm_score"
    config.stages = ("pretrain", "sft", "rm", "judge", "sft_select", "evaluate")
    config.evaluate.update(reference="sft", policies=("sft", "sft_select"))
    with refused("config.sft_select.reward_model, which chose a policy"):
      config_lib.validate(config, 1, check_inputs=False)

  def test_a_judge_by_another_name_is_the_same_folder(self):
    config = hh.get_config()
    folder = self._folder()
    config.inputs.update(
        rm=str(folder / "rm"), judge=os.path.relpath(folder / "judge"))
    config_lib.validate(config, 1, check_inputs=False)
    config.inputs.judge = os.path.relpath(folder / "rm")
    with self.assertRaisesRegex(
        ConfigError, "config.evaluate.judge = 'judge' is config.evaluate."
        r"reward_model = 'rm' \(both are .*rm\), which PPO optimised"):
      config_lib.validate(config, 1, check_inputs=False)


class TablesTest(absltest.TestCase):
  """The tables say what the code takes."""

  def test_keys_are_those_of_the_code(self):
    fields = lambda c: {field.name for field in dataclasses.fields(c)}
    arguments = lambda f, known=(): {
        name for name, p in inspect.signature(f).parameters.items()
        if p.kind == p.KEYWORD_ONLY and name not in known}
    adam = arguments(optimizer.make_adam)
    for name, expected in {
        "model": fields(TransformerConfig) - {"dropout_rate"},
        "ppo.method": fields(PPOSettings) - {"eos_id"},
        "rm.optimizer": adam | arguments(optimizer.cosine_adam),
        "ppo.optimizer": adam | {"learning_rate"} | arguments(
            optimizer.ppo_warmup, known=("steps_per_iter",)),
    }.items():
      self.assertSameElements(config_lib.keys_of(name), expected, name)

  def test_stages_and_their_sources_are_those_of_the_code(self):
    self.assertEqual(set(config_lib.STAGES), set(pipeline.STAGES))
    self.assertEqual(set(config_lib.STAGES), set(config_lib.READS))

  def test_smallworld_has_no_comparisons_of_its_own(self):
    self.assertFalse(hasattr(Smallworld, "comparisons"))


class StageKeysTest(parameterized.TestCase):

  @parameterized.parameters(
      ("sft", "sft.batch_size", 64, ["sft.batch_size: 8 -> 64"]),
      ("sft", "model.num_layers", 2, ["model.num_layers: 4 -> 2"]),
      ("rm", "rm_model.num_layers", 2, ["rm_model.num_layers: 4 -> 2"]),
      ("sft", "seed", 1, ["seed: 0 -> 1"]),
      # which checkpoint is the best is seen at these
      ("sft", "sft.every_eval_steps", 7, ["sft.every_eval_steps: 250 -> 7"]),
      ("sft", "sft.max_eval_batches", 7, ["sft.max_eval_batches: 16 -> 7"]),
      ("collect", "decode.dtype", "bfloat16",
       ["decode.dtype: 'float32' -> 'bfloat16'"]),
      ("ppo", "ppo.method.kl_coef", 0.02,
       ["ppo.method.kl_coef: 0.1 -> 0.02"]),
      ("rm", "smallworld.seed", 1, ["smallworld.seed: 0 -> 1"]),
      ("rm", "rm.batching", "pairs", ["rm.batching: 'kwise' -> 'pairs'"]),
      ("rm", "rm.fold", (1, 5), ["rm.fold: None -> [1, 5]"]),
      ("rm", "rm.max_prompts", 9, ["rm.max_prompts: None -> 9"]),
      ("sft", "data.prompt_suffix", "", [r"data.prompt_suffix: '\n' -> ''"]),
  )
  def test_what_a_stage_used_differs(self, stage, key, value, lines):
    old = config_lib.stage_keys(_config(), stage)
    new = _config()
    _set(new, key, value)
    self.assertEqual(
        config_lib.differing(old, config_lib.stage_keys(new, stage)), lines)

  @parameterized.parameters(
      ("sft", "name", "other"),
      ("sft", "mesh.fsdp", 8),
      ("sft", "decode.dtype", "bfloat16"),
      ("sft", "axis_rules", ()),
      ("sft", "rm_model.num_layers", 2),
      ("sft", "ppo.num_iters", 1),
      ("pretrain", "pretrain.every_eval_steps", 7),
      ("sft", "sft.every_save_steps", 7),
      ("sft", "sft.keep_checkpoints", 7),
      ("sft", "sft.num_microbatches", 4),
      ("sft", "model.remat", "block"),
      ("sft", "model.attention_kernel", "flash"),
      ("sft", "data.comparisons", "jsonl:x"),
      ("rm", "model.num_layers", 2),
      ("rm", "rm.eval_batch_size", 8),
      ("ppo", "ppo.method.num_ptx_microbatches", 2),
      ("ppo", "ppo.num_rollout_parts", 2),
  )
  def test_anything_else_does_not(self, stage, key, value):
    old = config_lib.stage_keys(_config(), stage)
    new = _config()
    _set(new, key, value)
    self.assertEqual(old, config_lib.stage_keys(new, stage))

  def test_keys_survive_json(self):
    for stage in _config().stages:
      keys = config_lib.stage_keys(_config(), stage)
      self.assertEqual(json.loads(json.dumps(keys)), keys)

  def test_smallworld_counts_only_where_it_is_used(self):
    config = _config(
        data__tokenizer="t.json", data__pretrain="jsonl:a",
        data__demonstrations="jsonl:b", data__comparisons="jsonl:c")
    self.assertNotIn("smallworld", config_lib.stage_keys(config, "rm"))
    self.assertIn("smallworld", config_lib.stage_keys(config, "ppo"))

  def test_differing_takes_lists_for_tuples_and_names_absent_keys(self):
    old = {"a": {"b": (1, (2,)), "c": 1}}
    new = {"a": {"b": [1, [2]], "d": "x"}}
    self.assertEqual(
        config_lib.differing(old, new),
        ["a.c: 1 -> (absent)", "a.d: (absent) -> 'x'"])


class ValidateIsPureTest(absltest.TestCase):

  def test_no_device_is_asked_for(self):
    asked = []
    with absltest.mock.patch.object(jax, "devices", asked.append):
      config_lib.validate(_config(), 8)
    self.assertEmpty(asked)


if __name__ == "__main__":
  absltest.main()
