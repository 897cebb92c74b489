"""Measures what saves cost PPO at `mini`: prints one JSON object.

  python -m tests.reliability.save_cost WORKDIR NUM_PAIRS

Parameters are random, for a save and an iteration take as long with any; data
are few, for the same reason. Iterations without a save and iterations right
after one, while it writes in the background, take turns: both see the same
machine. Seconds of the CPU are those of all threads; on a busy machine they
say more than those of the wall.
"""

import json
import pathlib
import statistics
import sys
import time

import jax

from experiments import ppo_ptx
from rlhf_jax import (
    checkpoint, compilation, host_memory, loop, pipeline, sharding, storage,
)
from rlhf_jax import run as run_lib
from rlhf_jax.trainers import ppo

_WARM_UP = 2  # iterations


def mini_config():
  config = ppo_ptx.get_config("mini")
  config.smallworld.update(
      num_documents=1000, num_demonstrations=240, num_prompts=400)
  return config


def write_stages(run, config) -> None:
  """What PPO reads of the stages before it, with random parameters."""
  models = {config.ppo.init_from: run.policy(),
            config.ppo.reward_model: run.scalar()}
  for stage, model in models.items():
    params, _ = run.init(
        lambda model=model: run_lib.init_params(model, jax.random.key(0)))
    with checkpoint.Checkpoints(
        run.workdir / stage / "checkpoints", keep=1) as saved:
      saved.save(1, {"params": params}, {})
    checkpoint.write_done(run.workdir / stage, {
        "tokenizer": run.tokenizer.digest,
        "figures": {"score_sd": 1.0, "bias": 0.0}})


class Clock:
  """Seconds of the wall and of the CPU since it was made."""

  def __init__(self):
    self._start = time.monotonic(), time.process_time()

  def __call__(self) -> tuple[float, float]:
    return (time.monotonic() - self._start[0],
            time.process_time() - self._start[1])


def measure(training, saved, num_pairs: int) -> dict[str, list]:
  """(wall, CPU) of iterations alone, of the calls of `save`, of iterations
  beside a save, of what was still to be waited for, of whole saves alone."""
  found = {name: [] for name in ("alone", "call", "beside", "wait", "whole")}
  state, number, values = training.create(), 0, {}

  def iterate(state):
    nonlocal number, values
    clock = Clock()
    state, found = training.step(state, training.batch(number), number)
    values = training.read(found)
    jax.block_until_ready(state)
    number += 1
    return state, clock()

  def timed(function):
    clock = Clock()
    function()
    return clock()

  def save():
    loop.save(training, saved, number, state, values)

  for _ in range(_WARM_UP):
    state, _ = iterate(state)
  save()
  saved.wait()
  for _ in range(num_pairs):
    state, seconds = iterate(state)
    found["alone"].append(seconds)
    found["call"].append(timed(save))
    state, seconds = iterate(state)
    found["beside"].append(seconds)
    found["wait"].append(timed(saved.wait))
    found["whole"].append(timed(lambda: (save(), saved.wait())))
  return found


def figures(found: dict[str, list], every: int, num_bytes: int) -> dict:
  """Medians, and the share of a save in the time of `every` iterations."""
  wall, cpu = (
      {name: statistics.median(pair[kind] for pair in pairs)
       for name, pairs in found.items()} for kind in (0, 1))
  slower = statistics.median(
      beside[0] - alone[0]
      for alone, beside in zip(found["alone"], found["beside"]))
  share = lambda cost, step: round(100 * cost / (every * step), 3)
  seconds = {
      "iteration_seconds": wall["alone"], "iteration_cpu_seconds": cpu["alone"],
      "call_seconds": wall["call"], "slower_by_seconds": slower,
      "whole_cpu_seconds": cpu["whole"]}
  return {
      **{name: round(value, 3) for name, value in seconds.items()},
      "saved_bytes": num_bytes,
      "every": every, "pairs": len(found["alone"]),
      "percent_blocking": share(wall["call"], wall["alone"]),
      "percent_wall": share(wall["call"] + slower, wall["alone"]),
      "percent_cpu": share(cpu["whole"], cpu["alone"]),
      "percent_cpu_every_iteration": round(
          100 * cpu["whole"] / cpu["alone"], 3)}


def main(folder: str, num_pairs: int) -> None:
  host_memory.restart_with_large_pages()  # as the program does
  workdir = storage.absolute(folder)
  compilation.enable_compilation_cache(workdir)
  config = mini_config()
  run = pipeline.make_run(config, workdir)
  config.stages = ("ppo",)
  pipeline.prepare_first_data(run)
  with sharding.use(run.mesh, run.axis_rules):
    write_stages(run, config)
    training = ppo.make_training(run, "ppo")
    with loop.open_checkpoints(training) as saved:
      found = measure(training, saved, num_pairs)
  num_bytes = sum(
      path.stat().st_size
      for path in pathlib.Path(folder).glob("ppo/checkpoints/*/**/*")
      if path.is_file()) // len(saved.steps)
  print(json.dumps(figures(found, config.ppo.every_save_steps, num_bytes)))


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]))
