"""Every rule that binds several keys of an experiment, checked beforehand.

`validate` needs no device and writes nothing; it raises one `ConfigError` that
lists all violations, each with its numbers, its keys and a way out.
`stage_keys` and `differing` tell whether a finished stage still fits.
"""

from collections.abc import Iterable, Iterator
import glob
import math
import os
from typing import Any

from etils import epath
import ml_collections

from rlhf_jax import sharding
from rlhf_jax.data import records
from rlhf_jax.models.transformer import ATTENTION_PATTERNS, REMAT_POLICIES

# Stage -> which rules its sub-tree follows.
STAGES = {
    "pretrain": "lm", "sft": "lm", "rl_init": "lm", "collect": "collect",
    "rm": "rm", "judge": "rm", "sft_select": "select", "ppo": "ppo",
    "evaluate": "evaluate",
}
READS = {  # the sources of each; those of "collect" when a stage needs them
    "pretrain": "pretrain", "sft": "pretrain demonstrations",
    "rl_init": "pretrain demonstrations", "collect": "prompts",
    "rm": "demonstrations comparisons", "judge": "demonstrations comparisons",
    "sft_select": "prompts",
    "ppo": "prompts pretrain",
    "evaluate": "prompts pretrain demonstrations comparisons",
}
# leave a `config.model`
POLICIES = ("pretrain", "sft", "sft_select", "rl_init", "ppo")
REWARD_MODELS = ("rm", "judge")  # leave a `config.rm_model`
LABELERS = "labelers"  # as evaluate.judge: no model
SMALLWORLD, EXPORT, RANKED = "smallworld", "export", "jsonl:"  # collect.labeler

_TOP = ("name seed stages inputs model rm_model mesh axis_rules decode data "
        "smallworld labelers").split()
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
    "None or (index, count) with 0 <= index < count and 2 <= count":
        lambda x: x is None or _is_fold(x),
    "((stage, weight), ...), each stage once, weights above 0, as "
    "(('sft', 1.0), ('ppo', 2.0))": lambda x: _is_weighted(x),
}
_ONE_OF = {  # choices of the keys that are "one of" them
    "reward_unit": ("raw", "sd"),
    "denominator": ("kept", "all_pairs"),
    "batching": ("kwise", "pairs"),
    "dtype": ("float32", "bfloat16"),
    "remat": tuple(REMAT_POLICIES),
    "attention_pattern": ATTENTION_PATTERNS,
    "select": ("last", "loss", "rm_score"),
}
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
                "band_width scan_unroll",
        "> 0": "init_stddev",
        ">= 2": "context_length",  # a window predicts its next token
        "one of": "dtype remat attention_pattern"},
    "mesh": {"anything": "data fsdp tensor"},
    "decode": {"one of": "dtype", "anything": "axis_rules"},
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
    "lm": {
        ">= 0": "batch_size pretrain_batch_size num_steps num_epochs "
                "every_log_steps every_eval_steps every_save_steps",
        ">= 1": "num_microbatches eval_batch_size max_eval_batches "
                "keep_checkpoints",
        "in [0, 1]": "pretrain_weight",
        "in [0, 1)": "dropout_rate",
        "one of": "select",
        "anything": "init_from eval_streams optimizer"},
    "lm.optimizer": _COSINE_ADAM,
    "collect": {
        ">= 1": "num_prompts num_validation_prompts prompts_per_batch "
                "num_train_labels",
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
                "num_microbatches eval_batch_size keep_checkpoints",
        ">= 2": "max_responses",
        ">= 0": "every_log_steps every_save_steps",
        "0 or 1 (a half), or None (all)": "half",
        "None or (index, count) with 0 <= index < count and 2 <= count":
            "fold",
        "None (all) or >= 1": "max_prompts",
        "one of": "denominator batching",
        "anything": "init_from collected optimizer"},
    "rm.optimizer": _COSINE_ADAM,
    "ppo": {
        ">= 1": "num_iters batch_size keep_checkpoints",
        ">= 0": "ptx_batch_size every_save_steps",
        "one of": "reward_unit",
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
MAX_RESPONSES = 16
# A checkpoint is selected among those of these settings.
_SELECTS = ("every_eval_steps", "eval_batch_size", "max_eval_batches")
# How often and in how many parts: a finished stage does not depend on it.
_NOT_A_RESULT = frozenset(
    "every_log_steps every_eval_steps every_save_steps keep_checkpoints "
    "num_microbatches num_ptx_microbatches eval_batch_size max_eval_batches "
    "remat scan_unroll".split())

Tree = dict[str, Any]


class ConfigError(ValueError):
  """The experiment contradicts itself, its devices or its inputs."""


def validate(
    config: ml_collections.ConfigDict,
    device_count: int,
    process_count: int = 1,
    *,
    check_inputs: bool = True,
) -> None:
  """Checks an experiment before anything is compiled or written.

  Args:
    config: the experiment, overrides applied.
    device_count: devices of all processes together.
    process_count: processes that each load a part of every batch.
    check_inputs: also that all inputs are named and there: folders in
      `config.inputs`, data files, tokenizer. False to plan a run.

  Raises:
    ConfigError: with all that is wrong, one rule a line.
  """
  tree = config.to_dict()
  _raise(_stage_list_errors(tree))
  _raise(_key_errors(tree))
  _raise((
      *_range_errors(tree),
      *_reading_errors(tree, check_inputs),
      *_model_errors(tree),
      *_data_errors(tree),
      *(e for stage in _active(tree) for e in _stage_errors(tree, stage)),
      *_mesh_errors(tree, device_count, process_count),
      *(_file_errors(tree) if check_inputs else ()),
  ))


def stage_keys(config: ml_collections.ConfigDict, stage: str) -> Tree:
  """What the result of `stage` depends on, as JSON can hold it.

  Left out: names, the mesh, cadences, microbatches, other stages and the
  sources that the stage does not read.
  """
  tree = config.to_dict()
  used = sources_of(tree, stage)
  names = ["seed", stage]
  if kind_of(stage) != "rm":
    names.append("model")
  if kind_of(stage) in ("rm", "select", "ppo", "evaluate") or (
      kind_of(stage) == "collect" and _is_reward_labeler(tree, stage)):
    names.append("rm_model")
  if any(tree["data"][kind] == "smallworld" for kind in used):
    names.append("smallworld")
  if kind_of(stage) in ("collect", "evaluate"):
    names.append("labelers")
  data = {key: value for key, value in tree["data"].items()
          if key not in records.KINDS or key in used}
  keys = _plain({**{name: tree[name] for name in names}, "data": data})
  if kind_of(stage) in ("collect", "select", "ppo", "evaluate"):
    keys["decode"] = {"dtype": tree["decode"]["dtype"]}
  if kind_of(stage) == "lm" and tree[stage]["select"] != "last":
    keys[stage] |= {name: tree[stage][name] for name in _SELECTS}
  return keys


def differing(old: Tree, new: Tree) -> list[str]:
  """Lines such as "ppo.method.kl_coef: 0.05 -> 0.02"; lists equal tuples."""
  old, new = _flat(old), _flat(new)
  show = lambda flat, key: repr(flat[key]) if key in flat else "(absent)"
  return [
      f"{key}: {show(old, key)} -> {show(new, key)}"
      for key in sorted(old.keys() | new.keys())
      if key not in old or key not in new or old[key] != new[key]
  ]


def sources_of(tree: Tree, stage: str) -> set[str]:
  """The kinds of records (`config.data`) that a stage's result comes from."""
  learnt = {"pretrain"} if tree["data"]["tokenizer"] == "train" else set()
  return learnt | set(READS[name_of(stage)].split())


def read_by(config: ml_collections.ConfigDict, stage: str) -> list[str]:
  """The stages whose results `stage` reads."""
  readings = _readings(config.to_dict(), stage)
  return list(dict.fromkeys(source for _, source, _ in readings))


def name_of(stage: str) -> str:
  """"ppo@2", a later round, and "rm@pairs", a variant, are "ppo" and "rm"."""
  return stage.partition("@")[0]


def kind_of(stage: str) -> str | None:
  """What STAGES says of a stage, a later round or a variant; else None."""
  _, at, which = stage.partition("@")
  return STAGES.get(name_of(stage)) if which.isalnum() or not at else None


# ------------------------------------------------------------------ shape


def _raise(errors: Iterable[str]) -> None:
  errors = list(dict.fromkeys(errors))
  if errors:
    raise ConfigError("\n".join(errors))


def _stage_list_errors(tree: Tree) -> Iterator[str]:
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


def _active(tree: Tree) -> list[str]:
  """The stages that run here; another run's result stands in for the rest."""
  return [s for s in tree["stages"] if not tree["inputs"].get(s)]


def _sub_trees(tree: Tree) -> Iterator[tuple[str, str]]:
  """(its path in the config, its name in KEYS)."""
  yield from (("model", "model"), ("rm_model", "model"))
  yield from ((name, name) for name in (
      "mesh", "decode", "data", "smallworld", "labelers"))
  for stage in tree["stages"]:
    kind = kind_of(stage)
    yield stage, kind
    for name in KEYS:
      if name.startswith(f"{kind}."):
        yield stage + name.removeprefix(kind), name


def _key_errors(tree: Tree) -> Iterator[str]:
  stages = [name for name in tree if kind_of(name)]  # listed or not
  yield from _set_errors("config", tree, _TOP, extra=stages)
  for path, name in _sub_trees(tree):
    found = _at(tree, path)
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


def _range_errors(tree: Tree) -> Iterator[str]:
  for path, name in _sub_trees(tree):
    if name == "smallworld" and not _uses_smallworld(tree):
      continue
    for claim, keys in KEYS[name].items():
      for key in keys.split():
        value = _at(tree, path)[key]
        if claim == "one of":
          if value not in _ONE_OF[key]:
            yield (f"config.{path}.{key} = {value!r} must be one of "
                   f"{_ONE_OF[key]}.")
        elif not _CLAIMS[claim](value):
          yield f"config.{path}.{key} = {value!r} must be {claim}."


# ------------------------------------------------------------- who reads whom


def _readings(tree: Tree, stage: str) -> Iterator[tuple[str, str, tuple]]:
  """(key, stage named there, the stages that would fit)."""
  settings, kind = tree[stage], kind_of(stage)
  name = lambda key: f"config.{stage}.{key}"
  if kind in ("lm", "rm", "ppo") and settings["init_from"]:
    yield name("init_from"), settings["init_from"], POLICIES
  if kind == "collect":
    if _is_weighted(settings["policies"]):  # else its range is wrong
      for policy, _ in settings["policies"]:
        yield name("policies"), policy, POLICIES
    if _is_reward_labeler(tree, stage):
      yield name("labeler"), settings["labeler"], REWARD_MODELS
  if "comparisons" in sources_of(tree, stage) and (
      tree["data"]["comparisons"] == "collect"):
    for source in settings["collected"]:
      yield name("collected"), source, ("collect",)
  if kind == "select":
    yield name("candidates"), settings["candidates"], ("sft", "rl_init")
  if kind in ("ppo", "select", "evaluate"):
    yield name("reward_model"), settings["reward_model"], REWARD_MODELS
  if kind == "evaluate":
    for policy in settings["policies"]:
      yield name("policies"), policy, POLICIES
      if name_of(policy) == "ppo" and policy in tree["stages"]:
        yield (f"config.{policy}.reward_model", tree[policy]["reward_model"],
               REWARD_MODELS)
    yield name("reference"), settings["reference"], POLICIES
    if settings["judge"] != LABELERS:
      yield name("judge"), settings["judge"], REWARD_MODELS


def _reading_errors(tree: Tree, check_inputs: bool) -> Iterator[str]:
  stages = tree["stages"]
  inputs = {name: path for name, path in tree["inputs"].items() if path}
  for stage in _active(tree):
    number = stages.index(stage)
    for key, source, fitting in _readings(tree, stage):
      name = name_of(source)
      if kind_of(source) and name not in fitting:
        yield (f"{key} = {source!r}, which is none of the {fitting} that fit; "
               "name one of them.")
      elif source in inputs or source in stages[:number]:
        continue
      elif source in stages:
        yield (f"{key} = {source!r} comes after {stage!r} in config.stages = "
               f"{tuple(stages)}; list {source!r} before it.")
      elif check_inputs:
        yield (f"{key} = {source!r}, but no such stage comes before {stage!r} "
               f"in config.stages = {tuple(stages)}; list it there, or set "
               f"config.inputs.{source} to the folder of a finished one.")
  if check_inputs:
    for name, folder in inputs.items():
      if not (epath.Path(folder) / "done.json").exists():
        yield (f"config.inputs.{name} = {folder!r} has no done.json; name the "
               "folder of a stage that has finished, as RUN/sft.")


# ------------------------------------------------------------- models and data


def _model_errors(tree: Tree) -> Iterator[str]:
  model, rm_model, data = tree["model"], tree["rm_model"], tree["data"]
  for name in ("model", "rm_model"):
    sizes = tree[name]
    width, heads = sizes["d_model"], sizes["num_heads"]
    if heads > 0 and width % heads:
      yield (f"config.{name}.d_model = {width} is not a multiple of "
             f"config.{name}.num_heads = {heads}; use e.g. d_model="
             f"{_nearest(width, heads)}.")
    pair = _pair_length(tree)
    if pair > sizes["context_length"]:
      yield (
          f"config.data.max_prompt_tokens = {data['max_prompt_tokens']} and "
          f"max_response_tokens = {data['max_response_tokens']} make {pair} "
          f"tokens, more than config.{name}.context_length = "
          f"{sizes['context_length']}; lower them or raise it.")
  if model["vocab_size"] != rm_model["vocab_size"]:
    yield (f"config.model.vocab_size = {model['vocab_size']} and "
           f"config.rm_model.vocab_size = {rm_model['vocab_size']} differ; "
           "both models read the same tokens, so make them equal.")


def _data_errors(tree: Tree) -> Iterator[str]:
  data = tree["data"]
  held_out = data["validation_fraction"] + data["test_fraction"]
  if held_out >= 1:
    yield (f"config.data.validation_fraction = {data['validation_fraction']} "
           f"and test_fraction = {data['test_fraction']} sum to {held_out:g}; "
           "keep the sum below 1, the rest is the training split.")
  if data["tokenizer"] == "train" and tree["model"]["vocab_size"] < 257:
    yield (f"config.model.vocab_size = {tree['model']['vocab_size']} is too "
           "small for config.data.tokenizer = 'train': 256 bytes and the end "
           "need 257.")
  for kind in records.KINDS:
    if not _is_source(kind, data[kind]):
      first = "collect" if kind == "comparisons" else "smallworld"
      yield (f"config.data.{kind} = {data[kind]!r} is not a source of {kind}; "
             f"write '{first}', 'jsonl:PATH[,PATH...]' or 'tfds:NAME/SPLIT'.")
    elif data[kind].startswith("jsonl:"):
      yield from _refusals(
          f"config.data.{kind}", records.check_weights, data[kind], kind)
  for stage in _active(tree):
    asked = {"collect": "labeler", "evaluate": "judge"}.get(kind_of(stage))
    if (asked and tree[stage][asked] in (LABELERS, SMALLWORLD)
        and data["prompts"] != "smallworld"):
      yield (f"config.stages has {stage!r}, judged by Smallworld's labelers, "
             f"but config.data.prompts = {data['prompts']!r}; use "
             "'smallworld', or people (config.collect.labeler = 'export'), "
             "or give comparisons as data and a reward model as "
             "config.evaluate.judge.")


def _refusals(key: str, check, *args, **kwargs) -> Iterator[str]:
  """What `check` says, as errors of a key."""
  try:
    check(*args, **kwargs)
  except records.DataError as error:
    yield f"{key}: {error}."


def _is_source(kind: str, source: str) -> bool:
  if source == "collect":
    return kind == "comparisons"
  if source == "smallworld":
    return kind != "comparisons"  # those are collected
  form, _, rest = source.partition(":")
  name, _, split = rest.rpartition("/")
  return (form == "jsonl" and all(p.strip() for p in rest.split(","))
          or form == "tfds" and bool(name and split))


def _uses_smallworld(tree: Tree) -> bool:
  return any(tree["data"][kind] == "smallworld"
             for stage in tree["stages"] for kind in sources_of(tree, stage))


def _file_errors(tree: Tree) -> Iterator[str]:
  data = tree["data"]
  used = set().union(*(sources_of(tree, stage) for stage in tree["stages"]))
  named = [(kind, data["root"], pattern) for kind in sorted(used)
           if data[kind].startswith("jsonl:")
           for pattern, _ in records.weighted_paths(data[kind])]
  if data["tokenizer"] != "train":
    named += [("tokenizer", "", p) for p in data["tokenizer"].split(",")]
  missing = []
  for key, root, pattern in named:
    path = os.path.join(root, os.path.expanduser(pattern.strip()))
    if not os.path.exists(path) and not glob.glob(path):
      missing.append(
          f"config.data.{key}: nothing at {path!r}; relative paths start "
          f"from {os.path.abspath(root)!r}."
          + " A weight is written as PATH=0.5." * (
              key == "demonstrations" and "=" in pattern))
  yield from missing
  if "demonstrations" in used and not missing:
    yield from _refusals(
        "config.data.demonstrations", records.file_weights,
        data["demonstrations"], root=data["root"])


# --------------------------------------------------------------------- stages


def _stage_errors(tree: Tree, stage: str) -> Iterator[str]:
  rules = {"lm": _lm_errors, "collect": _collect_errors, "rm": _rm_errors,
           "select": _select_errors, "ppo": _ppo_errors,
           "evaluate": _evaluate_errors}
  return rules[kind_of(stage)](tree, stage)


def _lm_streams(settings: Tree) -> dict[str, str]:
  """Stream -> the key of its batch size, for streams with weight."""
  weight = settings["pretrain_weight"]
  streams = {}
  if weight < 1:
    streams["demonstrations"] = "batch_size"
  if weight > 0:
    streams["pretrain"] = "pretrain_batch_size"
  return streams


def _lm_errors(tree: Tree, stage: str) -> Iterator[str]:
  settings = tree[stage]
  for stream, key in _lm_streams(settings).items():
    if settings[key] == 0:
      yield (f"config.{stage}.{key} = 0, but config.{stage}.pretrain_weight = "
             f"{settings['pretrain_weight']} gives {stream} weight; use e.g. "
             f"{key}=32, or a weight of {int(stream != 'pretrain')}.")
  if settings["num_steps"] == settings["num_epochs"] == 0:
    yield (f"config.{stage}.num_steps = 0 and num_epochs = 0 leave nothing to "
           "do; set one of them.")
  elif settings["num_steps"] == 0 and (
      settings["batch_size"] == 0
      or "demonstrations" not in _lm_streams(settings)):
    yield (f"config.{stage}.num_epochs = {settings['num_epochs']} counts "
           "demonstrations, but the stage reads none (batch_size = "
           f"{settings['batch_size']}, pretrain_weight = "
           f"{settings['pretrain_weight']}); set num_steps.")
  if settings["select"] != "last" and settings["every_eval_steps"] == 0:
    yield (f"config.{stage}.select = {settings['select']!r} chooses among the "
           f"evaluated checkpoints, but config.{stage}.every_eval_steps = 0 "
           "evaluates none on the way; set it, or select the 'last'.")
  main = max(_lm_streams(settings), key=lambda stream: (
      settings["pretrain_weight"] if stream == "pretrain"
      else 1 - settings["pretrain_weight"]))
  if settings["select"] == "loss" and main not in settings["eval_streams"]:
    yield (f"config.{stage}.select = 'loss' goes by the loss on {main}, which "
           f"config.{stage}.eval_streams = {tuple(settings['eval_streams'])} "
           "does not measure; add it, or select the 'last'.")
  if settings["select"] == "rm_score" and not any(
      kind_of(name) == "select" and tree[name]["candidates"] == stage
      for name in tree["stages"]):
    yield (f"config.{stage}.select = 'rm_score', but no stage of config.stages "
           "selects; list 'sft_select' after the reward model, or select by "
           "'loss'.")
  unknown = set(settings["eval_streams"]) - {"pretrain", "demonstrations"}
  if unknown or not settings["eval_streams"]:
    yield (f"config.{stage}.eval_streams = {tuple(settings['eval_streams'])} "
           "must be some of ('pretrain', 'demonstrations').")


def _collect_errors(tree: Tree, stage: str) -> Iterator[str]:
  settings = tree[stage]
  low, high = settings["min_responses"], settings["max_responses"]
  if not low <= high <= MAX_RESPONSES:
    yield (f"config.{stage}.min_responses = {low} and max_responses = {high} "
           f"must rise and stay within {MAX_RESPONSES}; the paper has 4 and 9.")
  for group in ("train", "heldout") if settings["labeler"] == SMALLWORLD else ():
    asked = settings[f"num_{group}_labels"]
    there = tree["labelers"][f"num_{group}"]
    if asked > there:
      yield (f"config.{stage}.num_{group}_labels = {asked} asks more labelers "
             f"of a prompt than config.labelers.num_{group} = {there}; lower "
             "it to that.")
  if settings["labeler"].startswith(RANKED):
    for key, path in (("labeler", settings["labeler"].removeprefix(RANKED)),
                      ("roster", settings["roster"])):
      if not os.path.isfile(path):
        yield (f"config.{stage}.{key}: no file at {path!r}; name the ranked "
               "tasks as labeler=jsonl:FILE and who may label as roster=FILE, "
               "lines of {\"labeler_id\": ..., \"group\": \"train\" or "
               "\"heldout\"}.")


def asks_people(labeler: str) -> bool:
  """Whether people rank, by config.collect.labeler."""
  return labeler == EXPORT or labeler.startswith(RANKED)


def _is_reward_labeler(tree: Tree, stage: str) -> bool:
  labeler = tree[stage]["labeler"]
  return labeler != SMALLWORLD and not asks_people(labeler)


def _select_errors(tree: Tree, stage: str) -> Iterator[str]:
  source = tree[stage]["candidates"]
  if source in tree and tree[source]["select"] != "rm_score":
    yield (f"config.{stage}.candidates = {source!r} keeps no candidates: "
           f"config.{source}.select = {tree[source]['select']!r}; set it to "
           "'rm_score'.")


def _rm_errors(tree: Tree, stage: str) -> Iterator[str]:
  settings = tree[stage]
  if settings["max_responses"] > MAX_RESPONSES:
    yield (f"config.{stage}.max_responses = {settings['max_responses']} is "
           f"more than {MAX_RESPONSES}; the paper has 9.")
  collected = [name for name in settings["collected"] if name in tree["stages"]]
  for name in collected if tree["data"]["comparisons"] == "collect" else ():
    if settings["max_responses"] < tree[name]["max_responses"]:
      yield (f"config.{stage}.max_responses = {settings['max_responses']} "
             f"cannot hold config.{name}.max_responses = "
             f"{tree[name]['max_responses']}; raise it to that.")
  if tree["data"]["comparisons"] == "collect" and collected:
    yield from _learning_errors(tree, stage, collected)
  length, pair = tree["rm_model"]["context_length"], _pair_length(tree)
  responses = 2 if settings["batching"] == "pairs" else (
      settings["max_responses"])
  in_row = length // max(pair, 1)
  if 0 < in_row * settings["block_rows"] < responses:
    yield (f"config.{stage}.block_rows = {settings['block_rows']} rows of "
           f"{length} tokens cannot hold {responses} responses of {pair} "
           f"tokens with their prompt; use {-(-responses // in_row)}.")
  if name_of(settings["init_from"]) in POLICIES:
    old, new = tree["model"], tree["rm_model"]
    for key in ("num_layers", "d_model", "num_heads", "context_length",
                "vocab_multiple"):
      if old[key] != new[key]:
        yield (
            f"config.{stage}.init_from = {settings['init_from']!r} has "
            f"config.model.{key} = {old[key]}, but config.rm_model.{key} = "
            f"{new[key]}: a reward model of another size needs its own "
            f"pretrain and sft chain; set config.{stage}.init_from='rm_sft' "
            "and config.inputs.rm_sft to the folder of an sft of that size.")
        break


def _learning_errors(
    tree: Tree, stage: str, collected: list[str]) -> Iterator[str]:
  """What `collected` cannot give a reward model."""
  settings = tree[stage]
  labelers = [tree[name]["labeler"] for name in collected]
  fold = settings["fold"] if _is_fold(settings["fold"]) else None
  if fold and any(
      _is_reward_labeler(tree, name) for name in collected):
    yield (f"config.{stage}.fold = {tuple(fold)} deals labelers "
           f"into groups, but {labelers} has a reward model, which is one; "
           "set it to None.")
  elif fold and set(labelers) == {SMALLWORLD} and (
      fold[1] > tree["labelers"]["num_train"]):
    yield (f"config.{stage}.fold = {tuple(fold)} makes more groups than "
           f"config.labelers.num_train = {tree['labelers']['num_train']} "
           "labelers; use as many at most.")
  most = max(tree[name]["num_prompts"] for name in collected)
  if settings["max_prompts"] and settings["max_prompts"] > most:
    yield (f"config.{stage}.max_prompts = {settings['max_prompts']}, but at "
           f"most {most} are compared (config.{collected[0]}.num_prompts); "
           "lower it, or set it to None for all.")


def _ppo_errors(tree: Tree, stage: str) -> Iterator[str]:
  settings = tree[stage]
  ptx_coef = settings["method"]["ptx_coef"]
  if ptx_coef > 0 and settings["ptx_batch_size"] == 0:
    yield (f"config.{stage}.ptx_batch_size = 0, but method.ptx_coef = "
           f"{ptx_coef}; use e.g. ptx_batch_size={settings['batch_size']}, or "
           "ptx_coef=0.")


def _evaluate_errors(tree: Tree, stage: str) -> Iterator[str]:
  settings = tree[stage]
  if settings["baseline"] not in settings["policies"]:
    yield (f"config.{stage}.baseline = {settings['baseline']!r} is not in "
           f"config.{stage}.policies = {tuple(settings['policies'])}; add it.")
  if settings["judge"] == settings["reward_model"]:
    yield (f"config.{stage}.judge = {settings['judge']!r} is "
           f"config.{stage}.reward_model, which PPO optimised; judge by "
           f"{LABELERS!r} or by a reward model of its own.")


# ------------------------------------------------------------- mesh and batches


def _mesh_errors(
    tree: Tree, device_count: int, process_count: int
) -> Iterator[str]:
  rules_by_name = {"config.axis_rules": tree["axis_rules"],
                   "config.decode.axis_rules": tree["decode"]["axis_rules"]}
  unknown = [e for name, rules in rules_by_name.items()
             for e in _axis_rule_errors(name, rules)]
  if unknown:
    yield from unknown
    return
  try:
    sizes = sharding.mesh_sizes(**tree["mesh"], device_count=device_count)
  except ValueError as error:
    yield str(error)
    return
  mesh = dict(zip(sharding.MESH_AXES, sizes))
  for name, rules in rules_by_name.items():
    yield from _divides_errors(tree, name, rules, mesh)
  shards = sharding.batch_shards(mesh, tree["axis_rules"])
  if shards % process_count:
    yield (
        f"{process_count} processes share {shards} batch shards "
        f"({_mesh_text(mesh)}, 'batch' in config.axis_rules); each process "
        "loads its own rows, so make config.mesh.data x fsdp a multiple of "
        f"{process_count}.")
  for stage in _active(tree):
    yield from _batch_errors(tree, stage, shards, mesh)


def _axis_rule_errors(name: str, rules) -> Iterator[str]:
  for logical, axes in rules:
    if logical not in sharding.LOGICAL_AXES:
      yield (f"{name} has unknown {logical!r}; the logical axes are "
             f"{sorted(sharding.LOGICAL_AXES)}.")
    for axis in _axes(axes):
      if axis not in sharding.MESH_AXES:
        yield (f"{name} maps {logical!r} to unknown {axis!r}; the mesh axes "
               f"are {sharding.MESH_AXES}.")


def _divides_errors(tree: Tree, name: str, rules, mesh) -> Iterator[str]:
  for model in ("model", "rm_model"):
    sizes = tree[model]
    rows = -(-(sizes["vocab_size"] + 1) // max(sizes["vocab_multiple"], 1)) * (
        sizes["vocab_multiple"])
    lengths = {
        "layers": ("num_layers", sizes["num_layers"]),
        "embed": ("d_model", sizes["d_model"]),
        "heads": ("num_heads", sizes["num_heads"]),
        "mlp": ("d_model x 4", 4 * sizes["d_model"]),
        "vocab": ("vocab_size padded to vocab_multiple", rows),
    }
    for logical, axes in rules:
      parts = math.prod(mesh[axis] for axis in _axes(axes))
      if logical in lengths and lengths[logical][1] % parts:
        key, length = lengths[logical]
        yield (
            f"config.{model}.{key} = {length} does not divide over {parts} "
            f"devices ({_mesh_text(mesh)}; {name} puts {logical!r} on "
            f"{axes!r}); make that a divisor of {length}, as "
            f"{math.gcd(length, parts)}.")


def _batch_sizes(tree: Tree, stage: str) -> Iterator[tuple[str, int, Tree]]:
  """(key, rows for each of its units, into what the rows are cut)."""
  settings, kind = tree[stage], kind_of(stage)
  if kind in ("lm", "rm"):
    parts = {"microbatches": settings["num_microbatches"]}
    keys = (_lm_streams(settings).values() if kind == "lm"
            else ("batch_size",))
    yield from ((key, 1, parts) for key in keys)
    yield "eval_batch_size", 1, {}
  if kind == "collect":
    yield "prompts_per_batch", settings["max_responses"], {}
  if kind in ("select", "evaluate"):
    yield "batch_size", 1, {}
  if kind == "ppo":
    method = settings["method"]
    yield "batch_size", 1, {
        "minibatches": method["num_minibatches"],
        "microbatches": method["num_microbatches"]}
    if method["ptx_coef"] > 0:
      yield "ptx_batch_size", 1, {
          "epochs": method["num_epochs"],
          "minibatches": method["num_minibatches"],
          "ptx microbatches": method["num_ptx_microbatches"]}


def _batch_errors(
    tree: Tree, stage: str, shards: int, mesh: dict[str, int]
) -> Iterator[str]:
  """Every batch must cut into equal parts, each over all batch shards."""
  for key, rows_each, parts in _batch_sizes(tree, stage):
    size, cuts = tree[stage][key], {"batch shards": shards, **parts}
    multiple = math.prod(cuts.values())
    if size < 1 or multiple < 1 or size * rows_each % multiple == 0:
      continue
    rows = f" x {rows_each} responses" if rows_each > 1 else ""
    unit = multiple // math.gcd(multiple, rows_each)
    yield (
        f"config.{stage}.{key} = {size}{rows} is not a multiple of {multiple} "
        f"({' x '.join(f'{n} {name}' for name, n in cuts.items())}; "
        f"{_mesh_text(mesh)}); use e.g. {_nearest(size, unit)}, or fewer "
        "parts: devices of config.mesh.tensor cut no batch.")


# -------------------------------------------------------------------- helpers


def _pair_length(tree: Tree) -> int:
  data = tree["data"]
  return data["max_prompt_tokens"] + data["max_response_tokens"]


def _is_fold(value: Any) -> bool:
  """Whether it is (index, count), as `streams.labeler_groups` takes them."""
  if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(
      isinstance(number, int) for number in value):
    return False
  index, count = value
  return 2 <= count and 0 <= index < count


def _is_weighted(value: Any) -> bool:
  """Whether it is ((stage, weight), ...), each stage once, weights above 0."""
  if not isinstance(value, (tuple, list)) or not value or not all(
      isinstance(pair, (tuple, list)) and len(pair) == 2
      and isinstance(pair[0], str) and isinstance(pair[1], (int, float))
      and pair[1] > 0 for pair in value):
    return False
  return len({name for name, _ in value}) == len(value)


def _axes(axes: Any) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _mesh_text(mesh: dict[str, int]) -> str:
  return "config.mesh " + " ".join(f"{k}={v}" for k, v in mesh.items())


def _nearest(number: int, unit: int) -> int:
  """The positive multiple of `unit` nearest to `number`."""
  return max(round(number / unit), 1) * unit


def _at(tree: Tree, path: str) -> Any:
  for key in path.split("."):
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def _flat(tree: Tree, prefix: str = "") -> Tree:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = _plain(value)
  return flat


def _plain(value: Any) -> Any:
  """Lists for tuples; what decides over no result is left out of dicts."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items() if k not in _NOT_A_RESULT}
  return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else (
      value)
