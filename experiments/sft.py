"""Pretraining and supervised fine-tuning only (InstructGPT C.1).

  python -m rlhf_jax.main --config=experiments/sft.py --workdir=runs/sft
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("sft", size, stages=("pretrain", "sft"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  return config
