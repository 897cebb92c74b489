"""Runs that nothing disturbed, made once for all tests that compare with them.
"""

import pathlib

from tests import processes, shared

NUM_DEVICES = 2


def command() -> tuple[str, ...]:
  """The program's flags, its workdir left out."""
  folder = shared.folder() / "few_steps"
  folder.mkdir(exist_ok=True)
  return (f"--config={processes.write_experiment(folder)}",)


def run(num_processes: int) -> pathlib.Path:
  """The workdir of a finished run of so many processes, each started by
  itself."""
  name = f"undisturbed_{num_processes}"
  workdir = shared.folder() / name
  with shared.lock(name):
    if not (workdir / "summary.json").exists():
      for ended in processes.run(
          num_processes, *command(), f"--workdir={workdir}",
          num_devices=NUM_DEVICES, imports=True):
        assert ended.status == 0, ended.printed
  return workdir
