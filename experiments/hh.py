"""Real human comparisons: harmless and helpful dialogues, from scratch.

  python -m rlhf_jax.main --config=experiments/hh.py --workdir=runs/hh \
      --config.data.root=DATA

DATA holds `pretrain/*.jsonl.gz` (text), `demonstrations/*.jsonl.gz` and
`comparisons/hh_*.jsonl.gz` in the schemas of rlhf_jax/data/records.py. The
demonstrations are open-ended ones and the preferred replies of the *helpful*
comparisons; the preferred reply to a harmful request is only the less bad of
two and no demonstration.

The reward model learns from one half of the comparisons; the judge, a second
one that PPO never sees, from the other. The models of the default size are
small and write badly: the figures are there to be honest.
"""

from experiments import common

_COMPARISONS = "jsonl:comparisons/hh_*.jsonl.gz"


def get_config(size: str = "mini"):
  config = common.base("hh", size, stages=(
      "pretrain", "sft", "rm", "judge", "rl_init", "ppo", "evaluate"))
  config.data.update(
      root="",  # --config.data.root=DATA
      pretrain="jsonl:pretrain/*.jsonl.gz",
      demonstrations=(
          "jsonl:demonstrations/oasst_sample.jsonl.gz,"
          "demonstrations/dolly_small.jsonl.gz,"
          "demonstrations/self_instruct_seed.jsonl.gz,"
          "comparisons/hh_helpful_*.jsonl.gz"),
      prompts=_COMPARISONS,
      comparisons=_COMPARISONS,
      prompt_suffix="",  # dialogues end in "Assistant:"
      response_prefix=" ",
      max_prompt_tokens=320,
      max_response_tokens=160,
      dedup_prefix_tokens=0,  # only prompts equal in full
      validation_fraction=0.25,  # enough pairs to tell 54 % from chance
      test_fraction=0.10,
  )
  config.pretrain = common.pretrain(size)
  config.sft = common.sft(size)
  pairs = common.rm(size) | dict(max_responses=2, block_rows=1)
  config.rm = pairs | dict(half=0)
  config.judge = pairs | dict(half=1)
  config.rl_init = common.rl_init(size)
  config.ppo = common.ppo(size, ptx_coef=1.0)
  config.evaluate = common.evaluate(size) | dict(
      judge="judge", num_prompts=256)
  if size == common.MINI:
    shrink(config)
  return config


def shrink(config):
  """Sizes for two CPU cores: 1.1 M parameters, 6.6 M tokens of pretraining."""
  for model in (config.model, config.rm_model):
    # two heads: each writes 512 x 512 scores a row, slow on CPU
    model.update(vocab_size=2040, vocab_multiple=8, context_length=512,
                 num_heads=2)
  config.pretrain.update(pretrain_batch_size=8, num_steps=1_600)
  # rows of 512 tokens hold one demonstration to ten
  config.sft.update(batch_size=8, pretrain_batch_size=4, num_steps=300)
  config.rl_init.update(batch_size=8, pretrain_batch_size=4, num_steps=50)
  for reward_model in (config.rm, config.judge):
    reward_model.block_rows = 2  # of some five texts
  num_iters = 30
  config.ppo.update(num_iters=num_iters, batch_size=32, ptx_batch_size=8)
  config.ppo.method.update(ema_decay=0.018 ** (1 / num_iters))
  config.evaluate.update(batch_size=64)
