"""A forked process is as good as one that Python started."""

import os
import signal
import subprocess

import pytest

from tests import forked, processes


def start(code, *args, num_devices=1, fault=""):
  return forked.Process(
      code, *args, env=processes.environment(num_devices, fault))


@pytest.mark.parametrize("code, status", [
    ("pass", 0), ("raise SystemExit(75)", 75), ("1 / 0", 1),
    ("import os; os._exit(3)", 3),
    ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM)])
def test_its_status_is_its_own(code, status):
  started = start(code)
  printed, _ = started.communicate()
  assert (started.returncode, started.poll(), started.wait()) == (status,) * 3
  assert ("ZeroDivisionError" in printed) == ("/" in code)
  started.kill()  # one that ended is not there to be killed


def test_it_is_there_until_a_signal_ends_it():
  # no pause(), before which a signal may come
  started = start(
      "import time; print('ready', flush=True)\nwhile True: time.sleep(.01)")
  assert started.stdout.readline() == "ready\n"
  with pytest.raises(subprocess.TimeoutExpired):
    started.wait(0.01)
  os.kill(started.pid, 0)
  started.send_signal(signal.SIGINT)
  printed, _ = started.communicate()
  assert started.returncode == -signal.SIGINT and "KeyboardInterrupt" in printed


def test_it_has_its_own_arguments_environment_devices_and_end():
  code = """
import atexit, os, sys, jax
atexit.register(print, "the end")
print(__name__, sys.argv, os.environ["FAULT"], jax.local_device_count(),
      os.getpid(), os.getcwd())
"""
  first, second = (start(code, str(n), num_devices=n, fault=f"f{n}")
                   for n in (1, 2))
  for n, process in ((1, first), (2, second)):
    printed, _ = process.communicate()
    assert printed == (f"__main__ ['-c', '{n}'] f{n} {n} {process.pid} "
                       f"{processes.ROOT}\nthe end\n")


def test_nothing_is_started_before_the_fork():
  code = """
import os, sys, threading
from jax._src import xla_bridge
assert "rlhf_jax.pipeline" in sys.modules and not "rlhf_jax.main" in sys.modules
assert not xla_bridge.backends_are_initialized()
assert len(os.listdir("/proc/self/task")) == threading.active_count() == 1
paths = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
assert not [path for path in paths if os.path.islink(path)
            and "socket" in os.readlink(path)], "the mother's channel"
"""
  started = start(code)
  printed, _ = started.communicate()
  assert started.returncode == 0, printed
