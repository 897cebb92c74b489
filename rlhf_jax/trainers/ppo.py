"""The stage that trains with PPO: its models, prompts and loop.

The method itself is in `ppo_step`: what becomes of a rollout.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from rlhf_jax import (
    checkpoint, loop, metrics, optimizer, ppo_step, profiling, sampler,
    sharding, streams,
)
from rlhf_jax.evals import diversity
from rlhf_jax.models import scalar
from rlhf_jax.ppo_step import Frozen, PPOSettings
from rlhf_jax.rollout import Rollout
from rlhf_jax.run import Run


def train(run: Run, stage: str) -> dict[str, Any]:
  """Trains `stage` and returns its figures for done.json."""
  config = run.config[stage]
  with sharding.use(run.mesh, run.axis_rules):
    training = make_training(run, stage)
    with loop.open_checkpoints(training) as saved:
      loop.train(training, saved, every_log_steps=1,
                 is_saved=lambda step: metrics.should_run(
                     step, config.every_save_steps, config.num_iters))
  return figures(run, stage, config, training.constants["score_unit"])


def make_training(run: Run, stage: str) -> loop.Training:
  """What the loop needs of `stage`; under `sharding.use`. The reference and
  the reward model are loaded, the state is not."""
  config, policy, critic = run.config[stage], run.policy(), run.scalar()
  measured = checkpoint.read_done(run.stage_dir(config.reward_model))["figures"]
  frozen, unit = load_frozen(run, config, measured["score_sd"])
  settings = make_settings(run, config, unit)
  tx, critic_tx = make_optimizers(config, settings)
  start = (
      functools.partial(ppo_step.init_state, tx=tx, critic_tx=critic_tx,
                        kl_coef=settings.kl_coef),
      frozen.reference, frozen.reward_model)
  abstract = run.abstract(*start)
  step_fn = sharding.jit_step(
      ppo_step.make_ppo_step(policy, critic, tx, critic_tx, settings), abstract)
  generate = sampler.make_generate(
      run, policy, temperature=settings.temperature,
      num_parts=config.num_rollout_parts)
  key_sample, key_perm = jax.random.split(run.key(stage))
  streams_of = training_streams(run, stage, config)
  rows = run.rows_here(config.batch_size).astype(np.int32)

  read = Reader(run)

  def step(state, batch, number):
    started = time.monotonic()
    row_ids = number * config.batch_size + rows
    with profiling.phase("generate") as done:
      sampled = done(generate(
          state.params, key_sample,
          run.put({**batch["prompts"], "row_ids": row_ids})))
    whole = sampler.gathered(run, sampled)
    ptx = batch.get("pretrain")
    with profiling.phase("score and update") as done:
      state, values = done(step_fn(
          state, frozen, sampled, ptx and run.put(ptx["tokens"]),
          jax.random.fold_in(key_perm, number)))
    if ptx:
      values["train/ptx/next_row"] = (number + 1) * config.ptx_batch_size
    return state, Found(started, whole, values)

  return loop.Training(
      run=run, stage=stage, num_steps=config.num_iters, abstract=abstract,
      create=lambda: run.init(*start)[0], streams=streams_of,
      batch=lambda number: {
          name: at(number) for name, at in streams_of.items()},
      step=step, read=read, constants={
          "score_unit": unit, "reward_bias": measured.get("bias"),
          "reward_score_sd": measured["score_sd"]},
      shown={"score": "train/ppo/score", "kl": "train/ppo/kl"})


def training_streams(run: Run, stage: str, config):
  """Prompts, and pretraining windows unless they play no part."""
  found = {"prompts": streams.prompts(run, stage, config.batch_size)}
  if config.method.ptx_coef > 0:
    found["pretrain"] = streams.pretrain(
        run, "train", config.ptx_batch_size, run.data_seed(stage, "pretrain"))
  return found


@dataclasses.dataclass(frozen=True)
class Found:
  """What an iteration gives, perhaps before it is there.

  Attributes:
    started: when it was given to the devices, in seconds.
    whole: its rollout, on every device.
    values: its metrics.
  """

  started: float
  whole: Rollout
  values: dict[str, Any]


class Reader:
  """`read(found)`: an iteration's metrics, with what only guards want to know
  and its seconds. They count from when the iteration before was read, or from
  when this one was given to the devices, whatever is later."""

  def __init__(self, run: Run):
    self._run = run
    self._ended = 0.0  # the iteration read last

  def __call__(self, found: Found) -> dict[str, Any]:
    jax.block_until_ready(found.whole)
    sampled = time.monotonic()
    # while the devices are at work
    figures = rollout_figures(self._run, jax.device_get(found.whole))
    values = jax.device_get(found.values)
    started = max(found.started, self._ended)
    self._ended = time.monotonic()
    return values | figures | {
        "train/ppo/rollout_seconds": sampled - started,
        "train/ppo/iteration_seconds": self._ended - started}


def rollout_figures(run: Run, whole: Rollout) -> dict[str, float]:
  """What only the guards want to know: how varied the responses are, and in
  Smallworld the truth that PPO never sees."""
  responses = [row[real] for row, real in zip(
      whole.response_tokens, whole.response_mask)]
  found = {"train/ppo/distinct": diversity.distinct(responses)}
  if run.rubric is not None:
    prompts = (run.prompt_text(row[real]) for row, real in zip(
        whole.prompt_tokens, whole.prompt_mask))
    texts = (run.tokenizer.decode(row).strip() for row in responses)
    found["train/ppo/gold"] = float(np.mean([
        run.rubric.judge(prompt, text).score
        for prompt, text in zip(prompts, texts)]))
  return found


def load_frozen(
    run: Run, config, score_sd: float) -> tuple[Frozen, float]:
  """The reference and the reward model, and one SD of its scores as it is
  given: with `reward_unit = "sd"` the head is scaled so that an SD is 1.
  """
  reward_model = run.load(config.reward_model, "params", run.scalar())
  unit = score_sd
  if config.reward_unit == "sd":
    reward_model = sharding.in_place(functools.partial(
        scalar.shift_and_scale, bias=0.0, scale=1.0 / score_sd), reward_model)
    unit = 1.0
  reference = run.load(config.init_from, "params", run.policy())
  return Frozen(reference=reference, reward_model=reward_model), unit


def make_settings(run: Run, config, unit: float) -> PPOSettings:
  """The experiment's sub-tree; what is in SDs of the score becomes scores."""
  method = dict(config.method)
  method["value_clip_eps"] *= unit
  method["missing_eos_penalty"] *= unit
  return PPOSettings(**method, eos_id=run.tokenizer.eos_id)


def make_optimizers(config, settings: PPOSettings):
  """Policy and critic have a learning rate and an Adam each."""

  def adam(learning_rate, warmup_iters, start_fraction, **adam):
    schedule = optimizer.ppo_warmup(
        learning_rate, steps_per_iter=settings.num_updates,
        warmup_iters=warmup_iters, start_fraction=start_fraction)
    return optimizer.make_adam(schedule, **adam)

  return adam(**config.optimizer), adam(**config.critic_optimizer)


def figures(run: Run, stage: str, config, unit: float) -> dict[str, Any]:
  """What done.json says of the stage: the mean of its last iterations."""
  rows = run.writer.read(stage)
  mean = lambda name: float(np.mean([r[name] for r in rows[-10:]]))
  names = ("train/ppo/score", "train/ppo/kl", "train/ppo/response_length",
           "train/ppo/ended", "train/critic/explained_variance")
  worst = max(r["train/ppo/first_ratio_deviation"] for r in rows)
  return {"iterations": config.num_iters, "score_unit": unit,
          "first_ratio_deviation_max": worst,
          **{name.rsplit("/", 1)[1]: mean(name) for name in names}}
