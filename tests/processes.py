"""Real processes of the program, on virtual CPU devices.

  python -c "from tests import processes; processes.main()" FLAGS...

is rlhf_jax.main, but with what the environment variable FAULT asks for, as
pretrain/2/1/SIGKILL: when process 1 writes step 2 of `pretrain`, it gets that
signal (SIGINT+SIGINT: one after the other), or raises an error (raise).
"""

import dataclasses
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time

from tests import forked, shared

Process = subprocess.Popen | forked.Process
_PROGRAM = "from tests import processes; processes.main()"
ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 400  # seconds of the longest run, where the machine is busy
BETWEEN_SIGNALS = 0.05  # seconds: those of a kind that come at once are one


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a process ended.

  Attributes:
    status: its exit status; minus the signal that killed it.
    printed: on both its streams.
    seconds: after the first of the processes that ended.
  """

  status: int
  printed: str
  seconds: float


def config():
  """The tiny run with as few steps as let every stage go through."""
  from tests import tiny_run  # pylint: disable=g-import-not-at-top
  made = tiny_run.tiny_config()
  for stage in (made.pretrain, made.sft, made.rl_init):
    stage.update(num_steps=3, every_log_steps=1, every_eval_steps=6,
                 every_save_steps=1)
  made.pretrain.num_steps = 6
  for model in (made.model, made.rm_model):
    model.update(num_layers=1, num_heads=4)
  made.smallworld.update(
      num_documents=100, num_demonstrations=120, num_prompts=120)
  made.collect.update(num_prompts=16, num_validation_prompts=8)
  made.rm.num_epochs = 1
  made.ppo.num_iters = 2
  made.evaluate.update(policies=("sft", "ppo"), num_prompts=16, batch_size=16)
  return made


def write_experiment(folder: pathlib.Path) -> pathlib.Path:
  path = folder / "few_steps.py"
  path.write_text("from tests import processes\n\n\ndef get_config():\n"
                  "  return processes.config()\n")
  return path


def free_port() -> int:
  with socket.create_server(("localhost", 0)) as server:
    return server.getsockname()[1]


def environment(num_devices: int, fault: str = "") -> dict[str, str]:
  return os.environ | {
      "JAX_COMPILATION_CACHE_DIR": str(shared.compiled()),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "NPROC": "64",
      "PYTHONPATH": str(ROOT), "FAULT": fault}


def start(*args: str, num_devices: int, fault: str = "",
          imports: bool = False) -> Process:
  """Starts one process, forked after its imports unless they matter."""
  env = environment(num_devices, fault)
  if not imports:
    return forked.Process(_PROGRAM, *args, env=env)
  return subprocess.Popen(
      [sys.executable, "-c", _PROGRAM, *args], cwd=ROOT, env=env,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      errors="replace")


def run(num_processes: int, *args: str, **options) -> list[Ended]:
  """Runs the program in so many processes that share some devices."""
  return wait(start_all(num_processes, *args, **options))


def start_all(num_processes: int, *args: str, num_devices: int = 8,
              **options) -> list[Process]:
  """Starts what `run` runs."""
  own = num_devices // num_processes
  if num_processes == 1:
    return [start(*args, num_devices=own, **options)]
  port = free_port()
  return [
      start(f"--coordinator=localhost:{port}",
            f"--num_processes={num_processes}", f"--process_id={i}", *args,
            num_devices=own, **options)
      for i in range(num_processes)]


def wait(processes: list[Process]) -> list[Ended]:
  """Ends them all should they take too long."""
  until, at = time.monotonic() + LIMIT, {}
  while len(at) < len(processes) and time.monotonic() < until:
    for i, process in enumerate(processes):
      if i not in at and process.poll() is not None:
        at[i] = time.monotonic()
    time.sleep(0.1)
  for process in processes:
    process.kill()
  printed = [process.communicate()[0] for process in processes]
  assert len(at) == len(processes), "\n----\n".join(printed)
  first = min(at.values())
  return [Ended(process.returncode, text, at[i] - first)
          for i, (process, text) in enumerate(zip(processes, printed))]


def arm(fault: str) -> None:
  """Makes this process fail at the step that `fault` names."""
  import jax  # pylint: disable=g-import-not-at-top
  from rlhf_jax import metrics  # pylint: disable=g-import-not-at-top
  stage, step, process, how = fault.split("/")
  write = metrics.Writer.write

  def write_or_fail(self, at_stage, at_step, values):
    write(self, at_stage, at_step, values)
    if (at_stage, at_step, jax.process_index()) == (
        stage, int(step), int(process)):
      fail(how)

  metrics.Writer.write = write_or_fail


def fail(how: str) -> None:
  if how == "raise":
    raise FloatingPointError("the loss is not finite")
  for name in how.split("+"):
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(BETWEEN_SIGNALS)


def main() -> None:
  if os.environ["FAULT"]:
    arm(os.environ["FAULT"])
  sys.argv[0] = "rlhf_jax.main"
  runpy.run_module("rlhf_jax.main", run_name="__main__", alter_sys=True)
