"""What do the policies do that labelers mark?

Ouyang et al. 2022, Figure 4.

  python -m rlhf_jax.study --config=experiments/studies/behaviour.py

Instructions attempted, constraints followed, hallucinations and the rest of
Table 3's metadata, of pretrained, prompted, SFT, PPO and PPO-ptx.
"""

from experiments.studies import runs


def get_config():
  return runs.study("behaviour", {
      "main": runs.main(),
      "plain": runs.plain(),
  })
