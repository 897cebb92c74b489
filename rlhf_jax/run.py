"""What every stage of a run is given: config, mesh, tokenizer, folders."""

import dataclasses
import functools
import importlib.metadata
import platform
from typing import Any
import zlib

from etils import epath
import jax
import ml_collections
import numpy as np

from rlhf_jax import checkpoint, metrics, profiling, sharding
from rlhf_jax.config import INIT, name_of
from rlhf_jax.data import batches, prepare
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.hf import importing
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.models.transformer import TransformerConfig

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
             "tensorflow-datasets", "numpy", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Run:
  """One run on one mesh. Holds no arrays."""

  config: ml_collections.ConfigDict
  workdir: epath.Path
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  world: Smallworld | None
  writer: metrics.Writer

  @property
  def axis_rules(self) -> sharding.AxisRules:
    return self.config.axis_rules

  @property
  def rubric(self) -> Smallworld | None:
    """The world that knows how good a response is: to its own prompts alone,
    whatever else of it is read."""
    return self.world if self.config.data.prompts == "smallworld" else None

  @property
  def prompt_length(self) -> int:
    return self.config.data.max_prompt_tokens

  @property
  def response_length(self) -> int:
    return self.config.data.max_response_tokens

  @property
  def pair_length(self) -> int:
    """Tokens of the longest prompt with the longest response."""
    return self.prompt_length + self.response_length

  def key(self, stage: str) -> jax.Array:
    """The stage's random key: a function of the seed and the stage's name."""
    return jax.random.fold_in(
        jax.random.key(self.config.seed), zlib.crc32(stage.encode()))

  def data_seed(self, stage: str, stream: str) -> int:
    """The shuffle seed of one stream of a stage."""
    return zlib.crc32(f"{self.config.seed}/{stage}/{stream}".encode())

  def policy(self, dropout_rate: float = 0.0) -> Policy:
    return Policy(transformer_config(self.config.model, dropout_rate))

  def scalar(self) -> Scalar:
    """The reward model's and critic's network."""
    return Scalar(transformer_config(self.config.rm_model, 0.0))

  def rm_policy(self) -> Policy:
    """A policy of the reward model's size, whose body it starts from."""
    return Policy(transformer_config(self.config.rm_model, 0.0))

  def stage_dir(self, stage: str) -> epath.Path:
    """Where a stage's result lies: here, or where config.inputs points."""
    elsewhere = self.config.inputs.get(stage, "")
    return epath.Path(elsewhere) if elsewhere else self.workdir / stage

  def prompt_tokens(self, prompt: str) -> list[int]:
    """A prompt as the models read it, its suffix included."""
    return [*self.tokenizer.start_ids, *self.tokenizer.encode(
        prompt + self.config.data.prompt_suffix)]

  def prompt_text(self, tokens) -> str:
    """The inverse of `prompt_tokens`."""
    return self.tokenizer.decode(tokens).removesuffix(
        self.config.data.prompt_suffix)

  def response_tokens(self, response: str) -> list[int]:
    """A response as the models read it, with its end token where that fits."""
    tokens = self.tokenizer.encode(self.config.data.response_prefix + response)
    return [*tokens, self.tokenizer.eos_id][:self.response_length]

  def source(self, kind: str, split: str):
    """Random access to the prepared rows of one split."""
    return prepare.open_split(self.workdir / "data", kind, split)

  def comparisons(self, stage: str, split: str):
    """The same of the comparisons that `stage` reads."""
    return prepare.open_split(self.data_dir(stage), "comparisons", split)

  def data_dir(self, stage: str) -> epath.Path:
    """Where the comparisons of `stage` lie: each set of rounds has its own."""
    data = self.workdir / "data"
    if self.config.data.comparisons != "collect":
      return data
    rounds = tuple(self.config[stage].collected)
    return data if rounds == ("collect",) else data / "+".join(rounds)

  def batches(self, examples, batch_size: int) -> batches.Batches:
    """Global batches by number; this process loads its own rows.

    One of fewer rows than batch shards is filled up to a row each.
    """
    size = sharding.filled_size(
        batch_size, self.mesh.shape, self.axis_rules)
    return batches.Batches(
        examples, batch_size, filled_size=size, rows=self.rows_here(size))

  def rows_here(self, batch_size: int) -> np.ndarray:
    """Which rows of a global batch this process loads."""
    return sharding.process_rows(self.mesh, self.axis_rules, batch_size)

  def batch_size_for(self, num_rows: float) -> int:
    """The smallest global batch that holds so many and cuts into the shards
    of training and of decoding."""
    return sharding.batch_size_for(
        num_rows, self.mesh.shape, self.axis_rules,
        self.config.decode.axis_rules)

  def put(self, batch: Any) -> Any:
    return sharding.put_batch(batch, self.mesh, self.axis_rules)

  def init(self, init, *args):
    """(state, shardings), created straight into shards."""
    return sharding.init_sharded(init, self.mesh, self.axis_rules, *args)

  def abstract(self, init, *args) -> Any:
    """What `init` would create, as ShapeDtypeStructs with shardings."""
    return sharding.abstract_of(init, self.mesh, self.axis_rules, *args)

  def abstract_params(self, model) -> Any:
    """Those of a model: once traced, as each stage asks for some again."""
    return sharding.with_shardings(
        _param_shapes(model), self.mesh, self.axis_rules)

  def load(self, stage: str, item: str, model, step: int | None = None) -> Any:
    """Parameters that another stage left: of `step`, or of the one selected;
    of "init", the policy's of config.init."""
    if stage == INIT:
      return importing.policy_params(
          self.config.init.policy, model.config, self.abstract_params(model))
    directory = self.stage_dir(stage)
    done = checkpoint.read_done(directory)
    if step is None and done:
      step = done["figures"].get("selected_step")
    with profiling.phase("load"):
      return checkpoint.restore_item(
          directory / "checkpoints", item, self.abstract_params(model), step)

  def policy_params(self, stage: str, step: int | None = None) -> Any:
    """A stage's policy: the average of PPO's, the selected or last one of the
    others, or that of `step`."""
    item = "ema" if name_of(stage) == "ppo" else "params"
    return self.load(stage, item, self.policy(), step)


def versions() -> dict[str, str]:
  """Of all that numbers may depend on."""
  return {"python": platform.python_version()} | {
      name: importlib.metadata.version(name) for name in _PACKAGES}


def transformer_config(model: Any, dropout_rate: float) -> TransformerConfig:
  """The experiment's `model` sub-tree as a TransformerConfig."""
  return TransformerConfig(**model, dropout_rate=dropout_rate)


@functools.cache
def _param_shapes(model) -> Any:
  return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def init_params(model, key: jax.Array) -> Any:
  """Fresh parameters; shapes do not depend on the tokens shown."""
  tokens = jax.numpy.zeros((1, 2), jax.numpy.int32)
  return model.init(key, tokens, tokens == 0)["params"]
