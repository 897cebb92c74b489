"""Runs an experiment.

  python -m rlhf_jax.main --config=experiments/ppo_ptx.py[:SIZE] \
      [--workdir=DIR] [--config.a.b=VALUE ...]
"""

import re
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath
from ml_collections import config_flags

from rlhf_jax import (
    checkpoint, compilation, config, handoff, host_memory, pipeline, storage,
)
from rlhf_jax.data.records import DataError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, as experiments/ppo_ptx.py:mini.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None,
    "Where everything is written, resumed and skipped; by default "
    "runs/NAME of the experiment.")
# What a person can mend: one message, no traceback.
_USER_ERRORS = (
    config.ConfigError, DataError, pipeline.WorkdirError,
    checkpoint.CheckpointError, storage.StorageError)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  host_memory.keep_freed_memory()
  logging.set_verbosity(logging.WARNING)  # the libraries' own; ours is printed
  workdir = epath.Path(_WORKDIR.value or f"runs/{_CONFIG.value.name}")
  compilation.enable_compilation_cache(workdir)
  try:
    pipeline.run_all(_CONFIG.value, workdir)
  except handoff.WaitingForPeople as waiting:
    print(f"\n{waiting}", flush=True)
  except _USER_ERRORS as error:
    refuse(error)


def parse_flags(argv):
  """absl's parser; no such experiment or key is one message as well."""
  sys.argv = argv = [quote_round(arg) for arg in argv]  # absl reads both
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.name  # what is wrong with the file is raised on first use
    return rest
  except (AttributeError, KeyError) as error:
    while isinstance(error.args[0], Exception):
      error = error.args[0]
    refuse(f"--config has no key {error.args[0]}")
  except (OSError, ValueError) as error:
    refuse(error)
  except flags.Error as error:
    refuse(without_traceback(str(error)))


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
  print(f"\nerror: {error}", file=sys.stderr)
  sys.exit(2)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse_flags)
