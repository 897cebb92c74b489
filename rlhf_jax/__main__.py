"""InstructGPT in JAX. Its commands, of which each has --help and --version:

  python -m rlhf_jax.main      runs an experiment, all stages or some
  python -m rlhf_jax.plan      plans a run on devices that are not here

  python -m rlhf_jax.sample    prints responses of a run's policy
  python -m rlhf_jax.compare   prints the figures of runs side by side
  python -m rlhf_jax.report    makes one page that shows a run
  python -m rlhf_jax.evaluate  measures the policies of runs, by benchmarks too
  python -m rlhf_jax.study     runs several runs, and shows what they answer
  python -m rlhf_jax.replay    runs a recorded training step again
  python -m rlhf_jax.export    writes a model as Hugging Face's programs read it

  python -m rlhf_jax.screen    screens candidate labelers
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)
  print(__doc__.strip())
