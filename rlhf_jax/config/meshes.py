"""Rules of the mesh: what must divide over its devices."""

from collections.abc import Iterable, Iterator
import math

from rlhf_jax import sharding
from rlhf_jax.config.names import Tree, active, kind_of, lm_streams, nearest

_TRAINING, _DECODING = "config.axis_rules", "config.decode.axis_rules"
# What the parts of a batch are called by the one and the other.
_SHARDS = {_TRAINING: "batch shards", _DECODING: "batch shards of decoding"}


def mesh_errors(
    tree: Tree, device_count: int, slice_count: int
) -> Iterator[str]:
  rules_by_name = {_TRAINING: tree["axis_rules"],
                   _DECODING: tree["decode"]["axis_rules"]}
  unknown = [e for name, rules in rules_by_name.items()
             for e in _axis_rule_errors(name, rules)]
  if unknown:
    yield from unknown
    return
  try:
    sizes = sharding.mesh_sizes(
        **tree["mesh"], device_count=device_count, slice_count=slice_count)
  except ValueError as error:
    yield str(error)
    return
  mesh = dict(zip(sharding.MESH_AXES, sizes))
  for name, rules in rules_by_name.items():
    models = ("model", "rm_model") if name == _TRAINING else ("model",)
    yield from _divides_errors(tree, models, name, rules, mesh)
  for stage in active(tree):
    yield from _batch_errors(tree, stage, rules_by_name, mesh)


def _axis_rule_errors(name: str, rules) -> Iterator[str]:
  for logical, axes in rules:
    if logical not in sharding.LOGICAL_AXES:
      yield (f"{name} has unknown {logical!r}; the logical axes are "
             f"{sorted(sharding.LOGICAL_AXES)}.")
    for axis in sharding.mesh_axes([axes]):
      if axis not in sharding.MESH_AXES:
        yield (f"{name} maps {logical!r} to unknown {axis!r}; the mesh axes "
               f"are {sharding.MESH_AXES}.")


def _divides_errors(
    tree: Tree, models: Iterable[str], name: str, rules, mesh
) -> Iterator[str]:
  for model in models:
    sizes = tree[model]
    rows = -(-(sizes["vocab_size"] + 1) // max(sizes["vocab_multiple"], 1)) * (
        sizes["vocab_multiple"])
    lengths = {
        "layers": ("num_layers", sizes["num_layers"]),
        "embed": ("d_model", sizes["d_model"]),
        "heads": ("num_heads", sizes["num_heads"]),
        "mlp": ("mlp_size", sizes["mlp_size"] or 4 * sizes["d_model"]),
        "vocab": ("vocab_size padded to vocab_multiple", rows),
    }
    for logical, axes in rules:
      parts = math.prod(mesh[axis] for axis in sharding.mesh_axes([axes]))
      if logical in lengths and lengths[logical][1] % parts:
        key, length = lengths[logical]
        yield (
            f"config.{model}.{key} = {length} does not divide over {parts} "
            f"devices ({_mesh_text(mesh)}; {name} puts {logical!r} on "
            f"{axes!r}); make that a divisor of {length}, as "
            f"{math.gcd(length, parts)}.")


def _batch_sizes(
    tree: Tree, stage: str
) -> Iterator[tuple[str, int, str, Tree]]:
  """(key, rows for each of its units, the rules by which they lie, into what
  else they are cut)."""
  settings, kind = tree[stage], kind_of(stage)
  if kind in ("lm", "rm"):
    parts = {"microbatches": settings["num_microbatches"]}
    keys = (lm_streams(settings).values() if kind == "lm"
            else ("batch_size",))
    yield from ((key, 1, _TRAINING, parts) for key in keys)
    yield "eval_batch_size", 1, _TRAINING, {}
  if kind == "collect":
    yield "prompts_per_batch", settings["max_responses"], _TRAINING, {}
    yield "prompts_per_batch", settings["max_responses"], _DECODING, {
        "rollout parts": settings["num_rollout_parts"]}
  if kind == "evaluate":
    yield "pretrain_batch_size", 1, _TRAINING, {}
  if kind in ("select", "evaluate"):
    for rules in (_TRAINING, _DECODING):
      yield "batch_size", 1, rules, {}
  if kind == "ppo":
    method = settings["method"]
    yield "batch_size", 1, _TRAINING, {
        "minibatches": method["num_minibatches"],
        "microbatches": method["num_microbatches"]}
    yield "batch_size", 1, _DECODING, {
        "rollout parts": settings["num_rollout_parts"]}
    if method["ptx_coef"] > 0:
      yield "ptx_batch_size", 1, _TRAINING, {
          "epochs": method["num_epochs"],
          "minibatches": method["num_minibatches"],
          "ptx microbatches": method["num_ptx_microbatches"]}


def is_filled_up(tree: Tree, stage: str, key: str, shards: int) -> bool:
  """Whether a batch has fewer rows than batch shards and is filled up with
  rows that count for nothing: of language and reward models in one part."""
  return (
      key in ("batch_size", "pretrain_batch_size")
      and kind_of(stage) in ("lm", "rm")
      and tree[stage]["num_microbatches"] == 1
      and 1 <= tree[stage][key] < shards)


def filled_up(
    tree: Tree, mesh_shape: Tree
) -> Iterator[tuple[str, int, int]]:
  """(key, its rows, rows of the filled-up batch) of every such batch."""
  shards = sharding.batch_shards(mesh_shape, tree["axis_rules"])
  for stage in active(tree):
    for key, _, rules, _ in _batch_sizes(tree, stage):
      if rules == _TRAINING and is_filled_up(tree, stage, key, shards):
        yield f"config.{stage}.{key}", tree[stage][key], shards


def _batch_errors(
    tree: Tree, stage: str, rules_by_name: Tree, mesh: dict[str, int]
) -> Iterator[str]:
  """Every batch must cut into equal parts, each over all batch shards."""
  found, units = [], {}
  for key, rows_each, rules, parts in _batch_sizes(tree, stage):
    shards = sharding.batch_shards(mesh, rules_by_name[rules])
    cuts = {_SHARDS[rules]: shards, **parts}
    multiple = math.prod(cuts.values())
    if tree[stage][key] < 1 or multiple < 1:
      continue  # another rule's, or not used
    if is_filled_up(tree, stage, key, shards):
      continue
    found.append((key, rows_each, rules, cuts))
    units[key] = math.lcm(
        units.get(key, 1), multiple // math.gcd(multiple, rows_each))
  for key, rows_each, rules, cuts in found:
    size, multiple = tree[stage][key], math.prod(cuts.values())
    if key not in units or size * rows_each % multiple == 0:
      continue
    rows = f" x {rows_each} responses" if rows_each > 1 else ""
    yield (
        f"config.{stage}.{key} = {size}{rows} is not a multiple of {multiple} "
        f"({' x '.join(f'{n} {name}' for name, n in cuts.items())}; "
        f"{_mesh_text(mesh)}); use e.g. {nearest(size, units[key])}, or fewer "
        f"parts: only mesh axes of 'batch' in {rules} cut a batch.")
    units.pop(key)  # one message a key: its way out suits all its rules


def _mesh_text(mesh: dict[str, int]) -> str:
  return "config.mesh " + " ".join(f"{k}={v}" for k, v in mesh.items())
