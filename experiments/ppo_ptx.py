"""The whole method: pretrain, SFT, comparisons, reward model, PPO-ptx.

Ouyang et al. 2022, "PPO-ptx" (gamma = 27.8 at the paper's sizes).

  python -m rlhf_jax.main --config=experiments/ppo_ptx.py --workdir=runs/ppo_ptx

`:mini`, the default, learns Smallworld on two CPU cores in under 15 minutes;
`:125m ... :1.3b :6b :175b` are the paper's models and hyper-parameters.
Expected at `mini`: see "What to expect" in README.md.
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("ppo_ptx", size, stages=(
      "pretrain",  # language modelling from scratch
      "sft",  # imitate the demonstrations
      "collect",  # sample from the SFT policy, have labelers rank
      "rm",  # learn what the labelers prefer
      "rl_init",  # the policy that PPO starts from and stays close to
      "ppo",  # optimise the reward model, keep the pretraining loss
      "evaluate",  # held-out prompts and labelers
  ))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.collect = common.collect(size)
  config.rm = common.rm(size)
  config.rl_init = common.rl_init(size)
  config.ppo = common.ppo(size, ptx_coef=1.0 if size == "mini" else 27.8)
  config.evaluate = common.evaluate(size)
  return config
