"""Rules that bind several keys: of stages, models and data."""

from collections.abc import Iterator
import glob
import math
import os

from etils import epath

from rlhf_jax import storage
from rlhf_jax.config import imported
from rlhf_jax.config.keys import is_fold
from rlhf_jax.config.names import (
    INIT, LABELERS, MAX_RESPONSES, POLICIES, RANKED, SMALLWORLD, Tree, active,
    is_reward_labeler, kind_of, lm_streams, name_of, nearest, pair_length,
    readings, sources_of, teachers,
)
from rlhf_jax.data import records
from rlhf_jax.data import smallworld
from rlhf_jax.data import sources
from rlhf_jax.models.attention import KERNELS, PLATFORMS


# What a policy and a scalar model with its body have alike.
_BODY = ("num_layers d_model num_heads context_length vocab_multiple mlp_size "
         "activation norm_order norm_epsilon final_norm embedding_size "
         "position_offset scale_by_layer").split()


def _effective(model: Tree, key: str):
  """A setting, or what its None stands for."""
  defaults = {"mlp_size": 4 * model["d_model"],
              "embedding_size": model["d_model"]}
  return defaults.get(key) if model[key] is None else model[key]


def reading_errors(tree: Tree, check_inputs: bool) -> Iterator[str]:
  stages = tree["stages"]
  inputs = {name: path for name, path in tree["inputs"].items() if path}
  for stage in active(tree):
    number = stages.index(stage)
    for key, source, fitting in readings(tree, stage):
      name = name_of(source)
      if source == INIT:
        yield from imported.name_errors(tree, stage, key, fitting)
      elif kind_of(source) and name not in fitting:
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
      refused = list(_unreachable(folder, f"config.inputs.{name}"))
      yield from refused
      if not refused and not (epath.Path(folder) / "done.json").exists():
        yield (f"config.inputs.{name} = {folder!r} has no done.json; name the "
               "folder of a stage that has finished, as RUN/sft.")


def model_errors(tree: Tree) -> Iterator[str]:
  model, rm_model, data = tree["model"], tree["rm_model"], tree["data"]
  for name in ("model", "rm_model"):
    sizes = tree[name]
    width, heads = sizes["d_model"], sizes["num_heads"]
    if heads > 0 and width % heads:
      yield (f"config.{name}.d_model = {width} is not a multiple of "
             f"config.{name}.num_heads = {heads}; use e.g. d_model="
             f"{nearest(width, heads)}.")
    pair = pair_length(tree)
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


def kernel_errors(tree: Tree, platform: str | None) -> Iterator[str]:
  """Of attention kernels that the devices or the model have not; the platform
  is "cpu", "gpu" or "tpu", or None where nothing is run."""
  for name in ("model", "rm_model"):
    sizes = tree[name]
    kernel = sizes["attention_kernel"]
    place = f"config.{name}.attention_kernel = {kernel!r}"
    needed = PLATFORMS.get(kernel)
    if needed and platform not in (None, needed):
      others = [k for k in KERNELS if PLATFORMS.get(k, platform) == platform]
      yield (f"{place} runs on {needed.upper()}s alone and the devices here "
             f"are {platform.upper()}s; use one of {others}.")
    if kernel == "cudnn" and sizes["dtype"] != "bfloat16":
      yield (f"{place} computes in bfloat16 and config.{name}.dtype = "
             f"{sizes['dtype']!r}; use dtype='bfloat16' or "
             "attention_kernel='plain'.")
    if kernel == "flash" and sizes["attention_pattern"] != "dense":
      yield (f"{place} knows no bands and config.{name}.attention_pattern = "
             f"{sizes['attention_pattern']!r}; use 'dense' or "
             "attention_kernel='plain'.")


def data_errors(tree: Tree) -> Iterator[str]:
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
          f"config.data.{kind}", sources.check_weights, data[kind], kind)
  for stage in active(tree):
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


def _unreachable(path: str, name: str) -> Iterator[str]:
  """Why a file or folder in a bucket cannot be looked for, if so."""
  try:
    storage.check(path, name, is_written=False)
  except storage.StorageError as error:
    yield str(error)


def _is_source(kind: str, source: str) -> bool:
  if source == "collect":
    return kind == "comparisons"
  if source == "smallworld":
    return kind != "comparisons"  # those are collected
  form, _, rest = source.partition(":")
  name, _, split = rest.rpartition("/")
  return ((form == "jsonl" and all(p.strip() for p in rest.split(",")))
          or (form == "tfds" and bool(name and split)))


def file_errors(tree: Tree) -> Iterator[str]:
  """Of what has to be there: rows, and a tokenizer or text for one."""
  data = tree["data"]
  if (data["tokenizer"] == "train" and data["pretrain"] == "smallworld"
      and tree["model"]["vocab_size"] > smallworld.MAX_VOCABULARY):
    yield (f"config.model.vocab_size = {tree['model']['vocab_size']}, but no "
           "tokenizer of so many tokens can be trained on Smallworld's text, "
           "which has some 1,300: name text of your own as "
           "config.data.pretrain = 'jsonl:PATH', and perhaps its "
           "config.data.tokenizer = 'tokenizer.json'; or at most "
           f"{smallworld.MAX_VOCABULARY} for model and rm_model.")
  used = set().union(*(sources_of(tree, stage) for stage in tree["stages"]))
  named = [(kind, data["root"], pattern) for kind in sorted(used)
           if data[kind].startswith("jsonl:")
           for pattern, _ in sources.weighted_paths(data[kind])]
  if data["tokenizer"] not in ("train", INIT):
    named += [("tokenizer", "", p) for p in data["tokenizer"].split(",")]
  missing = []
  for key, root, pattern in named:
    path = os.path.join(root, os.path.expanduser(pattern.strip()))
    if "://" in path and key != "tokenizer":
      missing.append(
          f"config.data.{key}: {path!r} is in a bucket, but rows are read from "
          "local files; fetch it, e.g. with 'gcloud storage cp', and name the "
          "copy.")
    elif refused := list(_unreachable(path, f"config.data.{key}")):
      missing += refused
    elif not epath.Path(path).exists() and not glob.glob(path):
      missing.append(
          f"config.data.{key}: nothing at {path!r}; relative paths start "
          f"from {os.path.abspath(root)!r}."
          + " A weight is written as PATH=0.5." * (
              key == "demonstrations" and "=" in pattern))
  yield from missing
  if "demonstrations" in used and not missing:
    yield from _refusals(
        "config.data.demonstrations", sources.file_weights,
        data["demonstrations"], root=data["root"])


def stage_errors(tree: Tree, stage: str) -> Iterator[str]:
  rules = {"lm": _lm_errors, "collect": _collect_errors, "rm": _rm_errors,
           "select": _select_errors, "ppo": _ppo_errors,
           "evaluate": _evaluate_errors}
  return rules[kind_of(stage)](tree, stage)


def _lm_errors(tree: Tree, stage: str) -> Iterator[str]:
  settings = tree[stage]
  for stream, key in lm_streams(settings).items():
    if settings[key] == 0:
      yield (f"config.{stage}.{key} = 0, but config.{stage}.pretrain_weight = "
             f"{settings['pretrain_weight']} gives {stream} weight; use e.g. "
             f"{key}=32, or a weight of {int(stream != 'pretrain')}.")
  if settings["num_steps"] == settings["num_epochs"] == 0:
    yield (f"config.{stage}.num_steps = 0 and num_epochs = 0 leave nothing to "
           "do; set one of them.")
  elif settings["num_steps"] == 0 and (
      settings["batch_size"] == 0
      or "demonstrations" not in lm_streams(settings)):
    yield (f"config.{stage}.num_epochs = {settings['num_epochs']} counts "
           "demonstrations, but the stage reads none (batch_size = "
           f"{settings['batch_size']}, pretrain_weight = "
           f"{settings['pretrain_weight']}); set num_steps.")
  if settings["select"] != "last" and settings["every_eval_steps"] == 0:
    yield (f"config.{stage}.select = {settings['select']!r} chooses among the "
           f"evaluated checkpoints, but config.{stage}.every_eval_steps = 0 "
           "evaluates none on the way; set it, or select the 'last'.")
  main = max(lm_streams(settings), key=lambda stream: (
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
  for group in ("train", "heldout"):
    asked = settings[f"num_{group}_labels"]
    there = tree["labelers"][f"num_{group}"]
    if asked > there and settings["labeler"] == SMALLWORLD:
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
  length, pair = tree["rm_model"]["context_length"], pair_length(tree)
  responses = 2 if settings["batching"] == "pairs" else (
      settings["max_responses"])
  in_row = length // max(pair, 1)
  if 0 < in_row * settings["block_rows"] < responses:
    yield (f"config.{stage}.block_rows = {settings['block_rows']} rows of "
           f"{length} tokens cannot hold {responses} responses of {pair} "
           f"tokens with their prompt; use {-(-responses // in_row)}.")
  rows, parts = settings["block_rows"], settings["num_row_parts"]
  if parts > 0 and rows % parts:
    yield (f"config.{stage}.block_rows = {rows} do not divide into "
           f"num_row_parts = {parts}; use e.g. {math.gcd(rows, parts)}.")
  if name_of(settings["init_from"]) in POLICIES:
    old, new = tree["model"], tree["rm_model"]
    for key in _BODY:
      if _effective(old, key) != _effective(new, key):
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
  fold = settings["fold"] if is_fold(settings["fold"]) else None
  if fold and any(
      is_reward_labeler(tree, name) for name in collected):
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
  if settings["judge"] != LABELERS:
    yield from _judge_errors(tree, stage)
  for split, rows in (("test", "prompts"), ("validation", "texts")):
    fraction = tree["data"][f"{split}_fraction"]
    if fraction == 0:
      yield (f"config.data.{split}_fraction = {fraction} leaves {stage!r} no "
             f"{rows} to measure by; use e.g. 0.1, or leave {stage!r} out of "
             "config.stages.")


def _judge_errors(tree: Tree, stage: str) -> Iterator[str]:
  """Of a judge that taught a policy, by its name or as the same folder."""
  settings, inputs = tree[stage], tree["inputs"]
  judge, place = settings["judge"], inputs.get(settings["judge"])
  taught = [(stage, settings["reward_model"])]
  for policy in settings["policies"]:
    taught += teachers(tree, policy)
  for of, name in taught:
    if judge == name or (
        place and inputs.get(name)
        and storage.is_same_place(place, inputs[name])):
      yield (f"config.{stage}.judge = {judge!r} is "
             f"config.{of}.reward_model"
             + ("" if judge == name else f" = {name!r} (both are {place})")
             + ", which " + ("chose a policy" if kind_of(of) == "select"
                             else "PPO optimised")
             + f"; judge by {LABELERS!r} or by a reward model of its own.")
      return
