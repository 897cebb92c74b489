"""How well a reward model knows labelers that it has not seen (App. E.2).

  python -m rlhf_jax.main --config=experiments/rm_folds.py --workdir=runs/folds

The training labelers are dealt into five groups, and five reward models leave
out one each. Their accuracy on the groups that they learnt from and on the one
left out stands in summary.json, `folds`; the paper has 72.4 and 69.6 %.
"""

from experiments import common

NUM_FOLDS = 5


def get_config(size: str = "mini"):
  folds = {f"rm@fold{n}": (n, NUM_FOLDS) for n in range(NUM_FOLDS)}
  config = common.base("rm_folds", size, stages=(
      "pretrain", "sft", "collect", *folds))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.collect = common.collect(size)
  for stage, fold in folds.items():
    config[stage] = common.rm(size) | dict(fold=fold)
  return config
