"""The whole method in three minutes, with too little of all to learn much.

  python -m rlhf_jax.main --config=experiments/first_look.py

`ppo_ptx.py` with fewer texts, steps and iterations, and nothing else changed:
it shows that the machine can do it, and what a run leaves. Its figures say
nothing.
"""

from experiments import ppo_ptx


def get_config():
  config = ppo_ptx.get_config()
  config.name = "first_look"
  config.smallworld.update(
      num_documents=3_000, num_demonstrations=600, num_prompts=900)
  config.pretrain.num_steps = 60
  config.sft.num_steps = 60
  config.rl_init.num_steps = 20
  config.collect.update(num_prompts=96, num_validation_prompts=32)
  config.ppo.num_iters = 4
  config.evaluate.num_prompts = 128
  return config
