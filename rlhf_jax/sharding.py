"""Where arrays live: the mesh, one rule table, placement of batches.

Two tables decide everything. `PARAM_RULES` (code) names the logical axes of
every parameter by its path; the experiment's `axis_rules` map logical axes to
mesh axes. Optimizer moments and averages follow their parameter because their
paths end alike. Models name logical axes only, through `constrain`.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Path of a parameter -> its logical axes. The first match decides; a rule may
# name fewer axes than the array has, the rest are replicated. Stacked blocks
# carry a leading "layers" axis.
PARAM_RULES = (
    (r"token_embedding/embedding$", ("vocab", "embed")),
    (r"position_embedding/embedding$", (None, "embed")),
    (r"attention/qkv_kernel$", ("layers", "embed", "heads", None, None)),
    (r"attention/qkv_bias$", ("layers", "heads", None, None)),
    (r"attention/out_kernel$", ("layers", "heads", None, "embed")),
    (r"mlp/up_kernel$", ("layers", "embed", "mlp")),
    (r"mlp/up_bias$", ("layers", "mlp")),
    (r"mlp/down_kernel$", ("layers", "mlp", "embed")),
    (r"head/kernel$", ("embed",)),
    (r"(scale|bias)$", ()),
)

# Activations name these axes as well.
LOGICAL_AXES = frozenset(
    {"batch", "length", "layers", "embed", "heads", "mlp", "vocab"}
)

AxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]

_rules: contextvars.ContextVar[Mapping[str, Any] | None] = (
    contextvars.ContextVar("axis_rules", default=None)
)


def make_mesh(
    *, data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh of `data x fsdp x tensor` devices; one size may be -1 (the rest).

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = list(devices if devices is not None else jax.devices())
  sizes = mesh_sizes(data=data, fsdp=fsdp, tensor=tensor,
                     device_count=len(devices))
  return jax.make_mesh(
      sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes),
      devices=devices,
  )


def mesh_sizes(
    *, data: int, fsdp: int, tensor: int, device_count: int
) -> tuple[int, int, int]:
  """The three sizes with -1 filled in, or a ValueError with both numbers."""
  sizes = [data, fsdp, tensor]
  known = int(np.prod([s for s in sizes if s != -1]))
  asked = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
  if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
    raise ValueError(
        f"{asked}: sizes are positive, at most one is -1 (the rest)."
    )
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(device_count // known, 1)
  if int(np.prod(sizes)) != device_count:
    raise ValueError(
        f"{asked} needs {int(np.prod(sizes))} devices, but {device_count} are "
        "present; change config.mesh so that the product is the device count."
    )
  return tuple(sizes)


@contextlib.contextmanager
def use(mesh: Mesh, axis_rules: AxisRules):
  """Makes `mesh` and `axis_rules` current for tracing and running."""
  token = _rules.set(_as_mapping(axis_rules))
  try:
    with jax.set_mesh(mesh):
      yield
  finally:
    _rules.reset(token)


def _as_mapping(axis_rules: AxisRules) -> dict[str, Any]:
  unknown = {name for name, _ in axis_rules} - LOGICAL_AXES
  if unknown:
    raise ValueError(
        f"axis_rules name unknown logical axes {sorted(unknown)}; the known "
        f"ones are {sorted(LOGICAL_AXES)}."
    )
  return {name: axes for name, axes in axis_rules}


def spec_for(
    logical: Sequence[str | None], axis_rules: AxisRules,
    first: str | None = None,
) -> PartitionSpec:
  """Logical axis names -> PartitionSpec; a mesh axis is used once.

  It goes to the logical axis `first`, or else to the leftmost that wants it.
  """
  rules = _as_mapping(axis_rules)
  used: set[str] = set()
  entries: dict[int, Any] = {}
  for place in sorted(range(len(logical)), key=lambda i: logical[i] != first):
    name = logical[place]
    if name is not None and name not in LOGICAL_AXES:
      raise ValueError(f"unknown logical axis {name!r}")
    axes = rules.get(name)
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    axes = tuple(a for a in axes if a not in used)
    used.update(axes)
    entries[place] = (
        None if not axes else axes[0] if len(axes) == 1 else axes)
  return PartitionSpec(*(entries[i] for i in range(len(logical))))


def constrain(
    x: jax.Array, *logical: str | None, first: str | None = None
) -> jax.Array:
  """Constrains an activation; nothing happens where no mesh is current."""
  unknown = set(logical) - LOGICAL_AXES - {None}
  if unknown or len(logical) != x.ndim:
    raise ValueError(f"{logical=} does not fit an array of shape {x.shape}")
  rules = _rules.get()
  if rules is None or jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(
      x, spec_for(logical, tuple(rules.items()), first)
  )


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """The logical axes of the parameter at `path`.

  Raises:
    ValueError: no rule matches; nothing is replicated by accident.
  """
  for pattern, axes in PARAM_RULES:
    if re.search(pattern, path):
      # Decode keeps blocks apart: the same rule without its "layers" axis.
      if axes[:1] == ("layers",) and ndim == len(axes) - 1:
        axes = axes[1:]
      if len(axes) > ndim:
        break
      return axes + (None,) * (ndim - len(axes))
  raise ValueError(
      f"no sharding rule fits {path!r} with {ndim} axes; add one to "
      "PARAM_RULES in rlhf_jax/sharding.py."
  )


def shardings_for(tree: Any, mesh: Mesh, axis_rules: AxisRules) -> Any:
  """A NamedSharding for every leaf of a (possibly abstract) state tree.

  Scalars and keys are replicated, everything else must match a rule.

  Raises:
    ValueError: no rule fits, or an axis does not divide; names the array.
  """

  def sharding(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if leaf.ndim == 0:
      return NamedSharding(mesh, PartitionSpec())
    spec = spec_for(logical_axes(name, leaf.ndim), axis_rules)
    check_divides(name, leaf.shape, spec, mesh)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, tree)


def check_divides(name, shape, spec, mesh) -> None:
  """Raises ValueError when a sharded axis of `shape` does not divide."""
  for size, axes in zip(shape, spec):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    parts = int(np.prod([mesh.shape[a] for a in axes]))
    if size % parts:
      raise ValueError(
          f"{name} has shape {tuple(shape)}: {size} does not divide over mesh "
          f"axes {axes} ({parts} devices); change config.mesh or the size."
      )


def batch_sharding(mesh: Mesh, axis_rules: AxisRules) -> NamedSharding:
  """The sharding of arrays whose leading axis is the batch."""
  return NamedSharding(mesh, spec_for(("batch",), axis_rules))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh_shape: Mapping[str, int], axis_rules: AxisRules) -> int:
  """Into how many parts the batch axis is cut."""
  axes = dict(axis_rules).get("batch") or ()
  axes = (axes,) if isinstance(axes, str) else axes
  return int(np.prod([mesh_shape[a] for a in axes]))


def put_batch(batch: Any, mesh: Mesh, axis_rules: AxisRules) -> Any:
  """Each process's rows -> global arrays, batch axis over the mesh."""
  return jax.make_array_from_process_local_data(
      batch_sharding(mesh, axis_rules), batch
  )


def init_sharded(
    init: Callable[..., Any], mesh: Mesh, axis_rules: AxisRules, *args
) -> tuple[Any, Any]:
  """Runs `init(*args)` straight into its shards.

  Shapes first, shardings second, arrays last: nothing is ever whole on one
  device or host.

  Returns:
    (state, its shardings)
  """
  abstract = jax.eval_shape(init, *args)
  shardings = shardings_for(abstract, mesh, axis_rules)
  return jax.jit(init, out_shardings=shardings)(*args), shardings


def abstract_with(abstract: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs that carry their shardings, for restore and lowering."""
  return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      abstract, shardings,
  )
