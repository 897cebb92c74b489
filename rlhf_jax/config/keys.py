"""Every key of an experiment and its range, checked one by one."""

from collections.abc import Iterator
from typing import Any

from rlhf_jax.config.names import (
    STAGES, Tree, at, is_weighted, kind_of, uses_smallworld,
)
from rlhf_jax.config.values import is_whole, shown
from rlhf_jax.models.attention import KERNELS
from rlhf_jax.models.transformer import (
    ACTIVATIONS, ATTENTION_PATTERNS, NORM_ORDERS, REMAT_POLICIES,
)

_TOP = ("name seed stages inputs init model rm_model mesh axis_rules decode "
        "data smallworld labelers guards profile").split()
_CLAIMS = {
    "anything": lambda x: True,  # of a key that other rules look after
    ">= 0": lambda x: x >= 0,
    ">= 1": lambda x: x >= 1,
    ">= 2": lambda x: x >= 2,
    "> 0": lambda x: x > 0,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in (0, 1]": lambda x: 0 < x <= 1,
    "0 or 1 (a half), or None (all)": lambda x: x in (None, 0, 1),
    "None (all) or >= 1": lambda x: x is None or x >= 1,
    "None (as d_model makes it) or >= 1": lambda x: x is None or x >= 1,
    "None or (index, count) with 0 <= index < count and 2 <= count":
        lambda x: x is None or is_fold(x),
    "((stage, weight), ...), each stage once, weights above 0, as "
    "(('sft', 1.0), ('ppo', 2.0))": is_weighted,
}
_ONE_OF = {  # choices of the keys that are "one of" them
    "reward_unit": ("raw", "sd"),
    "denominator": ("kept", "all_pairs"),
    "batching": ("kwise", "pairs"),
    "dtype": ("float32", "bfloat16"),
    "remat": tuple(REMAT_POLICIES),
    "attention_pattern": ATTENTION_PATTERNS,
    "attention_kernel": KERNELS,
    "activation": tuple(ACTIVATIONS),
    "norm_order": NORM_ORDERS,
    "select": ("last", "loss", "rm_score"),
}
GUARDS = ("not_finite skipped negative_kl large_kl first_ratio clip_frac ended "
          "over_optimised sampler_drift recompiled repeated_batch").split()
_ONE_OF |= dict.fromkeys(GUARDS, ("stop", "warn", "off"))
_BEST = "() or (\"min\" or \"max\", metric), as (\"max\", \"train/ppo/score\")"
_CLAIMS[_BEST] = lambda x: x in ((), []) or is_best(x)
_ADAM = {"> 0": "learning_rate eps clip_norm", "in [0, 1)": "b1 b2"}
_COSINE_ADAM = _ADAM | {
    ">= 0": "weight_decay warmup_steps", "in [0, 1]": "final_fraction"}
_WARMUP_ADAM = _ADAM | {
    ">= 0": "weight_decay warmup_iters", "in (0, 1]": "start_fraction"}
# Sub-tree -> claim -> keys: all keys there are, each with its range. Stages go
# by what STAGES calls them. Batch sizes of unused streams may be 0.
KEYS = {
    "model": {
        ">= 1": "num_layers d_model num_heads vocab_size vocab_multiple "
                "band_width scan_unroll logit_parts",
        ">= 0": "position_offset",
        "None (as d_model makes it) or >= 1": "mlp_size embedding_size",
        "> 0": "init_stddev norm_epsilon",
        ">= 2": "context_length",  # a window predicts its next token
        "one of": "dtype remat attention_pattern attention_kernel activation "
                  "norm_order",
        "anything": "final_norm tied_unembedding scale_by_layer"},
    "init": {"anything": "policy reward_model"},
    "mesh": {"anything": "data fsdp tensor"},
    "decode": {"one of": "dtype", "anything": "axis_rules refill"},
    "data": {
        ">= 1": "max_prompt_tokens max_response_tokens max_prompts_per_user",
        ">= 0": "dedup_prefix_tokens",
        "in [0, 1)": "validation_fraction test_fraction",
        "anything": "root pretrain demonstrations prompts comparisons "
                    "tokenizer prompt_suffix response_prefix "
                    "pack_demonstrations"},
    "smallworld": {
        ">= 1": "num_people num_documents num_demonstrations num_prompts",
        ">= 0": "few_shot_sets few_shot_prompts",
        "anything": "seed"},
    "labelers": {
        ">= 1": "num_heldout",
        ">= 2": "num_train",
        ">= 0": "bias_sd noise_sd heldout_noise_sd tie_margin",
        "anything": "seed"},
    "guards": {"anything": "actions limits"},
    "guards.actions": {"one of": " ".join(GUARDS)},
    "guards.limits": {
        ">= 1": "skipped_updates unclipped_iters",
        "> 0": "max_kl kl_standard_errors first_ratio_deviation "
               "max_clip_frac sampler_drift",
        "in [0, 1]": "min_ended gold_fall distinct_fall"},
    "lm": {
        ">= 0": "batch_size pretrain_batch_size num_steps num_epochs "
                "every_log_steps every_eval_steps every_save_steps",
        ">= 1": "num_microbatches eval_batch_size max_eval_batches "
                "keep_checkpoints",
        "in [0, 1]": "pretrain_weight",
        "in [0, 1)": "dropout_rate",
        "one of": "select",
        _BEST: "keep_best",
        "anything": "init_from eval_streams optimizer"},
    "lm.optimizer": _COSINE_ADAM,
    "collect": {
        ">= 1": "num_prompts num_validation_prompts prompts_per_batch "
                "num_rollout_parts num_train_labels",
        ">= 0": "num_heldout_labels",
        ">= 2": "min_responses max_responses",
        "> 0": "temperature",
        "((stage, weight), ...), each stage once, weights above 0, as "
        "(('sft', 1.0), ('ppo', 2.0))": "policies",
        "anything": "labeler roster"},
    "select": {
        ">= 1": "num_prompts batch_size",
        ">= 0": "temperature",
        "anything": "candidates reward_model"},
    "rm": {
        ">= 1": "batch_size block_rows block_prompts num_epochs "
                "num_microbatches num_row_parts eval_batch_size "
                "keep_checkpoints",
        ">= 2": "max_responses",
        ">= 0": "every_log_steps every_save_steps",
        "0 or 1 (a half), or None (all)": "half",
        "None or (index, count) with 0 <= index < count and 2 <= count":
            "fold",
        "None (all) or >= 1": "max_prompts",
        "one of": "denominator batching",
        _BEST: "keep_best",
        "anything": "init_from collected optimizer"},
    "rm.optimizer": _COSINE_ADAM,
    "ppo": {
        ">= 1": "num_iters batch_size num_rollout_parts keep_checkpoints",
        ">= 0": "ptx_batch_size every_save_steps",
        "one of": "reward_unit",
        _BEST: "keep_best",
        "anything": "init_from reward_model method optimizer "
                    "critic_optimizer"},
    "ppo.method": {
        "> 0": "temperature clip_eps value_clip_eps kl_horizon",
        ">= 0": "kl_coef ptx_coef missing_eos_penalty kl_target",
        ">= 1": "num_epochs num_minibatches num_microbatches "
                "num_ptx_microbatches",
        "in [0, 1]": "gae_lambda",
        "in (0, 1]": "discount",
        "in [0, 1)": "ema_decay",
        "anything": "whiten_advantages"},
    "ppo.optimizer": _WARMUP_ADAM,
    "ppo.critic_optimizer": _WARMUP_ADAM,
    "evaluate": {
        ">= 1": "num_prompts batch_size pretrain_batch_size "
                "max_pretrain_batches",
        ">= 0": "temperature",
        "anything": "policies baseline reference reward_model judge "
                    "collected"},
}


def stage_list_errors(tree: Tree) -> Iterator[str]:
  stages = tuple(tree.get("stages", ()))
  if not stages:
    yield f"config.stages is empty; list some of {tuple(STAGES)}."
  for stage in dict.fromkeys(stages):
    if kind_of(stage) is None:
      yield (f"config.stages has unknown {stage!r}; the stages are "
             f"{tuple(STAGES)}, a later round is as 'ppo@2'.")
    elif kind_of(stage) == "evaluate" and stage != "evaluate":
      yield (f"config.stages has {stage!r}; one 'evaluate' measures the "
             "policies of all rounds, name them in config.evaluate.policies.")
    elif stage not in tree:
      yield (f"config.stages has {stage!r}, but config.{stage} is missing; "
             f"write config.{stage} in the experiment.")
    if stages.count(stage) > 1:
      yield (f"config.stages has {stage!r} {stages.count(stage)} times; a "
             "stage runs once.")


def key_errors(tree: Tree) -> Iterator[str]:
  stages = [name for name in tree if kind_of(name)]  # listed or not
  yield from _set_errors("config", tree, _TOP, extra=stages)
  for path, name in sub_trees(tree):
    found = at(tree, path)
    if isinstance(found, dict):  # else its parent says that it is missing
      yield from _set_errors(f"config.{path}", found, keys_of(name))


def _set_errors(path: str, found, wanted, extra=()) -> Iterator[str]:
  missing = sorted(set(wanted) - set(found))
  unknown = sorted(set(found) - set(wanted) - set(extra))
  if missing:
    yield f"{path} lacks {', '.join(missing)}; set them in the experiment."
  if unknown:
    yield (f"{path} has unknown {', '.join(unknown)}; remove them, or correct "
           f"the spelling: its keys are {', '.join(wanted)}.")


def keys_of(name: str) -> list[str]:
  """All keys of a sub-tree of KEYS."""
  return " ".join(KEYS[name].values()).split()


def range_of(name: str, key: str) -> str:
  """What the values of a key of KEYS are limited to, in words; "" for nothing
  that is said here."""
  claim = next(c for c, keys in KEYS[name].items() if key in keys.split())
  if claim == "one of":
    return f"one of {_ONE_OF[key]}"
  return "" if claim == "anything" else claim


def range_errors(tree: Tree) -> Iterator[str]:
  for path, name in sub_trees(tree):
    if name == "smallworld" and not uses_smallworld(tree):
      continue
    for claim, keys in KEYS[name].items():
      for key in keys.split():
        value = at(tree, path)[key]
        if claim == "one of":
          if value not in _ONE_OF[key]:
            yield (f"config.{path}.{key} = {shown(value)} must be one of "
                   f"{_ONE_OF[key]}.")
        elif not _CLAIMS[claim](value):
          yield f"config.{path}.{key} = {shown(value)} must be {claim}."


def sub_trees(tree: Tree) -> Iterator[tuple[str, str]]:
  """(path in the config, name in KEYS) of every sub-tree that is used."""
  yield from (("model", "model"), ("rm_model", "model"))
  yield from ((name, name) for name in (
      "init", "mesh", "decode", "data", "smallworld", "labelers", "guards",
      "guards.actions", "guards.limits"))
  for stage in tree["stages"]:
    kind = kind_of(stage)
    yield stage, kind
    for name in KEYS:
      if name.startswith(f"{kind}."):
        yield stage + name.removeprefix(kind), name


def is_best(value: Any) -> bool:
  """Whether it is ("min" or "max", metric)."""
  return (isinstance(value, (tuple, list)) and len(value) == 2
          and value[0] in ("min", "max") and isinstance(value[1], str))


def is_fold(value: Any) -> bool:
  """Whether it is (index, count), as `streams.labeler_groups` takes them."""
  if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(
      map(is_whole, value)):
    return False
  index, count = value
  return 2 <= count and 0 <= index < count
