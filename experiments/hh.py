"""Real human comparisons: harmless and helpful dialogues, from scratch.

  python -m rlhf_jax.main --config=experiments/hh.py --workdir=runs/hh \
      --config.data.root=DATA

DATA holds `pretrain/*.jsonl.gz` (text), `comparisons/hh_*.jsonl.gz`, and in
`demonstrations/` the three files that `set_hh` of common.py names, all in the
schemas of rlhf_jax/data/records.py. The demonstrations are those open-ended
ones and the preferred replies of the *helpful* comparisons; the preferred reply
to a harmful request is only the less bad of two and no demonstration.

The reward model learns from one half of the comparisons; the judge, a second
one that PPO never sees, from the other. The models of the default size are
small and write badly: the figures are there to be honest.
"""

from experiments import common


def get_config(size: str = "mini"):
  config = common.base("hh", size, stages=(
      "pretrain", "sft", "rm", "judge", "rl_init", "ppo", "evaluate"))
  common.set_hh(config, size)
  config.pretrain = common.hh_pretrain(size)
  config.sft = common.hh_sft(size)
  config.rm = common.hh_rm(size) | dict(half=0)
  config.judge = common.hh_rm(size) | dict(half=1)
  config.rl_init = common.rl_init(size)
  config.ppo = common.ppo(size, ptx_coef=1.0)
  config.evaluate = common.evaluate(size) | dict(
      judge="judge", num_prompts=256)
  if size == common.MINI:
    shrink(config)
  return config


def shrink(config):
  """Sizes for two CPU cores."""
  config.rl_init.update(batch_size=8, pretrain_batch_size=4, num_steps=50)
  num_iters = 30
  config.ppo.update(num_iters=num_iters, batch_size=32, ptx_batch_size=8)
  config.ppo.method.update(ema_decay=0.018 ** (1 / num_iters))
  config.evaluate.update(batch_size=64)
