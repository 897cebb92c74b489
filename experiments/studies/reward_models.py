"""Whom does a reward model know, and what does it learn from?

Ouyang et al. 2022, 3.5 and appendix E.2.

  python -m rlhf_jax.study --config=experiments/studies/reward_models.py

Accuracy by labeler group and by number of comparisons, on labelers left out,
and of K-wise batches against the same pairs shuffled.
"""

from experiments.studies import runs


def get_config():
  return runs.study("reward_models", {
      "main": runs.main(),
      "counts": runs.counts(),
      "folds": runs.folds(),
  })
