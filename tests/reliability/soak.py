"""Trains PPO for long, and prints what the process holds on the way.

  python -m tests.reliability.soak WORKDIR NUM_ITERS EVERY

The stages before PPO are those of the tiny run. One JSON object a line and
sample: `step` and the figures of `held`. "objects" are Python's, which tell a
leak there from one below.
"""

import gc
import json
import os
import sys
import threading
from unittest import mock

import jax

from rlhf_jax import host_memory, metrics
from tests import tiny_run

EVERY_SAVE_STEPS = 20
_PAGE = os.sysconf("SC_PAGE_SIZE")


def held() -> dict[str, int]:
  """Bytes of the process and of its devices' arrays, files, threads.

  Garbage in cycles waits for Python's collector, which comes by its own
  count: collected beforehand, for it is no growth.
  """
  gc.collect()
  with open("/proc/self/statm", encoding="ascii") as f:
    host = int(f.read().split()[1]) * _PAGE
  return {"host": host,
          "device": sum(array.nbytes for array in jax.live_arrays()),
          "files": len(os.listdir("/proc/self/fd")),
          "objects": len(gc.get_objects()),
          "threads": threading.active_count(),
          "system_threads": len(os.listdir("/proc/self/task"))}


def sampled(every: int):
  """Prints a sample with every `every`th row of metrics."""
  write = metrics.Writer.write

  def write_and_sample(self, stage, step, values):
    write(self, stage, step, values)
    if step % every == 0:
      print(json.dumps({"step": step, **held()}), flush=True)

  return mock.patch.object(metrics.Writer, "write", write_and_sample)


def main(workdir: str, num_iters: int, every: int) -> None:
  host_memory.restart_with_large_pages()  # as the program does
  config = tiny_run.only(
      ("ppo",), ppo__num_iters=num_iters,
      ppo__every_save_steps=EVERY_SAVE_STEPS)
  # What is learnt does not matter here, and must not end the run.
  config.guards.actions.update(
      dict.fromkeys(("negative_kl", "large_kl", "repeated_batch"), "warn"))
  with sampled(every):
    tiny_run.run(config, workdir)


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
