"""The whole method from GPT-2's weights, or those of a relative, or OPT's.

Pretraining is left out: `sft` and `rl_init` start from `config.init.policy`.

  python -m rlhf_jax.main --config=experiments/gpt2.py:124m \
      --workdir=runs/gpt2_124m [--config.init.policy=hf:FOLDER] \
      [--config.data.demonstrations=jsonl:FILE ...]

`:124m`, the default, `:355m`, `:774m` and `:1.5b` fetch OpenAI's weights from
the hub, unless a folder is named; any folder of those architectures will do,
for the sizes are read from it. Smallworld stands in for a labeling project
until `config.data` names another (docs/data.md).

By `python -m rlhf_jax.plan --topology=h100:1x1` (derived) all but `:1.5b` fit a
GPU of 80 GB, and that one two of them (`h100:1x2`).

Hyper-parameters are those of the paper's 1.3B models. Learning rates grow with
the ratio of GPT-3's table 2.1, in which smaller models have larger ones: the
paper has none for such sizes.
"""

from experiments import common

# size: (name on the hub, the size of GPT-3's table nearest to it)
SIZES = {
    "124m": ("openai-community/gpt2", "125m"),
    "355m": ("openai-community/gpt2-medium", "350m"),
    "774m": ("openai-community/gpt2-large", "760m"),
    "1.5b": ("openai-community/gpt2-xl", "1.3b"),
}


def get_config(size: str = "124m"):
  if size not in SIZES:
    raise ValueError(f"unknown size {size!r}; the sizes are {list(SIZES)}")
  name, row = SIZES[size]
  config = common.base("gpt2", row, stages=(
      "sft",  # imitate the demonstrations
      "collect",  # sample from the SFT policy, have labelers rank
      "rm",  # learn what the labelers prefer
      "rl_init",  # the policy that PPO starts from and stays close to
      "ppo",  # optimise the reward model, keep the pretraining loss
      "evaluate",  # held-out prompts and labelers
  ))
  config.name = f"gpt2_{size}"
  config.init.policy = f"hf:{name}"
  config.model = common.imported_model(row)
  config.rm_model = common.imported_model(row)  # of the policy's size
  # half the context each, as in the paper
  config.data.update(
      tokenizer="init", max_prompt_tokens=512, max_response_tokens=512)
  set_devices(config)
  config.sft = common.sft(row) | dict(init_from="init")
  config.collect = common.collect(row)
  config.rm = common.rm(row) | dict(init_from="sft")
  config.rl_init = common.rl_init(row) | dict(init_from="init")
  config.ppo = common.ppo(row, ptx_coef=27.8)
  config.evaluate = common.evaluate(row) | dict(
      policies=("init", "sft", "rl_init", "ppo"))
  scale_learning_rates(config, row)
  return config


def set_devices(config):
  """Parameters and optimizer over all devices, one or many; for sampling, each
  has a whole copy in bfloat16, 3 GB at most."""
  config.mesh = dict(data=1, fsdp=-1, tensor=1)
  config.decode.axis_rules = (
      ("batch", ("data", "fsdp")), ("embed", None), ("mlp", None),
      ("heads", None), ("vocab", None))


def scale_learning_rates(config, row):
  """By how much larger GPT-3's are at this size than at 1.3B."""
  ratio = common.PRETRAIN_ROW[row][1] / common.PRETRAIN_ROW["1.3b"][1]
  for stage in ("sft", "rl_init", "rm", "ppo"):
    config[stage].optimizer.learning_rate *= ratio
  config.ppo.critic_optimizer.learning_rate *= ratio
