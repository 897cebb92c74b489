"""What a run came to, compared with another: bit for bit, clocks aside."""

import json
import pathlib
import re

import jax
import numpy as np
import orbax.checkpoint as ocp

# Of this process or of the clock, not of the method.
CLOCK = re.compile(r"(^|_)seconds|peak_rss|^versions$|^devices$")
FILES = ("samples.jsonl", "collect/responses.jsonl",
         "collect/comparisons.jsonl", "collect/report.json", "rm/report.json",
         "data/tokenizer.json")


def saved_items(folder: pathlib.Path):
  """All arrays of one checkpoint as NumPy ones, on whatever devices it was
  saved."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
  found = {}
  with ocp.StandardCheckpointer() as checkpointer:
    for path in folder.iterdir():
      if path.is_dir() and path.name not in ("meta", "metrics"):
        kinds = checkpointer.metadata(path).item_metadata
        found[path.name] = jax.tree.map(np.asarray, checkpointer.restore(
            path, jax.tree.map(abstract, kinds.tree)))
  return found


def steps(workdir: pathlib.Path, stage: str) -> list[int]:
  """The steps that a stage has checkpoints of."""
  return sorted(int(path.name)
                for path in (workdir / stage).glob("checkpoints/*")
                if path.name.isdigit())


def without_clock(tree):
  """Nested objects without what a clock says."""
  if isinstance(tree, dict):
    return {k: without_clock(v) for k, v in tree.items()
            if not CLOCK.search(k.rpartition("/")[2])}
  return [without_clock(v) for v in tree] if isinstance(tree, list) else tree


def rows(workdir: pathlib.Path, name: str = "metrics.jsonl"):
  """The objects of a file of JSON lines, [] without one."""
  path = workdir / name
  lines = path.read_text().splitlines() if path.exists() else []
  return [without_clock(json.loads(line)) for line in lines]


def differences(workdir: pathlib.Path, other: pathlib.Path) -> dict[str, int]:
  """How much differs in two finished runs: bits of the newest parameters,
  optimizers' and other states, rows lost or doubled, values, files."""
  stages = [path.parent.name for path in other.glob("*/done.json")]
  assert stages
  found = dict.fromkeys(("bits", "rows", "values", "files"), 0)
  for stage in stages:
    if steps(other, stage):
      found["bits"] += different_bits(*(
          saved_items(root / stage / "checkpoints" / str(
              steps(root, stage)[-1])) for root in (workdir, other)))
    found["values"] += _json(workdir, stage) != _json(other, stage)
  for name in ("metrics.jsonl", "guards.jsonl"):
    ours, theirs = rows(workdir, name), rows(other, name)
    found["rows"] += abs(len(ours) - len(theirs))
    found["values"] += sum(a != b for a, b in zip(ours, theirs))
  for name in FILES:
    if (other / name).exists():
      found["files"] += (
          (workdir / name).read_bytes() != (other / name).read_bytes())
  return found


def _json(workdir: pathlib.Path, stage: str):
  return without_clock(json.loads((workdir / stage / "done.json").read_text()))


def different_bits(ours, theirs) -> int:
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  total = 0
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    assert a.dtype == b.dtype and a.shape == b.shape
    total += int(np.unpackbits(np.frombuffer(a.tobytes(), np.uint8)
                               ^ np.frombuffer(b.tobytes(), np.uint8)).sum())
  return total
