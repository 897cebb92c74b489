"""launch/local.sh with the program itself: saved, resumed, started again."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from rlhf_jax import exits
from tests import processes

LAUNCH = processes.ROOT / "launch"


@contextlib.contextmanager
def local(folder, num_steps):
  """local.sh with two real processes, up to `pretrain` of so many steps.

  Yields the process and two functions: `reaches(step)` waits for that row,
  `ended()` returns what `communicate` does.
  """
  process = subprocess.Popen(
      [shutil.which("bash"), str(LAUNCH / "local.sh"), "--processes=2",
       "--devices=2", f"--port={processes.free_port()}",
       f"--python={sys.executable}", f"--workdir={folder / 'run'}",
       f"--config={processes.write_experiment(folder)}",
       "--max-restarts=1", "--", "--config.stages=('pretrain',)",
       f"--config.pretrain.num_steps={num_steps}"],
      cwd=processes.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True, env=processes.environment(2))
  rows = folder / "run" / "metrics.jsonl"

  def reaches(step):
    until = time.monotonic() + processes.LIMIT
    while not (rows.exists() and f'"step": {step},' in rows.read_text()):
      assert process.poll() is None, process.communicate()
      assert time.monotonic() < until
      time.sleep(0.01)

  try:
    yield (process, reaches,
           lambda: process.communicate(timeout=processes.LIMIT))
  finally:
    process.send_signal(signal.SIGINT)  # twice: its processes end as well
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)


def number_of(process, flag):
  """The id of a process's child that was started with a flag."""
  listed = subprocess.run(
      ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)],
      capture_output=True, text=True, check=True).stdout.splitlines()
  number, = [int(line.split()[0]) for line in listed if flag in line]
  return number


def test_local_saves_goes_on_and_starts_again_after_a_kill(tmp_path, account):
  folder, steps = tmp_path / "run", 24
  with local(tmp_path, steps) as (process, reaches, ended):
    reaches(1)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    _, err = ended()
    account("preemption", case="local.sh", status=process.returncode,
            seconds=round(time.monotonic() - told, 2))
    assert (process.returncode, err) == (exits.PREEMPTED, "")
  log = (folder / "logs/process-0.log").read_text()
  saved, = re.findall(r"ended as asked\. pretrain: step (\d+) of", log)
  assert (folder / "pretrain/checkpoints" / saved).exists()
  with local(tmp_path, steps) as (process, reaches, ended):
    reaches(int(saved) + 1)
    os.kill(number_of(process, "--process_id=1"), signal.SIGKILL)
    out, err = ended()
  assert process.returncode == 0 and "restart 1 of 1" in err, err
  assert "pretrain" in out  # the log of process 0 is shown
  rows = [json.loads(line) for line in
          (folder / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "train/pretrain/loss" in row] == list(
      range(1, steps + 1))
  assert json.loads((folder / "pretrain/done.json").read_text())
  assert {p.name for p in (folder / "logs").iterdir()} == {
      "process-0.log", "process-1.log"}
