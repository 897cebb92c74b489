"""Prints responses of a stage's policy.

  python -m rlhf_jax.sample --workdir=DIR [--stage=ppo] [--step=N]
      [--prompt="..."] [--temperature=1.0] [--num=1] [--seed=0]

Without a prompt it reads prompts from the terminal, one a line.
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)

# pylint: disable=wrong-import-position
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax

from rlhf_jax import (
    checkpoint, compilation, config as config_lib, pipeline, sampler, sharding,
    storage,
)
from rlhf_jax.run import Run

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder.", allow_override=True)  # main's too
_STAGE = flags.DEFINE_string(
    "stage", None, "Whose policy; by default the last that left one.")
_STEP = flags.DEFINE_integer(
    "step", None, "Of which checkpoint; by default the one that the stage "
    "gave.", allow_override=True)  # replay's too
_PROMPT = flags.DEFINE_string("prompt", None, "What to respond to.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Divides the logits; 0 is greedy.", lower_bound=0.0)
_NUM = flags.DEFINE_integer(
    "num", 1, "Responses a prompt.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling noise.")


def choose_stage(run: Run, stage: str | None) -> str:
  """The stage asked for, or the last finished one with a policy.

  Raises:
    CheckpointError: names what is there.
  """
  finished = [
      name for name in run.config.stages
      if config_lib.name_of(name) in config_lib.POLICIES
      and checkpoint.read_done(run.stage_dir(name))
  ]
  if not finished:
    raise checkpoint.CheckpointError(
        f"no stage with a policy is finished in {run.workdir}")
  if stage is not None and stage not in finished:
    raise checkpoint.CheckpointError(
        f"--stage={stage}: the finished policies in {run.workdir} are "
        f"{', '.join(finished)}")
  return stage or finished[-1]


def encode(run: Run, prompt: str) -> list[int]:
  """The prompt's tokens, its suffix included.

  Raises:
    ValueError: it is empty, or longer than the run's prompts may be.
  """
  if not prompt.strip():
    raise ValueError("the prompt is empty")
  tokens = run.prompt_tokens(prompt)
  if len(tokens) > run.prompt_length:
    raise ValueError(
        f"the prompt has {len(tokens)} tokens, this run's limit is "
        f"config.data.max_prompt_tokens={run.prompt_length}")
  return tokens


def make_respond(
    run: Run, stage: str, temperature: float, num: int,
    step: int | None = None):
  """Builds `respond(prompt, key) -> list of texts`."""
  devices = jax.device_count()
  batch_size = -(-num // devices) * devices
  generate = sampler.make_generate(
      run, run.policy(), temperature=temperature)
  params = run.policy_params(stage, step)

  def respond(prompt: str, key: jax.Array) -> list[str]:
    rows = sampler.prompt_rows(
        run, [encode(run, prompt)], range(batch_size), batch_size)
    sampled = generate(params, key, run.put(rows))
    return [r.text for r in sampler.to_responses(run, sampled)[:num]]

  return respond


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  compilation.enable_compilation_cache(_WORKDIR.value)
  try:
    storage.check(_WORKDIR.value, "--workdir", is_written=False)
    run = pipeline.open_run(epath.Path(_WORKDIR.value))
    stage = choose_stage(run, _STAGE.value)
    step = pipeline.choose_step(run, stage, _STEP.value)
  except (checkpoint.CheckpointError, storage.StorageError) as error:
    usage.refuse(str(error))
  with sharding.use(run.mesh, run.axis_rules):
    respond = make_respond(
        run, stage, _TEMPERATURE.value, _NUM.value, step)
    for number, prompt in enumerate(prompts(stage)):
      key = jax.random.fold_in(jax.random.key(_SEED.value), number)
      try:
        for text in respond(prompt, key):
          print(text, flush=True)
      except ValueError as error:
        if _PROMPT.value is not None:
          usage.refuse(str(error))
        print(f"error: {error}", file=sys.stderr)


def prompts(stage: str):
  """The prompt of the command line, or those typed."""
  if _PROMPT.value is not None:
    yield _PROMPT.value
    return
  if sys.stdin.isatty():
    print(f"{stage}: type a prompt, end with Ctrl-D", file=sys.stderr)
  for line in sys.stdin:
    if line.strip():
      yield line.rstrip("\n")


if __name__ == "__main__":
  usage.run(main, required=["workdir"])
