"""What an experiment imports: rules, and sizes for what it leaves open."""

from collections.abc import Iterator
from typing import Any

from rlhf_jax.config.names import (
    INIT, POLICIES, Tree, active, init_readings,
)
from rlhf_jax.hf import families
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.hf.folder import SPEC, Folder

# Of config.init -> the model that it describes.
MODELS = {"policy": "model", "reward_model": "rm_model"}


def fill_in(tree: Tree) -> list[str]:
  """Puts what config.init names into the `model` and `rm_model` of `tree`.

  A setting that is None takes the checkpoint's value, and one that is not must
  agree; a context may be longer or shorter. Without a reward model of its own,
  an rm_model of no d_model takes all that it leaves open from the model.

  Returns:
    What a person should know. An experiment that is not understood stays as
    it is, for `validate` to say so.

  Raises:
    FolderError: a checkpoint cannot be read, or is another model than asked.
  """
  init = tree.get("init")
  if not all(isinstance(found, dict)
             for found in (init, *map(tree.get, MODELS.values()))):
    return []
  news = []
  for key, name in MODELS.items():
    spec = init.get(key)
    if isinstance(spec, str) and spec.startswith(SPEC):
      with Folder(spec) as folder:
        theirs = families.settings_of(folder.fields)
      news += _fill(tree, key, spec, theirs)
    elif name == "rm_model" and tree[name].get("d_model", 0) is None:
      _fill_open(tree[name], tree["model"])
  return news


def _fill(tree: Tree, key: str, spec: str, theirs: dict[str, Any]) -> list[str]:
  """Fills one model in; returns what to say."""
  name = MODELS[key]
  ours = tree[name]
  free = {"context_length": theirs["context_length"]}
  if key == "reward_model":  # it reads what the policy writes
    free["vocab_size"] = tree["model"].get("vocab_size")
  _fill_open(ours, theirs | free)
  wrong = {own: value for own, value in theirs.items()
           if own in ours and own not in free and ours[own] != value}
  if wrong:
    raise FolderError(
        f"config.init.{key} = {spec!r} is another model than config.{name}: "
        + ", ".join(f"{own} is {value!r}, not {ours[own]!r}"
                    for own, value in wrong.items())
        + ". Set them to what it has: "
        + " ".join(f"--config.{name}.{own}={value}"
                   for own, value in wrong.items()))
  return list(_news(ours, key, spec, theirs))


def _fill_open(ours: Tree, values: dict[str, Any]) -> None:
  for name, value in values.items():
    if name in ours and ours[name] is None:
      ours[name] = value


def _news(
    ours: Tree, key: str, spec: str, theirs: dict[str, Any]) -> Iterator[str]:
  """What it is, and what was added or cut."""
  yield (f"{key} from {spec}: {theirs['num_layers']} layers of "
         f"{theirs['d_model']}, {theirs['vocab_size']:,} tokens, "
         f"{theirs['context_length']:,} positions")
  for name, what in (("context_length", "positions"),
                     ("vocab_size", "rows of the vocabulary")):
    have, want = theirs[name], ours.get(name)
    if not isinstance(want, int) or have == want:
      continue
    if want < have:
      yield f"{key}: the last {have - want:,} {what} are cut"
    elif name == "context_length":
      yield (f"{key}: {want - have:,} positions are added, which start as "
             "copies of the first and have learnt nothing")
    else:
      yield f"{key}: {want - have:,} {what} are added, all zero"


def name_errors(
    tree: Tree, stage: str, key: str, fitting: tuple[str, ...]
) -> Iterator[str]:
  """What is wrong with INIT in a stage's place."""
  name = init_readings(tree, stage)[key]
  if fitting != POLICIES:
    yield (f"{key} = {INIT!r}, but there it must be one of the stages "
           f"{fitting}, for what they measured is read as well; name one.")
  elif not tree["init"][name]:
    yield (f"{key} = {INIT!r}, but config.init.{name} is empty; name a "
           f"checkpoint there, as {SPEC}FOLDER.")


def init_errors(tree: Tree) -> Iterator[str]:
  """Of config.init: what it may say, and that somebody reads it."""
  used = {name for stage in active(tree)
          for name in init_readings(tree, stage).values()}
  first = {"policy": "sft", "reward_model": "rm"}
  for name, spec in tree["init"].items():
    if spec and not spec.removeprefix(SPEC if spec.startswith(SPEC) else spec):
      yield (f"config.init.{name} = {spec!r} must be {SPEC}FOLDER or "
             f"{SPEC}NAME, a checkpoint in Hugging Face's form, or ''.")
    elif spec and name not in used:
      yield (f"config.init.{name} = {spec!r}, but no stage of config.stages "
             f"starts there; set e.g. config.{first[name]}.init_from = "
             f"{INIT!r}, or config.init.{name} = ''.")
  asked = tree["data"]["tokenizer"]
  if tree["init"]["policy"] and asked == "train":
    yield (f"config.init.policy = {tree['init']['policy']!r} knows the ids of "
           "its own tokenizer, but config.data.tokenizer = 'train' makes "
           f"others; set it to {INIT!r}.")
  if not tree["init"]["policy"] and asked == INIT:
    yield (f"config.data.tokenizer = {INIT!r} is that of config.init.policy, "
           "which is empty; name a checkpoint there, or set it to 'train'.")
