"""Runs an experiment.

  python -m rlhf_jax.main --config=experiments/ppo_ptx.py[:SIZE] \
      [--workdir=DIR] [--config.a.b=VALUE ...]

As one of several processes, with one of:

      --distributed                     as JAX detects it: TPU pod, SLURM, GKE
      --coordinator=HOST:PORT --num_processes=N --process_id=I
"""

import re
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath
from ml_collections import config_flags

from rlhf_jax import (
    checkpoint, config, distributed, handoff, host_memory, metrics, pipeline,
)
from rlhf_jax.data.records import DataError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, as experiments/ppo_ptx.py:mini.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None,
    "Where everything is written, resumed and skipped; by default "
    "runs/NAME of the experiment.")
# Parsed first and on their own: a wrong setting is then said once, by all
# processes together.
_START = flags.FlagValues()
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT at which process 0 is found.",
    flag_values=_START)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes run together.",
    flag_values=_START)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", flag_values=_START)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "These three as JAX detects them.",
    flag_values=_START)
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout", 300, "Seconds to wait for the other processes.",
    lower_bound=1, flag_values=_START)
flags.FLAGS.append_flag_values(_START)
# What a person can mend: one message, no traceback.
_USER_ERRORS = (
    config.ConfigError, DataError, pipeline.WorkdirError,
    checkpoint.CheckpointError)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  host_memory.keep_freed_memory()
  logging.set_verbosity(logging.WARNING)  # the libraries' own; ours is printed
  workdir = epath.Path(_WORKDIR.value or f"runs/{_CONFIG.value.name}")
  try:
    pipeline.run_all(_CONFIG.value, workdir)
  except handoff.WaitingForPeople as waiting:
    metrics.say(f"\n{waiting}")
  except _USER_ERRORS as error:
    refuse(error)


def parse_flags(argv):
  """absl's parser; no such experiment or key is one message as well."""
  sys.argv = argv = [quote_round(arg) for arg in argv]  # absl reads both
  try:
    start_processes(argv)
    rest = flags.FLAGS(argv)
    _CONFIG.value.name  # what is wrong with the file is raised on first use
    return rest
  except (AttributeError, KeyError) as error:
    while isinstance(error.args[0], Exception):
      error = error.args[0]
    refuse(f"--config has no key {error.args[0]}")
  except (OSError, ValueError, distributed.StartError) as error:
    refuse(error)
  except flags.Error as error:
    refuse(without_traceback(str(error)))


def start_processes(argv):
  """Joins the other processes, if there are any.

  Raises:
    StartError: the flags contradict each other, or somebody does not come.
  """
  _START.set_gnu_getopt(True)
  _START(argv, known_only=True)
  cluster = distributed.explicit(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if _DISTRIBUTED.value:
    if cluster is not None:
      raise distributed.StartError(
          "--distributed detects what --coordinator, --num_processes and "
          "--process_id say; give one or the other")
    cluster = distributed.detected(_START_TIMEOUT.value)
  if cluster is not None:
    distributed.start(cluster, _START_TIMEOUT.value)


def quote_round(arg):
  """--config.collect@2.labeler=... and --config.inputs.rm@2=... as the library
  spells such keys: of the config itself with a dot, of a sub-tree without."""
  arg = re.sub(r"^(--?config\.)(\w+@\w+)(?=[.=]|$)", r"\1['\2']", arg)
  return re.sub(
      r"^(--?config(?:\.\w+)+)\.(\w+@\w+)(?=[.=]|$)", r"\1['\2']", arg)


def without_traceback(text):
  """What an experiment's file raised, and where, from the library's account."""
  places = re.findall(r'File "(.*)", line (\d+)', text)
  raised = re.findall(r"^ *(\w[\w.]*: .*)", text, re.MULTILINE)
  if not places:
    return text
  return f"{':'.join(places[-1])}: {raised[-1]}"


def refuse(error):
  distributed.refuse(str(error))


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  with distributed.reported():
    app.run(main, flags_parser=parse_flags)
