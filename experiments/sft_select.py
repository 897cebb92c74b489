"""The SFT checkpoint whose samples a reward model likes best (C.1).

  python -m rlhf_jax.main --config=experiments/sft_select.py \
      --workdir=runs/sft_select

Validation loss over-fits after an epoch while the score still rises. `sft`
keeps a checkpoint at every evaluation, `sft_select` samples from each of them
on validation prompts and keeps the best; `evaluate` has both beside another.
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("sft_select", size, stages=(
      "pretrain", "sft", "collect", "rm", "sft_select", "evaluate"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size) | dict(select="rm_score")
  config.collect = common.collect(size)
  config.rm = common.rm(size)
  config.sft_select = common.sft_select(size)
  config.evaluate = common.evaluate(size) | dict(
      policies=("pretrain", "sft", "sft_select"), reference="sft")
  return config
