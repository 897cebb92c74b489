"""Which gains more at an equal KL, best-of-n or PPO?

  python -m rlhf_jax.study --config=experiments/studies/best_of_n.py

Gold and proxy score over the KL to the policy that both start from.
"""

from experiments.studies import runs


def get_config():
  return runs.study("best_of_n", {
      "main": runs.main(),
      "plain": runs.plain(),
      "tax": runs.tax(),
  })
