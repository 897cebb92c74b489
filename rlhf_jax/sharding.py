"""Where arrays live: the mesh, one rule table, placement of batches.

Two tables decide everything. `PARAM_RULES` (code) names the logical axes of
every parameter by its path; the experiment's `axis_rules` map logical axes to
mesh axes. Optimizer moments and averages follow their parameter because their
paths end alike. Models name logical axes only, through `constrain`.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Path of a parameter -> its logical axes. The first match decides; a rule may
# name fewer axes than the array has, the rest are replicated. Stacked blocks
# carry a leading "layers" axis.
PARAM_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(token_|un)embedding/embedding$", ("vocab", "embed")),
    (r"position_embedding/embedding$", (None, "embed")),
    (r"attention/qkv_kernel$", ("layers", "embed", "heads", None, None)),
    (r"attention/qkv_bias$", ("layers", "heads", None, None)),
    (r"attention/out_kernel$", ("layers", "heads", None, "embed")),
    (r"mlp/up_kernel$", ("layers", "embed", "mlp")),
    (r"mlp/up_bias$", ("layers", "mlp")),
    (r"mlp/down_kernel$", ("layers", "mlp", "embed")),
    (r"project_(in|out)/kernel$", (None, "embed")),
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
    ValueError: the sizes do not multiply to the number of devices, or slices
      do not divide over `data`.
  """
  devices = list(devices if devices is not None else jax.devices())
  sizes = mesh_sizes(data=data, fsdp=fsdp, tensor=tensor,
                     device_count=len(devices),
                     slice_count=slice_count(devices))
  return Mesh(arrange(devices, sizes), MESH_AXES,
              axis_types=(AxisType.Auto,) * len(sizes))


def slice_count(devices: Sequence[Any]) -> int:
  """TPU slices that the devices are of; 1 on other platforms."""
  if devices[0].platform != "tpu":
    return 1
  # described, not present, devices of one slice have none
  return len({getattr(d, "slice_index", 0) for d in devices})


def arrange(devices: Sequence[Any], sizes: tuple[int, int, int]) -> np.ndarray:
  """Devices as an array [data, fsdp, tensor], near ones along the last axes.

  The network between TPU slices is slow, so that they lie along `data`,
  outermost, which costs one sum of gradients a step. Within a slice a mesh
  axis may take a part of a physical one: 8x8x1 fits a torus of 4x4x4.
  """
  slices = slice_count(devices)
  if slices == 1:
    return mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True)
  data, fsdp, tensor = sizes
  return mesh_utils.create_hybrid_device_mesh(
      (data // slices, fsdp, tensor), (slices, 1, 1), devices,
      allow_split_physical_axes=True)


def mesh_sizes(
    *, data: int, fsdp: int, tensor: int, device_count: int,
    slice_count: int = 1,
) -> tuple[int, int, int]:
  """The three sizes with -1 filled in, or a ValueError with both numbers."""
  sizes = [data, fsdp, tensor]
  known = math.prod(s for s in sizes if s != -1)
  asked = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
  if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
    raise ValueError(
        f"{asked}: sizes are positive, at most one is -1 (the rest)."
    )
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(device_count // known, 1)
  if math.prod(sizes) != device_count:
    raise ValueError(
        f"{asked} needs {math.prod(sizes)} devices, but {device_count} are "
        "present; change config.mesh so that the product is the device count."
    )
  if sizes[0] % slice_count:
    raise ValueError(
        f"{asked}: data={sizes[0]} is not a multiple of the {slice_count} TPU "
        "slices, which are laid along data; make config.mesh.data a multiple "
        f"of {slice_count}, and fsdp x tensor a divisor of the "
        f"{device_count // slice_count} devices of a slice."
    )
  data, fsdp, tensor = sizes
  return data, fsdp, tensor


@contextlib.contextmanager
def use(mesh: Mesh, axis_rules: AxisRules):
  """Makes `mesh` and `axis_rules` current for tracing and running."""
  with use_rules(axis_rules), jax.set_mesh(mesh):
    yield


@contextlib.contextmanager
def use_rules(axis_rules: AxisRules):
  """Makes other rules current, for tracing only.

  Enter it within the function that is jitted: a jit does not know of rules,
  and around its call they would be those of its first call for ever.
  """
  token = _rules.set(_as_mapping(axis_rules))
  try:
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
  return dict(axis_rules)


def spec_for(
    logical: Sequence[str | None], axis_rules: AxisRules,
    first: str | None = None,
) -> PartitionSpec:
  """Logical axis names -> PartitionSpec; a mesh axis is used once.

  The leftmost logical axis that wants it gets it; those of the logical axis
  `first` are kept for it, also where it is not among them.
  """
  rules = _as_mapping(axis_rules)
  kept = mesh_axes([rules.get(first)])
  used: set[str] = set()
  entries = []
  for name in logical:
    if name is not None and name not in LOGICAL_AXES:
      raise ValueError(f"unknown logical axis {name!r}")
    axes = tuple(
        a for a in mesh_axes([rules.get(name)])
        if a not in used and (name == first or a not in kept))
    used.update(axes)
    entries.append(
        None if not axes else axes[0] if len(axes) == 1 else axes)
  return PartitionSpec(*entries)


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


def on_shards(function, inputs, output):
  """`function` of each device's own parts, for what XLA cannot cut itself.

  Args:
    function: of arrays; it must treat what is cut apart independently.
    inputs: logical axes of each of its arguments.
    output: logical axes of its result.

  Returns:
    The same function of whole arrays; itself where no mesh is current.
  """
  rules = _rules.get()
  if rules is None or jax.sharding.get_abstract_mesh().empty:
    return function
  spec = lambda logical: spec_for(logical, tuple(rules.items()))
  return jax.shard_map(
      function, in_specs=tuple(map(spec, inputs)), out_specs=spec(output),
      check_vma=False)


def move(x: jax.Array, source: NamedSharding, target: NamedSharding):
  """An array of a jitted function, from its shards into others.

  Mesh axes that are of no use in the end are gathered first, the others move
  then: from one to the other at once XLA copies the array whole to every
  device. What was computed of `x` until now is computed in `source`.
  """
  used = set(mesh_axes(target.spec))
  kept = [tuple(a for a in mesh_axes([entry]) if a in used)
          for entry in source.spec]
  between = NamedSharding(source.mesh, PartitionSpec(*kept))
  for each in (source, between, target):
    x = jax.lax.with_sharding_constraint(x, each)
  return x


def mesh_axes(spec: Iterable[str | tuple[str, ...] | None]) -> tuple[str, ...]:
  """All mesh axes that a PartitionSpec, or a part of it, names."""
  return tuple(
      axis for entry in spec
      for axis in ((entry,) if isinstance(entry, str) else entry or ()))


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
  for size, entry in zip(shape, spec):
    axes = mesh_axes([entry])
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
  axes = mesh_axes([dict(axis_rules).get("batch")])
  return int(np.prod([mesh_shape[a] for a in axes]))


def batch_size_for(
    num_rows: float, mesh_shape: Mapping[str, int], *axis_rules: AxisRules
) -> int:
  """The smallest batch that holds so many and cuts into the shards of all
  these rules."""
  shards = math.lcm(*(batch_shards(mesh_shape, rules) for rules in axis_rules))
  return math.ceil(num_rows / shards) * shards


def filled_size(
    batch_size: int, mesh_shape: Mapping[str, int], axis_rules: AxisRules
) -> int:
  """Rows of a batch once one of fewer than batch shards is filled up."""
  return max(batch_size, batch_shards(mesh_shape, axis_rules))


def process_rows(
    mesh: Mesh, axis_rules: AxisRules, num_rows: int
) -> np.ndarray:
  """Which rows of a global batch lie on devices of this process, in order.

  Not the p-th share of process p: devices lie on the mesh as the network wants
  it, and processes that share a row along `tensor` all hold it.
  """
  if jax.process_count() == 1:
    return np.arange(num_rows)
  places = batch_sharding(mesh, axis_rules).addressable_devices_indices_map(
      (num_rows,))
  held = {row for (rows,) in places.values()
          for row in range(*rows.indices(num_rows))}
  return np.array(sorted(held))


def put_batch(batch: Any, mesh: Mesh, axis_rules: AxisRules) -> Any:
  """Each process's rows, those of `process_rows`, -> global arrays, the batch
  axis over the mesh."""
  target = batch_sharding(mesh, axis_rules)
  shards = batch_shards(mesh.shape, axis_rules)
  held = len(process_rows(mesh, axis_rules, shards))

  def put(x):
    num_rows = len(x) * shards // held
    rows = process_rows(mesh, axis_rules, num_rows)

    def part(index):
      here = index[0].indices(num_rows)
      first = np.searchsorted(rows, here[0])
      return x[first:first + here[1] - here[0]]

    return jax.make_array_from_callback(
        (num_rows, *x.shape[1:]), target, part)

  return jax.tree.map(put, batch)


def init_sharded(
    init: Callable[..., Any], mesh: Mesh, axis_rules: AxisRules, *args
) -> tuple[Any, Any]:
  """Runs `init(*args)` straight into its shards.

  Shapes first, shardings second, arrays last: nothing is ever whole on one
  device or host.

  Returns:
    (state, its shardings)
  """
  shardings = shardings_of(abstract_of(init, mesh, axis_rules, *args))
  return jax.jit(init, out_shardings=shardings)(*args), shardings


def abstract_of(
    init: Callable[..., Any], mesh: Mesh, axis_rules: AxisRules, *args
) -> Any:
  """What `init(*args)` would give, as ShapeDtypeStructs with shardings."""
  return with_shardings(jax.eval_shape(init, *args), mesh, axis_rules)


def with_shardings(abstract: Any, mesh: Mesh, axis_rules: AxisRules) -> Any:
  """Shapes as ShapeDtypeStructs with the shardings that the rules give them."""
  return abstract_with(abstract, shardings_for(abstract, mesh, axis_rules))


def jit_step(step: Callable[..., Any], state: Any) -> Callable[..., Any]:
  """`step(state, ...) -> (state, values)`, jitted: the state's buffers are
  given up and its shards kept, those of the abstract `state`."""
  return jax.jit(
      step, donate_argnums=0, out_shardings=(shardings_of(state), None))


def in_place(function: Callable[[Any], Any], tree: Any) -> Any:
  """`function(tree)` in the shards of `tree`, whose buffers are given up."""
  return jax.jit(
      function, donate_argnums=0, out_shardings=shardings_of(tree))(tree)


def shardings_of(tree: Any) -> Any:
  """Of every array, or of every abstract one that carries its sharding."""
  return jax.tree.map(lambda x: x.sharding, tree)


def abstract_with(abstract: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs that carry their shardings, for restore and lowering."""
  return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      abstract, shardings,
  )
