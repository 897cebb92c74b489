"""Runs an experiment.

  python -m rlhf_jax.main --config=experiments/ppo_ptx.py[:SIZE]
      [--workdir=DIR] [--config.a.b=VALUE ...]

SIZE is mini, the default, for two CPU cores, or one of the paper's: 125m, 350m,
760m, 1.3b, 2.7b, 6b, 13b, 175b (gpt2.py: 124m, 355m, 774m, 1.5b). The same
command goes on where it was interrupted, and skips what is finished. DIR is
runs/NAME of the experiment unless it is given; what to look at there:

  report.html     the whole run on one page, without a network
  summary.json    its figures
  samples.jsonl   held-out prompts, and what each policy responds
  STAGE/          checkpoints, for the commands sample, evaluate and export

Any setting of the experiment can be overridden. Often it is one of these:

  --config.seed=1                             the same run with other noise
  --config.ppo.method.kl_coef=0.3             stay closer to the policy before
  --config.ppo.method.ptx_coef=2.0            keep more of the pretraining
  --config.ppo.num_iters=20                   less PPO
  --config.data.demonstrations=jsonl:FILE     your own; also prompts,
                                              comparisons and pretrain
  --config.inputs.pretrain=runs/A/pretrain    the finished stage of another run
  --config.mesh.fsdp=4                        devices that share the parameters

As one of several processes, with one of:

  --distributed                       as JAX detects it: TPU pod, SLURM, GKE
  --coordinator=HOST:PORT --num_processes=N --process_id=I
"""

from rlhf_jax import exits, host_memory, usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)
  host_memory.restart_with_large_pages()
  exits.heed_early_signals()  # while the rest is imported

# pylint: disable=wrong-import-position
from absl import app
from absl import flags
from absl import logging
from etils import epath

from rlhf_jax import (
    command, compilation, distributed, ending, faults, interruption, pipeline,
)

_CONFIG = command.config_flag()
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
_GRACE_SECONDS = flags.DEFINE_float(
    "grace_seconds", interruption.GRACE_SECONDS,
    "After SIGTERM the process ends after so many seconds, saved or not.",
    lower_bound=0, flag_values=_START)
flags.FLAGS.append_flag_values(_START)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)  # the libraries' own; ours is printed
  logging.get_absl_logger().addFilter(faults.is_news)
  workdir = epath.Path(_WORKDIR.value or f"runs/{_CONFIG.value.name}")
  compilation.enable_compilation_cache(workdir)
  with ending.one_message():
    pipeline.run_all(_CONFIG.value, workdir)


def parse_flags(argv):
  """The other processes first, if there are any, then the flags."""
  try:
    start_processes(argv)
  except (distributed.StartError, flags.Error) as error:
    distributed.refuse(str(error))
  return command.parse_flags(_CONFIG, argv)


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
  if cluster is None:
    interruption.heed_signals(_GRACE_SECONDS.value)
  else:
    distributed.start(cluster, _START_TIMEOUT.value, _GRACE_SECONDS.value)


if __name__ == "__main__":
  with distributed.reported():
    usage.run(main, required=["config"], flags_parser=parse_flags)
