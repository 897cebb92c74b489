"""All studies by name.

To add one, write a module of this folder that ends in `STUDY`, a file of
experiments/studies/ of the same name, and give it a line here.
"""

from rlhf_jax.config import ConfigError
from rlhf_jax.studies import (
    alignment_tax, behaviour, best_of_n, model_sizes, overoptimisation,
    reward_models,
)
from rlhf_jax.studies.study import Study

STUDIES: dict[str, Study] = {
    "alignment_tax": alignment_tax.STUDY,
    "behaviour": behaviour.STUDY,
    "best_of_n": best_of_n.STUDY,
    "model_sizes": model_sizes.STUDY,
    "overoptimisation": overoptimisation.STUDY,
    "reward_models": reward_models.STUDY,
}


def find(name: str) -> Study:
  """Raises a ConfigError if there is no such study."""
  if name not in STUDIES:
    raise ConfigError(
        f"config.name = {name!r} is no study; there are {', '.join(STUDIES)}.")
  return STUDIES[name]
