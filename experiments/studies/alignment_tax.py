"""Does a higher KL pay the alignment tax, or only pretraining gradients?

Ouyang et al. 2022, 4.2 and Figures 33 and 34.

  python -m rlhf_jax.study --config=experiments/studies/alignment_tax.py

World facts, pretraining loss and gold score of pretrained, SFT, PPO and
PPO-ptx; and of PPO over `ptx_coef` and over `kl_coef`.
"""

from experiments.studies import runs


def get_config():
  return runs.study("alignment_tax", {
      "main": runs.main(),
      "plain": runs.plain(),
      "tax": runs.tax(),
  })
