"""Three rounds of InstructGPT's steps 2 and 3 (section 3.1).

  python -m rlhf_jax.main --config=experiments/rounds.py --workdir=runs/rounds

The first round is that of `ppo_ptx.py`. Each later one collects comparisons of
responses by SFT and the newest PPO policy, trains a reward model on all
comparisons so far, and optimises it from `rl_init` on. Expected at `mini`: see
docs/labeling.md.
"""

from experiments import common

NUM_ROUNDS = 3


def get_config(size: str = "mini"):
  first, *later = common.round_stages(NUM_ROUNDS)
  collect, rm, ppo = first
  config = common.base("rounds", size, stages=(
      "pretrain", "sft", collect, rm, "rl_init", ppo, *sum(later, ()),
      "evaluate"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.rl_init = common.rl_init(size)
  common.set_rounds(config, size, NUM_ROUNDS)
  return config
