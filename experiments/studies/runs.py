"""The runs that studies are made of.

Plain functions, as those of `experiments/common.py`. Runs of the same name are
the same run, and studies of one --workdir share it. What a run takes from
another of its seed stands in its `inputs` as "RUN/STAGE".
"""

from ml_collections import ConfigDict

from experiments import common, ppo as plain_ppo, ppo_ptx

SIZE = common.MINI
SEEDS = (0, 1, 2)
# Smaller models: (layers, d_model, heads). With the padding id and positions
# they have 62 k and 223 k parameters, those of `mini` 940 k.
MODELS = {"60k": (2, 32, 2), "220k": (3, 64, 4)}
# Comparisons that reward models learn from; `main` has 4,500 prompts.
COUNTS = (250, 500, 1_000, 2_000)
# Reward models of PPO without a KL penalty: fewer comparisons, or smaller.
OPTIMISED_COUNTS = (250, 1_000)


def study(name: str, runs: dict[str, ConfigDict]) -> ConfigDict:
  """A study and its runs by name."""
  return ConfigDict(dict(name=name, seeds=SEEDS, runs=runs))


def taking(config: ConfigDict, run: str, *stages: str) -> ConfigDict:
  """`config`, with these stages of another run of the same seed."""
  for stage in stages:
    config.inputs[stage] = f"{run}/{stage}"
  return config


def of_main(config: ConfigDict, *stages: str) -> ConfigDict:
  """`config`, with these stages of `main` and their settings."""
  config.update({stage: main()[stage] for stage in stages})
  return taking(config, "main", *stages)


def resized(config: ConfigDict, model: str, size: str) -> None:
  """Gives config.`model` a smaller size, and narrow matrices larger numbers at
  the start, so that their products are as large."""
  layers, width, heads = MODELS[size]
  config[model].update(
      num_layers=layers, scan_unroll=layers, d_model=width, num_heads=heads,
      init_stddev=config[model].init_stddev
      * (config[model].d_model / width)**0.5)


def main() -> ConfigDict:
  """The whole method, from which the other runs take what they do not vary."""
  return ppo_ptx.get_config()


_POLICIES = ("pretrain", "sft", "rl_init")


def ppo(*, ptx_coef: float = 0.0, reward_model: str = "rm", **method) -> dict:
  """A PPO stage with another method or reward model."""
  settings = common.ppo(SIZE, ptx_coef=ptx_coef) | dict(
      reward_model=reward_model)
  settings["method"] |= method
  return settings


def plain() -> ConfigDict:
  """PPO without pretraining gradients."""
  return taking(plain_ppo.get_config(), "main", *_POLICIES, "collect", "rm")


def tax() -> ConfigDict:
  """PPO with other `ptx_coef`s than the 1 of `main` and the 0 of `plain`, and
  without pretraining gradients with other `kl_coef`s than their .1."""
  ours = {
      "ppo@ptx03": ppo(ptx_coef=0.3),
      "ppo@ptx3": ppo(ptx_coef=3.0),
      "ppo@kl03": ppo(kl_coef=0.3),
      "ppo@kl1": ppo(kl_coef=1.0),
      "ppo@kl3": ppo(kl_coef=3.0),
  }
  config = common.base("tax", SIZE, stages=("sft", "rl_init", "rm", *ours))
  config.update(ours)
  return of_main(config, "sft", "rl_init", "rm")


def small(model: str) -> ConfigDict:
  """The policies of a smaller model, with `main`'s reward model."""
  config = common.base(f"small_{model}", SIZE, stages=(
      "pretrain", "sft", "rm", "rl_init", "ppo", "ppo@ptx0"))
  for stage in ("pretrain", "sft", "rl_init", "ppo"):
    config[stage] = main()[stage]
  config["ppo@ptx0"] = ppo()
  resized(config, "model", model)
  return of_main(config, "rm")


def counts() -> ConfigDict:
  """Reward models of fewer comparisons."""
  ours = {f"rm@n{count}": common.rm(SIZE) | dict(max_prompts=count)
          for count in COUNTS}
  config = common.base("counts", SIZE, stages=(
      "sft", "collect", "rm", *ours))
  config.update(ours)
  return of_main(config, "sft", "collect", "rm")


def gao() -> ConfigDict:
  """PPO without any KL penalty, for reward models of three counts."""
  models = {f"n{count}": f"rm@n{count}" for count in OPTIMISED_COUNTS}
  config = common.base("gao", SIZE, stages=(
      "rl_init", "rm", *models.values(),
      *(f"ppo@{name}" for name in (*models, "n4500"))))
  of_main(config, "rl_init", "rm")
  for name, reward_model in (models | {"n4500": "rm"}).items():
    config[reward_model] = counts().get(reward_model, config.rm)
    config[f"ppo@{name}"] = _unpenalised(reward_model)
  config.guards.actions.large_kl = "warn"
  return taking(config, "counts", *models.values())


def gao_small(model: str) -> ConfigDict:
  """The same for a smaller reward model of all comparisons."""
  config = common.base(f"gao_{model}", SIZE, stages=(
      "rl_init", "collect", "rm", "ppo"))
  of_main(config, "rl_init", "collect")
  config.rm = common.rm(SIZE) | dict(init_from="rm_sft")
  config.ppo = _unpenalised("rm")
  config.guards.actions.large_kl = "warn"
  resized(config, "rm_model", model)
  config.inputs.rm_sft = f"small_{model}/sft"
  return config


def _unpenalised(reward_model: str) -> dict:
  """Nothing holds it back but how long it lasts."""
  return ppo(reward_model=reward_model, kl_coef=0.0)


def folds(number: int = 5, max_prompts: int = 1_000) -> ConfigDict:
  """Reward models that leave out a group of labelers each (E.2), and K-wise
  batches against shuffled pairs (3.5); on few prompts, for there are many."""
  ours = {f"rm@fold{n}": common.rm(SIZE) | dict(
      max_prompts=max_prompts, fold=(n, number)) for n in range(number)}
  epochs = dict(num_epochs=2, max_prompts=750)
  ours["rm@kwise"] = common.rm(SIZE) | epochs
  ours["rm@pairs"] = common.rm_pairs(SIZE) | epochs
  config = common.base("folds", SIZE, stages=("sft", "collect", *ours))
  config.update(ours)
  return of_main(config, "sft", "collect")
