"""PPO without pretraining gradients (gamma = 0, the paper's "PPO").

  python -m rlhf_jax.main --config=experiments/ppo.py --workdir=runs/ppo

The same as `ppo_ptx.py` but for `ptx_coef`. To reuse the earlier stages of a
finished run, name them: `--config.inputs.pretrain=runs/ppo_ptx/pretrain` and
likewise for sft, collect, rm and rl_init.
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("ppo", size, stages=(
      "pretrain", "sft", "collect", "rm", "rl_init", "ppo", "evaluate"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.collect = common.collect(size)
  config.rm = common.rm(size)
  config.rl_init = common.rl_init(size)
  config.ppo = common.ppo(size, ptx_coef=0.0)
  config.evaluate = common.evaluate(size)
  return config
