"""Every rule that binds several keys of an experiment, checked beforehand.

`with_imported` first takes sizes from the checkpoints that `init` names.
`validate` needs no device and writes nothing; it raises one `ConfigError` that
lists all violations, each with its numbers, its keys and a way out: of what
keys there are, or of what they hold, or else of ranges and rules together.
`stage_keys` and `differing` tell whether a finished stage still fits. By file::

  values.py  whether a value is a number, a text or names
  names.py   what stages there are, what each reads, and whom
  keys.py    every key and its range
  types.py   what each key holds
  imported.py  what checkpoints are named, and the sizes that they decide
  rules.py   rules of stages, models and data
  meshes.py  what must divide over the devices
"""

from collections.abc import Iterable
from typing import Any

import ml_collections

from rlhf_jax.config import imported
from rlhf_jax.config.keys import (
    key_errors, keys_of, range_errors, stage_list_errors,
)
from rlhf_jax.config.meshes import filled_up, mesh_errors
from rlhf_jax.config.names import (
    INIT, POLICIES, READS, REWARD_MODELS, STAGES, Tree, active, asks_people,
    init_readings, is_reward_labeler, kind_of, name_of, readings, sources_of,
    teachers,
)
from rlhf_jax.config.rules import (
    data_errors, file_errors, kernel_errors, model_errors, reading_errors,
    stage_errors,
)
from rlhf_jax.config.types import stages_errors, top_errors, type_errors
from rlhf_jax.data import records

__all__ = (
    "ConfigError", "INIT", "POLICIES", "READS", "REWARD_MODELS", "STAGES",
    "asks_people", "differing", "filled_up", "flat", "keys_of", "name_of",
    "read_by", "stage_keys", "teachers", "unknown_keys", "validate",
    "with_imported",
)
# A checkpoint is selected among those of these settings.
_SELECTS = ("every_eval_steps", "eval_batch_size", "max_eval_batches")
# How often and in how many parts: a finished stage does not depend on it.
_NOT_A_RESULT = frozenset(
    "every_log_steps every_eval_steps every_save_steps keep_checkpoints "
    "keep_best "
    "num_microbatches num_ptx_microbatches num_rollout_parts num_row_parts "
    "eval_batch_size max_eval_batches remat scan_unroll "
    "logit_parts attention_kernel".split())


class ConfigError(ValueError):
  """The experiment contradicts itself, its devices or its inputs."""


def with_imported(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """(a copy of the experiment with the sizes of what it imports, what a person
  should know of them).

  Raises:
    FolderError: a checkpoint cannot be read, or is another model than asked.
  """
  tree = config.to_dict()
  news = imported.fill_in(tree)
  config = config.copy_and_resolve_references()
  for name in imported.MODELS.values():
    if isinstance(tree.get(name), dict):
      config[name] = ml_collections.ConfigDict(tree[name])
  return config, news


def unknown_keys(config: ml_collections.ConfigDict) -> list[str]:
  """What keys a config lacks or has too many, one sub-tree a line: some, if
  it was written by another version."""
  return list(key_errors(config.to_dict()))


def validate(
    config: ml_collections.ConfigDict,
    device_count: int,
    *,
    slice_count: int = 1,
    platform: str | None = None,
    check_inputs: bool = True,
) -> None:
  """Checks an experiment before anything is compiled or written.

  Args:
    config: the experiment, overrides applied.
    device_count: devices of all processes together.
    slice_count: TPU slices that the devices are of.
    platform: what they are, "cpu", "gpu" or "tpu"; None where it is all one.
    check_inputs: also that all inputs are named and there: folders in
      `config.inputs`, data files, a tokenizer. False to plan a run.

  Raises:
    ConfigError: with all that is wrong, one rule a line.
  """
  tree = config.to_dict()
  _raise(stages_errors(tree))
  _raise(stage_list_errors(tree))
  _raise(top_errors(tree))
  _raise(key_errors(tree))
  _raise(imported.open_errors(tree))
  _raise(type_errors(tree))
  _raise((
      *range_errors(tree),
      *reading_errors(tree, check_inputs),
      *imported.init_errors(tree),
      *model_errors(tree),
      *kernel_errors(tree, platform),
      *data_errors(tree),
      *(e for stage in active(tree) for e in stage_errors(tree, stage)),
      *mesh_errors(tree, device_count, slice_count),
      *(file_errors(tree) if check_inputs else ()),
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
      kind_of(stage) == "collect" and is_reward_labeler(tree, stage)):
    names.append("rm_model")
  if any(tree["data"][kind] == "smallworld" for kind in used):
    names.append("smallworld")
  if kind_of(stage) in ("collect", "evaluate"):
    names.append("labelers")
  data = {key: value for key, value in tree["data"].items()
          if key not in records.KINDS or key in used}
  keys = _plain({**{name: tree[name] for name in names}, "data": data})
  if used_init := set(init_readings(tree, stage).values()):
    keys["init"] = {name: tree["init"][name] for name in sorted(used_init)}
  if kind_of(stage) in ("collect", "select", "ppo", "evaluate"):
    keys["decode"] = {"dtype": tree["decode"]["dtype"]}
  if kind_of(stage) == "lm" and tree[stage]["select"] != "last":
    keys[stage] |= {name: tree[stage][name] for name in _SELECTS}
  return keys


def differing(old: Tree, new: Tree) -> list[str]:
  """Lines such as "ppo.method.kl_coef: 0.05 -> 0.02"; lists equal tuples."""
  old, new = flat(old), flat(new)
  show = lambda keys, key: repr(keys[key]) if key in keys else "(absent)"
  return [
      f"{key}: {show(old, key)} -> {show(new, key)}"
      for key in sorted(old.keys() | new.keys())
      if key not in old or key not in new or old[key] != new[key]
  ]


def read_by(config: ml_collections.ConfigDict, stage: str) -> list[str]:
  """The stages whose results `stage` reads."""
  found = readings(config.to_dict(), stage)
  return list(dict.fromkeys(source for _, source, _ in found))


def _raise(errors: Iterable[str]) -> None:
  errors = list(dict.fromkeys(errors))
  if errors:
    raise ConfigError("\n".join(errors))


def flat(tree: Tree, prefix: str = "") -> Tree:
  """{"a": {"b": value}} -> {"a.b": value}, as JSON can hold it."""
  found = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = _plain(value)
  return found


def _plain(value: Any) -> Any:
  """Lists for tuples; what decides over no result is left out of dicts."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items() if k not in _NOT_A_RESULT}
  return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else (
      value)
