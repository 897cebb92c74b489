"""What each key of an experiment holds, checked before any other rule.

The other rules add, divide and look things up: they rely on each key to hold a
value of the right sort. Command-line overrides do, since ml_collections
compares them with the experiment's own value; what an experiment file computes
may be anything.
"""

from collections.abc import Callable, Iterator
from typing import Any

from rlhf_jax.config.keys import GUARDS, keys_of, sub_trees
from rlhf_jax.config.names import Tree, at, kind_of
from rlhf_jax.config.values import is_names, is_real, is_text, is_whole, shown


def _is_bool(value: Any) -> bool:
  return isinstance(value, bool)


def _is_seed(value: Any) -> bool:
  return is_whole(value) and 0 <= value < 2**32


def _is_whole_or_none(value: Any) -> bool:
  return value is None or is_whole(value)


def _is_table(value: Any) -> bool:
  return isinstance(value, dict)


def _is_axis_rules(value: Any) -> bool:
  return isinstance(value, (tuple, list)) and all(
      isinstance(rule, (tuple, list)) and len(rule) == 2 and is_text(rule[0])
      and (rule[1] is None or is_text(rule[1]) or is_names(rule[1]))
      for rule in value)


def _is_anything(value: Any) -> bool:
  del value  # Its range says all.
  return True


_WHOLE = "a whole number of at most 2**53"
_TABLE = "a table of settings"
# What a key must be -> how to tell, and the keys, by name or by sub-tree of
# KEYS and name. All others are whole numbers.
_SORTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    _WHOLE: (is_whole, "mesh.data"),
    f"None or {_WHOLE}": (
        _is_whole_or_none, "max_prompts half mlp_size embedding_size"),
    "a whole number from 0 to 2**32 - 1": (_is_seed, "seed"),
    "a finite number": (
        is_real,
        "init_stddev norm_epsilon validation_fraction test_fraction bias_sd "
        "noise_sd heldout_noise_sd tie_margin pretrain_weight dropout_rate "
        "learning_rate eps clip_norm b1 b2 weight_decay final_fraction "
        "start_fraction temperature clip_eps value_clip_eps kl_horizon kl_coef "
        "ptx_coef missing_eos_penalty kl_target gae_lambda discount ema_decay "
        + " ".join(f"guards.limits.{key}" for key in (
            "max_kl", "kl_standard_errors", "first_ratio_deviation",
            "max_clip_frac", "min_ended", "sampler_drift", "gold_fall",
            "distinct_fall"))),
    "True or False": (
        _is_bool, "pack_demonstrations whiten_advantages final_norm "
        "tied_unembedding scale_by_layer refill profile"),
    "text, without null characters and half surrogate pairs": (
        is_text,
        "name root pretrain demonstrations prompts comparisons tokenizer "
        "prompt_suffix response_prefix init_from labeler roster candidates "
        "policy reward_model baseline reference judge"),
    "a tuple of names, as ('a', 'b')": (
        is_names, "stages eval_streams collected policies"),
    "a tuple of (logical axis, mesh axis, axes or None)": (
        _is_axis_rules, "axis_rules"),
    _TABLE: (
        _is_table, "inputs init model rm_model mesh decode data smallworld "
        "labelers guards actions limits method optimizer critic_optimizer"),
    "anything": (
        _is_anything, "collect.policies fold dtype remat attention_pattern "
        "attention_kernel select reward_unit denominator batching keep_best "
        "activation norm_order "
        + " ".join(f"guards.actions.{key}" for key in GUARDS)),
}
_SORT_OF = {key: (sort, holds)
            for sort, (holds, keys) in _SORTS.items() for key in keys.split()}


def sort_of(*names: str) -> str:
  """What a key must hold, in words, by the first of its known names."""
  return _sort_of(*names)[0]


def _sort_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
  known = [_SORT_OF[name] for name in names if name in _SORT_OF]
  return known[0] if known else (_WHOLE, is_whole)


def stages_errors(tree: Tree) -> Iterator[str]:
  """Of what says which sub-trees there are."""
  yield from _errors("config.stages", ("stages",), tree.get("stages", ()))


def top_errors(tree: Tree) -> Iterator[str]:
  """Of the keys at the top, all stages among them."""
  for key, value in tree.items():
    if kind_of(key):
      if not isinstance(value, dict):
        yield f"config.{key} = {shown(value)} must be {_TABLE}."
    elif key in _SORT_OF:
      yield from _errors(f"config.{key}", (key,), value)


def type_errors(tree: Tree) -> Iterator[str]:
  """Of all keys of the sub-trees, which have all their keys."""
  for name, folder in tree["inputs"].items():
    yield from _errors(f"config.inputs.{name}", ("root",), folder)
  for path, name in sub_trees(tree):
    found = at(tree, path)
    if isinstance(found, dict):  # else its parent says what it must be
      for key in keys_of(name):
        yield from _errors(
            f"config.{path}.{key}", (f"{name}.{key}", key), found[key])


def _errors(path: str, names: tuple[str, ...], value: Any) -> Iterator[str]:
  """What is wrong with the value at `path`, by the first of its known names."""
  sort, holds = _sort_of(*names)
  if not holds(value):
    yield f"{path} = {shown(value)} must be {sort}."
