"""Host memory while a checkpoint of 1.3 billion parameters is read.

  python -m tests.hf.host_memory [--folder=DIR]

Makes the checkpoint where there is none (2.6 GB of bfloat16), reads it in a
process of its own, and looks at that process's memory meanwhile. On CPU the
devices' arrays lie in host memory as well and are taken off; pages of the
file that the system maps are not the process's own and are not counted.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl import app
from absl import flags
import jax
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from experiments import common
from rlhf_jax import run, sharding
from rlhf_jax.hf import families, gpt2, importing
from rlhf_jax.models.policy import Policy
from tests.hf import folders

_FOLDER = flags.DEFINE_string("folder", None, "Where the checkpoint is kept.")
_READ = flags.DEFINE_bool("read", False, "Read it; the other process does.")
# GPT-2's architecture with the sizes of GPT-3 XL: 1.3 billion parameters.
CONFIG = dict(model_type="gpt2", vocab_size=50257, n_positions=2048,
              n_embd=2048, n_layer=24, n_head=16)
_SECONDS = 0.005  # between two looks


def make(path: pathlib.Path) -> None:
  """Writes the checkpoint, one file a block, all its numbers alike."""
  c = folders.sizes(CONFIG)
  path.mkdir(parents=True, exist_ok=True)
  (path / "config.json").write_text(json.dumps(CONFIG))
  places = families.places(
      gpt2, gpt2.PREFIXES[0], c, vocab_size=c.vocab_size,
      num_positions=c.context_length, last="policy")
  files: dict[str, dict] = {}
  for place in places:
    files.setdefault(f"model-{place.block}.safetensors", {}).update(
        place.shapes(c))
  for file, shapes in files.items():
    safetensors_numpy.save_file(
        {name: np.full(shape, 0.01, ml_dtypes.bfloat16)
         for name, shape in shapes.items()}, path / file)
  (path / "model.safetensors.index.json").write_text(json.dumps({
      "weight_map": {name: file for file, shapes in files.items()
                     for name in shapes}}))


def own_bytes() -> int:
  """Memory that is this process's own."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("RssAnon:"):
      return int(line.split()[1]) * 1024
  raise RuntimeError("this system does not tell")


class Peak(threading.Thread):
  """The most memory of this process's own, beyond its start."""

  def __init__(self):
    super().__init__(daemon=True)
    self._start = self.bytes = own_bytes()
    self._ended = threading.Event()

  def run(self):
    while not self._ended.wait(_SECONDS):
      self.bytes = max(self.bytes, own_bytes())

  def end(self) -> int:
    self._ended.set()
    self.join()
    return self.bytes - self._start


def read(path: str) -> dict:
  """Reads the checkpoint; what it took, in bytes and seconds."""
  c = folders.sizes(CONFIG)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1,
                            devices=jax.devices()[:1])
  with sharding.use(mesh, common.AXIS_RULES):
    abstract = sharding.abstract_of(
        lambda: run.init_params(Policy(c), jax.random.key(0)), mesh,
        common.AXIS_RULES)
    peak, started = Peak(), time.monotonic()
    peak.start()
    params = importing.policy_params(f"hf:{path}", c, abstract)
    seconds = time.monotonic() - started
  arrays = sum(x.nbytes for x in jax.tree.leaves(params))
  return dict(
      parameters=c.num_params, seconds=round(seconds, 1), arrays=arrays,
      host=peak.end() - arrays,
      largest=4 * c.vocab_size * c.d_model)


def main(argv):
  del argv
  if _READ.value:
    print(json.dumps(read(_FOLDER.value)))
    return
  with tempfile.TemporaryDirectory() as other:
    path = pathlib.Path(_FOLDER.value or other)
    if not (path / "config.json").exists():
      make(path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.hf.host_memory", "--read",
         f"--folder={path}"], check=True, stdout=subprocess.PIPE, text=True)
  found = json.loads(done.stdout.splitlines()[-1])
  limit = found["largest"] + 10**9
  print(f"{found['parameters']:,} parameters in {found['seconds']} s: arrays "
        f"{found['arrays'] / 1e9:.2f} GB, at most {found['host'] / 1e9:.2f} GB "
        f"beside them (the largest tensor is {found['largest'] / 1e9:.2f} GB "
        f"in float32, so {limit / 1e9:.2f} GB are allowed)")
  sys.exit(0 if found["host"] < limit else 1)


if __name__ == "__main__":
  app.run(main)
