"""The whole method in three minutes, with too little of all to learn much.

  python -m rlhf_jax.main --config=experiments/first_look.py

`ppo_ptx.py` with fewer texts, steps and iterations, and nothing else changed:
it shows that the machine can do it, and what a run leaves. Its figures say
nothing.
"""

from experiments import common

SIZE = common.MINI


def get_config():
  config = common.base("first_look", SIZE, stages=(
      "pretrain", "sft", "collect", "rm", "rl_init", "ppo", "evaluate"))
  config.name = "first_look"
  config.smallworld.update(
      num_documents=3_000, num_demonstrations=600, num_prompts=900)
  config.pretrain = common.pretrain(SIZE) | dict(num_steps=60)
  config.sft = common.sft(SIZE) | dict(num_steps=60)
  config.collect = common.collect(SIZE) | dict(
      num_prompts=96, num_validation_prompts=32)
  config.rm = common.rm(SIZE)
  config.rl_init = common.rl_init(SIZE) | dict(num_steps=20)
  config.ppo = common.ppo(SIZE, ptx_coef=1.0) | dict(num_iters=4)
  config.evaluate = common.evaluate(SIZE) | dict(num_prompts=128)
  return config
