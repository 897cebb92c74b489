"""Plans by the real TPU compiler, and from formulas."""

import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import pytest

from experiments import ppo_ptx
from rlhf_jax.config import ConfigError
from rlhf_jax.plan import chips
from rlhf_jax.plan import compiling
from rlhf_jax.plan import costs
from rlhf_jax.plan import planning
from rlhf_jax.plan import programs
from rlhf_jax.plan import report
from rlhf_jax.plan import search
from rlhf_jax.plan.chips import PlanError
from tests import tiny_run

GPUS = "h100:8x8"


def quiet(*unused):
  pass


def make_plan(config, name, only="", num_slices=1):
  return planning.make_plan(
      config, chips.parse_topology(name, num_slices), only=only, report=quiet)


def tiny_config(**changes):
  return tiny_run.tiny_config(
      **dict(mesh__data=1, mesh__fsdp=2, mesh__tensor=2) | changes)


@functools.cache
def compiled():
  """All programs of the tiny run, for four chips."""
  return make_plan(tiny_config(), "v5e:2x2")


# --------------------------------------------------- by the TPU compiler


def test_every_program_is_compiled_and_fits():
  plan = compiled()
  assert plan.how == "compiled" and plan.fits
  assert [p.phase.name for p in plan.phases] == [
      "pretrain", "sft", "collect/prefill", "collect/decode", "rm",
      "rl_init", "ppo/decode_copy", "ppo/prefill",
      "ppo/decode", "ppo/score", "ppo/update"]
  for phase in plan.phases:
    assert phase.roofline.seconds > 0, phase.phase.name
    assert phase.bytes["temporaries"] > 0
    if phase.phase.tokens:
      assert 0 < plan.mfu([phase]) < 1, phase.phase.name
  assert all(p.bytes["resident frozen"] > 0 for p in plan.phases
             if p.program == "ppo/generate")


def test_products_of_a_device_are_its_share_of_the_models():
  """The small model's attention is a large part of its work: each token
  looks at all, not at half, and nothing is computed twice."""
  for name in ("pretrain", "ppo/score"):
    phase = next(p for p in compiled().phases if p.phase.name == name)
    share = planning.work_of(phase).flops * 4 / phase.phase.model_flops
    assert 1.0 < share < 1.4, (name, share)


def test_scanned_and_unrolled_layers_count_alike():
  unrolled = make_plan(
      tiny_config(model__scan_unroll=2), "v5e:2x2", only="pretrain")
  flops = [planning.work_of(plan.phases[0]).flops
           for plan in (compiled(), unrolled)]
  assert abs(flops[1] / flops[0] - 1) < 0.02


def test_slices_lie_along_data():
  plan = make_plan(
      tiny_config(mesh__data=2), "v5e:2x2", only="pretrain", num_slices=2)
  assert plan.mesh_shape == {"data": 2, "fsdp": 2, "tensor": 2}
  sums = planning.work_of(plan.phases[0]).collectives[
      costs.BETWEEN_SLICES + "all-reduce", (0,)]
  held = plan.phases[0].bytes["parameters"]
  assert held / 2 < sums < 4 * held  # gradients, partly in bfloat16
  assert plan.phases[0].roofline.busy_seconds["network"] > 0


def test_what_does_not_fit_is_named_and_mended():
  """Rows of a device at once: their logits are larger than its memory."""
  config = tiny_config(
      mesh__tensor=1, mesh__data=2, pretrain__pretrain_batch_size=65_536,
      model__context_length=1024, rm_model__context_length=1024,
      model__remat="block")
  plan = make_plan(config, "v5e:2x2", only="pretrain")
  assert not plan.fits and plan.phases[0].total_bytes > plan.hbm_bytes
  needed = re.search(r"\(([\d.]+)G\) exceeds", plan.phases[0].refusal)
  np.testing.assert_allclose(
      plan.phases[0].total_bytes, float(needed.group(1)) * 2**30, rtol=0.01)
  assert "pretrain needs" in report.verdict(plan)
  assert "--config.pretrain.num_microbatches=2" in search.advice(plan)
  said = []
  found, overrides = search.search(
      plan, functools.partial(planning.make_plan, report=quiet), said.append,
      only="pretrain")
  assert found.fits, said
  assert overrides["pretrain.num_microbatches"] > 1
  assert found.phases[0].total_bytes < plan.phases[0].total_bytes


@pytest.mark.parametrize("message", [
    "RESOURCE_EXHAUSTED: ... HLO temporaries (24.00G) exceeds available HBM "
    "(15.75G).",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.00G of "
    "15.75G hbm."])
def test_what_the_compiler_needs_has_the_arguments_in_it(message, tmp_path):
  held = jax.ShapeDtypeStruct((2**20, 1024), jnp.float32,  # 4 GiB
                              sharding=SingleDeviceSharding(jax.devices()[0]))
  program = programs.Program(
      name="p", function=None, args=(held,), kinds={"parameters": held},
      resident={}, phases=(), runs=0)
  found = compiling._refused(program, message, str(tmp_path), 1.0)
  sizes = planning.bytes_by_kind(program, found)
  assert sizes["parameters"] == 4 * chips.GIB
  assert sum(sizes.values()) == 24 * chips.GIB


def test_other_failures_of_the_compiler_are_not_taken_for_that(tmp_path):
  with pytest.raises(PlanError, match="the compiler failed: INTERNAL: no"):
    compiling._refused(None, "INTERNAL: no", str(tmp_path), 1.0)


@pytest.mark.parametrize("name, message", [
    ("v5p:5x5x5", "v5p:5x5x5 does not exist: "),
])
def test_shapes_that_are_not_sold(name, message):
  with pytest.raises(PlanError, match=message):
    make_plan(tiny_config(), name)


def test_a_mesh_that_does_not_suit_the_devices():
  with pytest.raises(ConfigError, match="needs 8 devices, but 4 are present"):
    make_plan(tiny_config(mesh__data=2), "v5e:2x2")
  with pytest.raises(ConfigError, match="num_heads = 2 does not divide over 4"):
    make_plan(tiny_config(mesh__fsdp=1, mesh__tensor=4), "v5e:2x2")


def test_no_program_of_that_name():
  with pytest.raises(PlanError, match="--only=evaluate: no program's name"):
    make_plan(tiny_config(), GPUS.replace("8x8", "1x4"), only="evaluate")


# --------------------------------------------------------- from formulas


@functools.cache
def derived():
  return make_plan(ppo_ptx.get_config("6b"), GPUS)


def test_gpus_are_derived_and_say_so():
  plan = derived()
  assert plan.how == "derived" and plan.fits
  text = report.as_text(plan)
  assert "derived from formulas, not compiled" in text
  assert "H100 SXM" in text and "chip-hours (derived)" in text
  assert set(report.as_object(plan)["how"].values()) == {"derived"}


def test_what_a_run_still_needs_is_said():
  """A plan that fits is not yet a run that begins."""
  assert "tokenizer of so many tokens" in derived().needs
  assert report.as_text(derived()).endswith(
      "Before it can run, as seen from here:\n  " + derived().needs)
  assert report.as_object(derived())["needs"] == [derived().needs]
  config = ppo_ptx.get_config("1.3b")
  config.data.update(tokenizer="no/tokenizer.json", pretrain="jsonl:no/text")
  needs = make_plan(config, "h100:2x8", only="ppo/step").needs
  for lacking in ("config.inputs.rm_sft", "nothing at 'no/tokenizer.json'",
                  "nothing at 'no/text'"):
    assert lacking in needs
  mini = make_plan(ppo_ptx.get_config(), "h100:1x1", only="ppo/step")
  assert mini.needs == "" and "Before" not in report.as_text(mini)


def test_formulas_come_near_the_compiler():
  """In products of matrices; memory and traffic are coarser."""
  tiny = make_plan(tiny_config(), "h100:1x4")
  for found, real in zip(tiny.phases, compiled().phases):
    if found.program.endswith(("/generate", "/decode_copy")):
      continue  # against the cache and by vectors; no products
    ratio = planning.work_of(found).flops / planning.work_of(real).flops
    assert 0.6 < ratio < 1.1, (found.phase.name, ratio)


def test_more_memory_is_asked_than_a_gpu_has():
  config = ppo_ptx.get_config("6b")
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  plan = make_plan(config, GPUS, only="ppo/step")
  assert not plan.fits
  assert re.search("the most are .*optimizer 99", report.verdict(plan))
  assert "mesh.fsdp=2" in search.advice(plan)


def test_an_object_for_machines():
  found = report.as_object(derived())
  assert {"fits", "topology", "num_devices", "hbm_bytes", "phases"} <= set(
      found)
  for phase in found["phases"].values():
    assert {"bytes", "flops", "hbm_traffic", "collectives",
            "roofline_seconds", "bound", "mfu"} <= set(phase)
    sizes = dict(phase["bytes"])
    assert sizes.pop("total") == sum(sizes.values())
  assert json.loads(json.dumps(found)) == found


def test_an_iteration_is_the_sum_of_its_phases():
  plan = derived()
  found = report.iteration_of(plan)
  seconds = sum(p.roofline.seconds for p in plan.phases
                if p.program.startswith("ppo"))
  assert found["seconds"] == seconds
  assert found["episodes"] == 256_000
  assert abs(found["days"] - 500 * seconds / 86_400) < 1e-9
  assert abs(found["chip_hours"] - 64 * 500 * seconds / 3600) < 1e-6


def test_work_is_counted_once():
  plan = derived()
  for phase in plan.phases:
    has_products = phase.program != "ppo/decode_copy"
    assert (costs.total(list(phase.segments)).flops > 0) == has_products


# ------------------------------------------------------------ the command


def command(*arguments):
  return subprocess.run(
      [sys.executable, "-m", "rlhf_jax.plan", *arguments],
      capture_output=True, text=True, check=False)


def test_the_command_prints_one_object_and_its_status():
  done = command("--config=experiments/ppo_ptx.py:6b", f"--topology={GPUS}",
                 "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["fits"] is True and found["num_devices"] == 64


def test_growth_keeps_the_rows_of_a_device():
  done = command("--config=experiments/ppo_ptx.py:6b", "--only=ppo/step",
                 f"--topology={GPUS},h100:64x8", "--grow_from=64", "--json")
  assert done.returncode == 0, done.stderr
  small, large = json.loads(done.stdout)
  for name in ("ppo/score", "ppo/update"):
    before, after = small["phases"][name], large["phases"][name]
    assert before["bytes"]["temporaries"] == after["bytes"]["temporaries"]
    assert before["flops"] == after["flops"]
    assert after["tokens"] == 8 * before["tokens"]


@pytest.mark.parametrize("arguments, message", [
    (["--topology=v9:4x4"], "no figures of 'v9'"),
    (["--topology=h100:3x8"], "needs .* devices, but 24 are present"),
    (["--topology=h100:8x8", "--config.ppo.batch_sise=3"], "batch_sise"),
    (["--topology=h100:1x8", "--grow_from=3"], "no multiple of it"),
    (["--topology="], "--topology= names none"),
])
def test_bad_input_is_one_message(arguments, message):
  done = command("--config=experiments/ppo_ptx.py:6b", *arguments)
  assert done.returncode == 2
  assert "Traceback" not in done.stderr
  assert [line for line in done.stderr.splitlines()
          if line.startswith("error: ")]

  assert re.search(message, done.stderr), done.stderr
