"""What the paper's steps 1 and 2 are made of, measured in one run.

  python -m rlhf_jax.main --config=experiments/labeling.py \
      --workdir=runs/labeling

The three rounds of `rounds.py`, and beside the first reward model two more on
the first prompts of its comparisons, for three epochs: `rm@kwise`, like all
others, and `rm@pairs`, whose pairs are shuffled as independent examples, of
which the paper says that it over-fits (3.5). Expected at `mini`: see
docs/labeling.md.
"""

from experiments import common

NUM_ROUNDS = 3
NUM_EPOCHS = 3  # of the two variants


def get_config(size: str = "mini"):
  first, *later = common.round_stages(NUM_ROUNDS)
  collect, rm, ppo = first
  config = common.base("labeling", size, stages=(
      "pretrain", "sft", collect, rm, "rm@kwise", "rm@pairs", "rl_init", ppo,
      *sum(later, ()), "evaluate"))
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  config.rl_init = common.rl_init(size)
  common.set_rounds(config, size, NUM_ROUNDS)
  variant = dict(num_epochs=NUM_EPOCHS)
  if size == common.MINI:
    variant |= dict(max_prompts=1_500)  # pairs take five times as long
  config["rm@kwise"] = common.rm(size) | variant
  config["rm@pairs"] = common.rm_pairs(size) | variant
  return config
