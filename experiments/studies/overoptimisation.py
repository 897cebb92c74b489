"""How far can a reward model be optimised before the gold score falls?

Gao et al. 2022, arXiv:2210.10760, Figure 1.

  python -m rlhf_jax.study --config=experiments/studies/overoptimisation.py

Gold and proxy score over sqrt(KL) for best-of-n and for PPO without a KL
penalty: reward models of three sizes, and of three numbers of comparisons.
"""

from experiments.studies import runs


def get_config():
  return runs.study("overoptimisation", {
      "main": runs.main(),
      "counts": runs.counts(),
      "gao": runs.gao(),
      **{f"small_{name}": runs.small(name) for name in runs.MODELS},
      **{f"gao_{name}": runs.gao_small(name) for name in runs.MODELS},
  })
