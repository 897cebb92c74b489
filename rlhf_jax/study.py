"""Runs a study: several runs with several seeds, and what they show.

  python -m rlhf_jax.study --config=experiments/studies/alignment_tax.py
      [--workdir=runs/studies] [--seeds=0,1,2]

Writes WORKDIR/NAME/rows.csv, tables.md and figure.svg, and a digest of what the
rows were measured with as rows.json. Runs that studies have in common are done
once a workdir, and what is finished is not done again.
Seeds may be run side by side by one command each; the figure is of all that
are measured.
"""

from rlhf_jax import exits, host_memory, usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)
  host_memory.restart_with_large_pages()
  exits.heed_early_signals()  # while the rest is imported

# pylint: disable=wrong-import-position
from absl import app
from absl import flags
from absl import logging
from etils import epath

from rlhf_jax import (
    command, compilation, ending, faults, interruption, metrics, storage,
)
from rlhf_jax.studies import driver, registry, results

_CONFIG = command.config_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/studies", "Where runs and results of all studies are.")
_SEEDS = flags.DEFINE_list(
    "seeds", None, "Of the study's seeds, those to run now; by default all.")


def run_study(study, workdir: epath.Path, asked: list[str] | None) -> None:
  """All of a study that is not done yet."""
  results.check_drawing()
  driver.validate(study)
  seeds = driver.seeds_of(study, asked)
  of = registry.find(study.name)
  storage.check(workdir, "--workdir", is_written=True)
  for seed in seeds:
    driver.run_all(study, workdir, seed)
    driver.measure(study, of, workdir, seed)
    tables = results.write(
        of, driver.measured(study, of, workdir), workdir / study.name,
        driver.digest(study, of))
  metrics.say(f"\n{of.about}\n\n{tables}\n\nwritten: {workdir / study.name}/"
              "{rows.csv,tables.md,figure.svg}")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)  # the libraries' own; ours is printed
  logging.get_absl_logger().addFilter(faults.is_news)
  workdir = epath.Path(_WORKDIR.value)
  interruption.heed_signals(interruption.GRACE_SECONDS)
  with ending.one_message():
    compilation.enable_compilation_cache(workdir)
    run_study(_CONFIG.value, workdir, _SEEDS.value)


if __name__ == "__main__":
  usage.run(main, required=["config"], flags_parser=(
      lambda argv: command.parse_flags(_CONFIG, argv)))
