"""Plans a run on devices that are not here.

  python -m rlhf_jax.plan --config=experiments/ppo_ptx.py:6b
      --topology=v5p:4x4x4 [--num_slices=N] [--only=ppo] [--search] [--json]

Compiles every jitted training and sampling function of the run ahead of time
with the real TPU compiler (GPUs: from formulas), and prints memory, work,
roofline times and what they bound. Ends with status 1 where it does not fit.
"""

from rlhf_jax import usage

if __name__ == "__main__":
  usage.answer(__doc__, __file__)

# pylint: disable=wrong-import-position
import functools
import json
import os
import sys

# Plans need no accelerator, and must not take one that is here.
os.environ["JAX_PLATFORMS"] = "cpu"

from absl import app
from absl import flags
from absl import logging
import jax

from rlhf_jax import command, config as config_lib, distributed
from rlhf_jax.config.names import kind_of
from rlhf_jax.hf import fields
from rlhf_jax.plan import chips, planning, report, search

_CONFIG = command.config_flag()
_TOPOLOGY = flags.DEFINE_list(
    "topology", None,
    "Chip and shape, as v5p:4x4x4, v5e:4x4 or (nodes x GPUs a node) h100:4x8; "
    "several with commas, for a table of growth.")
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices", 1, "TPU slices of that shape, joined along `data`.",
    lower_bound=1)
_ONLY = flags.DEFINE_string(
    "only", "", "Only programs whose names begin so, as ppo or ppo/step.")
_GROW_FROM = flags.DEFINE_integer(
    "grow_from", 0,
    "Devices that the config's batches are meant for: on more they grow, so "
    "that each device keeps its rows.", lower_bound=0)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Try settings until every program fits.")
_JSON = flags.DEFINE_bool("json", False, "Print one object for machines.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  # What is compiled for no device here cannot be read back.
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    if not _TOPOLOGY.value:
      raise chips.PlanError("--topology= names none; write e.g. v5p:4x4x4")
    plans = [plan_one(name) for name in _TOPOLOGY.value]
  except (chips.PlanError, config_lib.ConfigError,
          fields.FolderError) as error:
    distributed.refuse(str(error))
  if _JSON.value:
    found = [report.as_object(plan) for plan in plans]
    print(json.dumps(found[0] if len(found) == 1 else found, indent=2))
  else:
    print("\n\n".join(map(report.as_text, plans)))
    if len(plans) > 1:
      print("\n" + report.growth_table(plans))
  sys.exit(0 if all(plan.fits for plan in plans) else 1)


def plan_one(name: str) -> planning.Plan:
  topology = chips.parse_topology(name, _NUM_SLICES.value)
  config, _ = config_lib.with_imported(_CONFIG.value)
  config = grown(config, topology.num_devices, _GROW_FROM.value)
  make = functools.partial(planning.make_plan, report=say_compiled)
  plan = make(config, topology, only=_ONLY.value)
  if plan.fits:
    return plan
  if not _SEARCH.value:
    say("ways to less memory (--search tries them):\n" + search.advice(plan))
    return plan
  plan, overrides = search.search(plan, make, say, _ONLY.value)
  if overrides:
    say(f"what helps: {search.as_flags(overrides)}")
  return plan


def grown(config, num_devices: int, grow_from: int):
  """The config with batches for `num_devices`, made for `grow_from`.

  Raises:
    PlanError: one is not a multiple of the other.
  """
  if not grow_from:
    return config
  if num_devices % grow_from:
    raise chips.PlanError(
        f"--grow_from={grow_from}: {num_devices} devices are no multiple of "
        "it.")
  times, changes = num_devices // grow_from, {}
  for stage in config.stages:
    keys = {"lm": ("batch_size", "pretrain_batch_size", "eval_batch_size"),
            "rm": ("batch_size", "eval_batch_size"),
            "ppo": ("batch_size", "ptx_batch_size"),
            "collect": ("prompts_per_batch",), "select": ("batch_size",),
            "evaluate": ("batch_size", "pretrain_batch_size"),
            }[kind_of(stage)]
    changes |= {f"{stage}.{key}": config[stage][key] * times for key in keys}
  return search.with_overrides(config, changes)


def say_compiled(name: str, seconds: float, done: int, number: int) -> None:
  say(f"compiled {done} of {number}: {name} in {seconds:.0f} s")


def say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  usage.run(
      main, required=["config", "topology"],
      flags_parser=functools.partial(command.parse_flags, _CONFIG))
