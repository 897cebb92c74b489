"""Three rounds of InstructGPT's steps 2 and 3 (section 3.1).

  python -m rlhf_jax.main --config=experiments/rounds.py --workdir=runs/rounds

The first round is that of `experiments/ppo_ptx.py`. Each later one collects
comparisons of responses by SFT and the newest PPO policy, trains a reward
model on all comparisons so far, and optimises it from `rl_init` on. Expected
at `mini`: see "Rounds" in README.md.
"""

from experiments import common

ROUNDS = (  # stages of each
    ("collect", "rm", "ppo"),
    ("collect@2", "rm@2", "ppo@2"),
    ("collect@3", "rm@3", "ppo@3"),
)


def get_config(size: str = "mini"):
  (collect, rm, ppo), *later = ROUNDS
  config = common.base("rounds", size, stages=(
      "pretrain", "sft", collect, rm, "rl_init", ppo, *sum(later, ()),
      "evaluate"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.rl_init = common.rl_init(size)
  config[collect] = common.collect(size)
  config[rm] = common.rm(size)
  config[ppo] = common.ppo(size, ptx_coef=1.0 if size == "mini" else 27.8)
  collected, policies = (collect,), ("sft", "rl_init", ppo)
  for collect, rm, ppo in later:
    config[collect] = common.collect(size) | dict(
        policies=(("sft", 1.0), (policies[-1], 1.0)))
    collected += (collect,)
    config[rm] = common.rm(size) | dict(collected=collected)
    config[ppo] = common.ppo(
        size, ptx_coef=1.0 if size == "mini" else 27.8) | dict(reward_model=rm)
    policies += (ppo,)
    if size == common.MINI:
      config[collect]["num_prompts"] = 2_000
  config.evaluate = common.evaluate(size) | dict(
      policies=policies, reward_model=rm, collected=collected)
  return config
