"""Somebody's weights, straight into the shards of our parameters.

The parts of a process's devices are read from the file, block by block, into
stacks that lie on the devices already. The host holds one tensor's at a time:
never a whole model, and of a tensor that is cut over hosts only its own part.
"""

from collections.abc import Callable, Iterable
import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from tqdm import auto as tqdm

from rlhf_jax.hf import families
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.hf.folder import Folder
from rlhf_jax.models.transformer import TransformerConfig

_TABLE = "transformer/token_embedding/embedding"


def policy_params(spec: str, c: TransformerConfig, abstract: Any) -> Any:
  """A policy's parameters.

  Args:
    spec: "hf:FOLDER" or "hf:NAME".
    c: the policy's sizes; its context may be another than the checkpoint's.
    abstract: its parameters as ShapeDtypeStructs with shardings.

  Raises:
    FolderError: the checkpoint is no policy of these sizes, or damaged.
  """
  with Folder(spec) as folder:
    if is_reward_model(folder):
      raise FolderError(
          f"config.init.policy = {spec!r} is a reward model (it has "
          "score.weight); name a language model")
    return _read(folder, c, abstract, "policy")


def scalar_params(
    spec: str, c: TransformerConfig, abstract: Any,
    fresh_head: Callable[[], Any]) -> Any:
  """A reward model's parameters; of a language model the body, with
  `fresh_head()`.

  Args as of `policy_params`.

  Raises:
    FolderError: the checkpoint is no model of these sizes, or damaged.
  """
  with Folder(spec) as folder:
    if not is_reward_model(folder):
      body = _read(folder, c, {"transformer": abstract["transformer"]}, "body")
      return {**body, "head": fresh_head()}
    read = {**abstract, "head": {"kernel": abstract["head"]["kernel"]}}
    params = _read(folder, c, read, "reward_model")
    bias = abstract["head"]["bias"]  # theirs has none
    params["head"]["bias"] = _zeros(bias)
    return params


def is_reward_model(folder: Folder) -> bool:
  return "score.weight" in folder.names


def _read(
    folder: Folder, c: TransformerConfig, abstract: Any, last: str) -> Any:
  """Checks everything, then reads everything."""
  family = families.family_of(folder.fields)
  theirs = families.settings_of(folder.fields)
  _check_settings(folder, c, theirs)
  places = list(families.places(
      family, _prefix(folder, family), c, vocab_size=theirs["vocab_size"],
      num_positions=theirs["context_length"], last=last))
  shapes = {name: shape for place in places
            for name, shape in place.shapes(c).items()}
  folder.check(shapes)
  table = next(name for place in places if place.path == _TABLE
               for name in place.shapes(c))
  _check_rest(folder, family, c, shapes, table)
  return _into_shards(folder, c, abstract, places)


def _check_settings(folder, c, theirs) -> None:
  """What has another shape would be refused by tensors; this is the rest."""
  ours = {name: getattr(c, name) for name in theirs} | {
      "mlp_size": c.d_mlp, "embedding_size": c.d_embedding}
  wrong = [f"{name} = {value!r}, not {ours[name]!r}"
           for name, value in theirs.items()
           if name not in ("context_length", "vocab_size")
           and ours[name] != value]
  if wrong:
    raise FolderError(f"{folder.fields.place} says {'; '.join(wrong)}")


def _prefix(folder: Folder, family: ModuleType) -> str:
  """What all names of the body begin with; the file's own decides."""
  for prefix in family.PREFIXES:
    if any(name.startswith(family.block_name(prefix, 0))
           for name in folder.names):
      return prefix
  raise FolderError(
      f"{folder.path}: its tensors are not those of {family.MODEL_TYPE!r}; "
      f"they are called as {min(folder.names, default='(there are none)')}, "
      f"not as {family.block_name(family.PREFIXES[0], 0)}...")


def _check_rest(folder, family, c, shapes, table: str) -> None:
  """Tensors that nothing of ours stands for.

  Raises:
    FolderError: leaving one out would change the model's numbers.
  """
  rest = [name for name in folder.names
          if name not in shapes and not name.endswith(family.BUFFERS)]
  if "lm_head.weight" in rest and not c.tied_unembedding:
    rest.remove("lm_head.weight")  # of a body
  if "lm_head.weight" in rest:
    _check_tied(folder, table)
    rest.remove("lm_head.weight")
  if rest:
    raise FolderError(
        f"{folder.place(min(rest))} is nothing that the model has "
        f"({len(rest)} such tensors); leaving it out would change the model's "
        "outputs")


def _check_tied(folder: Folder, table: str) -> None:
  """Refuses an unembedding that is said to be the embedding and is not."""
  if folder.shape(table) == folder.shape("lm_head.weight"):
    num_rows = folder.shape(table)[0]
    parts = (slice(at, min(at + 4096, num_rows))
             for at in range(0, num_rows, 4096))
    if all(np.array_equal(folder.read(table, (rows,)),
                          folder.read("lm_head.weight", (rows,)))
           for rows in parts):
      return
  raise FolderError(
      f"{folder.place('lm_head.weight')} is not {table}, but "
      f"{folder.fields.place} says tie_word_embeddings; set it to false")


def _into_shards(folder, c, abstract, places: Iterable[families.Place]) -> Any:
  """The tree of `abstract`, every array read part by part."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract)
  wanted = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in leaves}
  found = {}
  total = sum(math.prod(s) for p in places for s in p.shapes(c).values())
  with tqdm.tqdm(
      desc=folder.spec, total=total, unit=" parameters", unit_scale=True,
      mininterval=1.0, leave=False, disable=jax.process_index() != 0) as bar:
    for place in places:
      leaf = wanted[place.path]
      if place.block is None:
        found[place.path] = _array(folder, c, place, leaf.shape, leaf.sharding)
      else:
        stack = found.get(place.path)
        stack = _zeros(leaf) if stack is None else stack
        found[place.path] = _with_block(
            stack, _array(folder, c, place, leaf.shape[1:], _of_block(leaf)),
            place.block)
      # or the host would hold what devices have not taken yet
      jax.block_until_ready(found[place.path])
      bar.update(sum(map(math.prod, place.shapes(c).values())))
  return jax.tree.unflatten(treedef, [found[path] for path in wanted])


def _array(folder, c, place, shape, sharding) -> jax.Array:
  """An array whose devices each get their own part; one that several have is
  read once."""
  read = lambda name, parts: folder.read(place.name + name, parts)

  @functools.cache
  def part(*bounds):
    index = tuple(slice(*own) for own in bounds)
    return np.ascontiguousarray(place.layout.read(read, c, index))

  return jax.make_array_from_callback(shape, sharding, lambda index: part(
      *(own.indices(size)[:2] for own, size in zip(index, shape))))


def _of_block(leaf) -> NamedSharding:
  """Of one block, the shards of a stack's."""
  return NamedSharding(
      leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))


def _zeros(leaf) -> jax.Array:
  return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype),
                 out_shardings=leaf.sharding)()


def _with_block(stack: jax.Array, block: jax.Array, number: int) -> jax.Array:
  """The stack, in its own memory, with one block put in."""
  put = jax.jit(
      jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0,
      out_shardings=stack.sharding)
  return put(stack, block, number, 0)
