"""Rules of the mesh: what must divide over its devices."""

from collections.abc import Iterator
import math
from typing import Any

from rlhf_jax import sharding
from rlhf_jax.config.names import Tree, active, kind_of, lm_streams, nearest


def mesh_errors(
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
  for stage in active(tree):
    yield from _batch_errors(tree, stage, shards, mesh)


def _axis_rule_errors(name: str, rules) -> Iterator[str]:
  for logical, axes in rules:
    if logical not in sharding.LOGICAL_AXES:
      yield (f"{name} has unknown {logical!r}; the logical axes are "
             f"{sorted(sharding.LOGICAL_AXES)}.")
    for axis in _as_tuple(axes):
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
      parts = math.prod(mesh[axis] for axis in _as_tuple(axes))
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
    keys = (lm_streams(settings).values() if kind == "lm"
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
        f"{_mesh_text(mesh)}); use e.g. {nearest(size, unit)}, or fewer "
        "parts: devices of config.mesh.tensor cut no batch.")


def _as_tuple(axes: Any) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _mesh_text(mesh: dict[str, int]) -> str:
  return "config.mesh " + " ".join(f"{k}={v}" for k, v in mesh.items())
