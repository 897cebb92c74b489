"""Up to the reward model: pretrain, SFT, comparisons, reward model.

  python -m rlhf_jax.main --config=experiments/rm.py --workdir=runs/rm
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("rm", size, stages=(
      "pretrain", "sft", "collect", "rm"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.collect = common.collect(size)
  config.rm = common.rm(size)
  return config
