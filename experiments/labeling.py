"""What the paper's steps 1 and 2 are made of, measured in one run.

  python -m rlhf_jax.main --config=experiments/labeling.py \
      --workdir=runs/labeling

The three rounds of `rounds.py`, and beside the first reward model two more on
the first prompts of its comparisons, for three epochs: one K-wise, as all
others are, and one whose pairs are shuffled as independent examples, of which
the paper says that it over-fits (3.5). Expected at `mini`: see "Labeling" in
README.md.
"""

from experiments import common
from experiments import rounds

NUM_EPOCHS = 3


def get_config(size: str = "mini"):
  config = rounds.get_config(size)
  config.name = f"labeling_{size}"
  first = config.stages.index("rm") + 1
  variants = "rm@kwise", "rm@pairs"
  config.stages = (
      *config.stages[:first], *variants, *config.stages[first:])
  for stage, settings in zip(variants, (common.rm, common.rm_pairs)):
    config.inputs[stage] = ""
    config[stage] = settings(size) | dict(num_epochs=NUM_EPOCHS)
    if size == common.MINI:
      config[stage]["max_prompts"] = 1_500  # pairs take five times as long
  return config
