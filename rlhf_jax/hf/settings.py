"""The sizes of imported models, put where an experiment leaves them open."""

from collections.abc import Iterator
from typing import Any

import ml_collections

from rlhf_jax.hf import families
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.hf.folder import SPEC, Folder

# Whose model the setting describes.
MODELS = {"policy": "model", "reward_model": "rm_model"}


def filled_in(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """What config.init names decides over config.model and config.rm_model.

  A setting that is None takes the checkpoint's value, and one that is not must
  agree; a context may be longer or shorter. Without a reward model of its own
  config.rm_model takes what it leaves open from config.model.

  Returns:
    (a copy of the experiment, what a person should know of it). An experiment
    that is not understood comes back as it is, for `config.validate` to say so.

  Raises:
    FolderError: a checkpoint cannot be read, or is another model than asked.
  """
  config = ml_collections.ConfigDict(config)
  init = config.get("init")
  trees = [config.get(name) for name in MODELS.values()]
  if not all(isinstance(tree, ml_collections.ConfigDict)
             for tree in (init, *trees)):
    return config, []
  news = []
  for key, name in MODELS.items():
    spec = init.get(key)
    if isinstance(spec, str) and spec.startswith(SPEC):
      with Folder(spec) as folder:
        theirs = families.settings_of(folder.fields)
      news += _fill(config, key, spec, theirs)
    elif name == "rm_model":
      _fill_open(config.rm_model, config.model.to_dict())
  return config, news


def _fill(config, key: str, spec: str, theirs: dict[str, Any]) -> list[str]:
  """Fills one model in; returns what to say."""
  name = MODELS[key]
  tree = config[name]
  _fill_open(tree, theirs | (
      {"vocab_size": config.model.get("vocab_size")}
      if key == "reward_model" else {}))
  free = ("context_length",) + ("vocab_size",) * (key == "reward_model")
  wrong = {own: value for own, value in theirs.items()
           if own in tree and own not in free and tree[own] != value}
  if wrong:
    raise FolderError(
        f"config.init.{key} = {spec!r} is another model than config.{name}: "
        + ", ".join(f"{own} is {value!r}, not {tree[own]!r}"
                    for own, value in wrong.items())
        + ". Set them to what it has, or to None: "
        + " ".join(f"--config.{name}.{own}={value}"
                   for own, value in wrong.items()))
  return list(_news(tree, key, spec, theirs))


def _fill_open(tree, values: dict[str, Any]) -> None:
  for name, value in values.items():
    if name in tree and tree[name] is None:
      tree[name] = value


def _news(tree, key: str, spec: str, theirs: dict[str, Any]) -> Iterator[str]:
  """What was added or cut."""
  yield (f"{key} from {spec}: {theirs['num_layers']} layers of "
         f"{theirs['d_model']}, {theirs['vocab_size']:,} tokens, "
         f"{theirs['context_length']:,} positions")
  for name, what in (("context_length", "positions"),
                     ("vocab_size", "rows of the vocabulary")):
    have, want = theirs[name], tree.get(name)
    if not isinstance(want, int) or have == want:
      continue
    if want < have:
      yield f"{key}: the last {have - want:,} {what} are cut"
    elif name == "context_length":
      yield (f"{key}: {want - have:,} positions are added, which start as "
             "copies of the first and have learnt nothing")
    else:
      yield f"{key}: {want - have:,} {what} are added, all zero"
