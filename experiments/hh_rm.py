"""A reward model of real human comparisons, from all that there are.

  python -m rlhf_jax.main --config=experiments/hh_rm.py --workdir=runs/hh_rm \
      --config.data.root=DATA

`hh.py` up to the reward model, which learns from all training comparisons, not
from one half of them. `rm/report.json` says by how much its accuracy on
validation comparisons is above that of "the longer response wins".
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("hh_rm", size, stages=("pretrain", "sft", "rm"))
  common.set_hh(config, size)
  config.pretrain = common.hh_pretrain(size)
  config.sft = common.hh_sft(size)
  config.rm = common.hh_rm(size)
  return config
