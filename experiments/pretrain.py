"""Language modelling from scratch (GPT-3 appendix B).

  python -m rlhf_jax.main --config=experiments/pretrain.py
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("pretrain", size, stages=("pretrain",))
  config.pretrain = common.pretrain(size)
  return config
