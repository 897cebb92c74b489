"""`rm.py` with the pairs of a prompt as independent examples (3.5).

  python -m rlhf_jax.main --config=experiments/rm_pairs.py --workdir=runs/pairs

What K-wise batches are for: compare `validation_by_epoch` in the two runs'
rm/done.json, or run `labeling.py`, which has both.
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("rm_pairs", size, stages=(
      "pretrain", "sft", "collect", "rm"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.collect = common.collect(size)
  config.rm = common.rm_pairs(size)
  return config
