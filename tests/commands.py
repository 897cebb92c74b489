"""Calls of the package's commands, each in a process of its own.

What they import takes seconds: so one process imports it all but them, and
forks for each call.

  python -c "from tests import commands; commands.main()" '[["sample"], ...]'

prints a JSON list: of each call its status, what it prints on both streams, and
the flags that it has defined.
"""

import json
import os
import runpy
import sys
import tempfile

from absl import app
from absl import flags


def main() -> None:
  import_all()
  calls = json.loads(sys.argv[1])
  print(json.dumps([in_a_fork(*call) for call in calls]))


def import_all() -> None:
  # pylint: disable=g-import-not-at-top,unused-import
  import rlhf_jax.command
  import rlhf_jax.evals.suite
  import rlhf_jax.hf.exporting
  import rlhf_jax.model_card
  import rlhf_jax.pipeline
  import rlhf_jax.plan.search
  import rlhf_jax.report.page
  import rlhf_jax.screening


def in_a_fork(command: str, *args: str) -> dict:
  """What a call gives."""
  app.define_help_flags()
  known = set(flags.FLAGS)
  reader, writer = os.pipe()
  with tempfile.TemporaryFile("w+") as printed:
    pid = os.fork()
    if not pid:
      for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
      status = call(command, *args)
      with os.fdopen(writer, "w") as answer:
        answer.write(json.dumps({"status": status, "flags": own_flags(known)}))
      os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
      found = json.loads(answer.read())
    os.waitpid(pid, 0)
    printed.seek(0)
    return found | {"printed": printed.read().strip()}


def call(command: str, *args: str) -> int:
  sys.argv[1:] = args
  try:
    # rlhf_jax.compare is imported by rlhf_jax.report
    sys.modules.pop(f"rlhf_jax.{command}", None)
    runpy.run_module(f"rlhf_jax.{command}", run_name="__main__", alter_sys=True)
  except SystemExit as stop:
    return stop.code or 0
  finally:
    sys.stdout.flush()
  return 0


def own_flags(known: set[str]) -> dict[str, tuple]:
  """Name -> (help, default) of the flags that are not known."""
  return {
      name: (flags.FLAGS[name].help,
             flags.FLAGS[name].default if name != "config" else None)
      for name in set(flags.FLAGS) - known}
