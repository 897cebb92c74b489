"""Is a small aligned model preferred to a large one that is not?

Ouyang et al. 2022, Figure 1.

  python -m rlhf_jax.study --config=experiments/studies/model_sizes.py

Pretrained, prompted, SFT, PPO and PPO-ptx at three sizes, 62 k to 940 k
parameters, judged by held-out labelers against the SFT policy of the largest.
"""

from experiments.studies import runs


def get_config():
  return runs.study("model_sizes", {
      "main": runs.main(),
      "plain": runs.plain(),
      **{f"small_{name}": runs.small(name) for name in runs.MODELS},
  })
