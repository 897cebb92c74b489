"""One run of the whole method, made once and shared by all tests and workers.

  @pytest.fixture(name="base", scope="module")
  def _base():
    return tiny_run.base()
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
from unittest import mock

import jax
from jax.experimental.compilation_cache import compilation_cache
import ml_collections

from experiments import common
from experiments import ppo_ptx
from rlhf_jax import metrics
from rlhf_jax import pipeline
from rlhf_jax.config.names import kind_of
from tests import shared


@dataclasses.dataclass(frozen=True)
class Base:
  """A finished run. Tests read it and leave it as it is."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  printed: str  # on the terminal

  def json(self, name: str):
    return json.loads((self.workdir / name).read_text())

  def rows(self, name: str) -> list[dict]:
    """The objects of a file of JSON lines."""
    lines = (self.workdir / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


@functools.cache
def base() -> Base:
  """All seven stages, on all devices of the process."""
  keep_compiled()
  config, workdir = tiny_config(), shared.folder() / "base"
  terminal = shared.folder() / "base.txt"
  with shared.lock("base"):
    if not terminal.exists():
      shutil.rmtree(workdir, ignore_errors=True)  # of a worker that failed
      with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(config, workdir)
      terminal.write_text(printed.getvalue())
  return Base(config, workdir, terminal.read_text())


def keep_compiled() -> None:
  """What compiles once need not compile again when a stage is repeated."""
  jax.config.update("jax_compilation_cache_dir", str(shared.compiled()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  compilation_cache.reset_cache()


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """`pipeline.run_all`, compiled in a hurry: it is mostly compiling."""
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    pipeline.run_all(config, workdir)
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_config(**overrides) -> ml_collections.ConfigDict:
  """`ppo_ptx:mini` in seconds, on one device or eight.

  Args:
    **overrides: `a__b=value` sets config.a.b.
  """
  config = ppo_ptx.get_config("mini")
  config.name = "tiny"
  config.sft_select = common.sft_select("mini")
  config.inputs.sft_select = ""
  shrink(config)
  config.evaluate.policies = ("pretrain", "sft", "ppo")
  for path, value in overrides.items():
    set_key(config, path.replace("__", "."), value)
  return config


def shrink(config: ml_collections.ConfigDict) -> None:
  """Sizes and steps with which the stages of an experiment take seconds;
  models that are imported keep their own."""
  for model in (config.model, config.rm_model):
    if model.d_model is not None:
      model.update(num_layers=2, d_model=32, num_heads=2, vocab_size=511)
    model.update(context_length=64, vocab_multiple=64, scan_unroll=1)
  config.data.update(max_prompt_tokens=28, max_response_tokens=36)
  config.smallworld.update(
      num_documents=200, num_demonstrations=240, num_prompts=240)
  for stage in config.stages:
    _SHRINK[kind_of(stage)](config[stage])


def _shrink_lm(stage) -> None:
  stage.update(num_steps=16, num_epochs=0, every_log_steps=4,
               every_eval_steps=8, every_save_steps=8, max_eval_batches=1,
               eval_batch_size=16)
  stage.optimizer.learning_rate = 1e-2  # enough to learn to end
  for key in ("batch_size", "pretrain_batch_size"):
    if stage[key]:
      stage[key] = 16


def _shrink_rm(stage) -> None:
  stage.update(num_epochs=2, batch_size=8, eval_batch_size=64,
               every_log_steps=1, max_responses=min(5, stage.max_responses),
               every_save_steps=2)
  if stage.batching == "pairs":
    stage.update(batch_size=16, num_microbatches=2)
  if stage.max_prompts is not None:
    stage.max_prompts = min(16, stage.max_prompts)  # a fold has some 20


def _shrink_collect(stage) -> None:
  stage.update(num_prompts=32, num_validation_prompts=8, prompts_per_batch=8,
               min_responses=4, max_responses=5)


def _shrink_ppo(stage) -> None:
  stage.update(num_iters=3, batch_size=16, ptx_batch_size=16,
               every_save_steps=1)
  stage.method.num_minibatches = 2


def _shrink_evaluate(stage) -> None:
  stage.update(num_prompts=32, batch_size=32, pretrain_batch_size=16,
               max_pretrain_batches=1)


_SHRINK = {"lm": _shrink_lm, "rm": _shrink_rm, "collect": _shrink_collect,
           "ppo": _shrink_ppo, "evaluate": _shrink_evaluate,
           "select": lambda stage: None}


def interrupt_at(stage: str, step: int):
  """Ctrl-C, or a lost machine, when the metrics of a step are written."""
  write = metrics.Writer.write

  def stop(self, name, now, values):
    if (name, now) == (stage, step):
      raise KeyboardInterrupt
    write(self, name, now, values)

  return mock.patch.object(metrics.Writer, "write", stop)


def only(stages: tuple[str, ...], **overrides) -> ml_collections.ConfigDict:
  """Some stages of the tiny run; the base run's stand in for the others."""
  config = tiny_config(stages=stages, **overrides)
  for stage in base().config.stages:
    if stage not in stages:
      config.inputs[stage] = str(base().workdir / stage)
  return config


def set_key(config: ml_collections.ConfigDict, path: str, value) -> None:
  """Sets config.a.b for the path "a.b"."""
  *parents, last = path.split(".")
  for name in parents:
    config = config[name]
  config[last] = value


def contents(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  """Path -> (bytes, time of the last change) of every file below."""
  return {
      str(path.relative_to(folder)):
          (path.read_bytes(), path.stat().st_mtime_ns)
      for path in sorted(folder.rglob("*")) if path.is_file()
  }
