"""The benchmarks against peers: what is counted, compared and written."""

import json
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import limits
from benchmarks import make_environments
from benchmarks import peers
from benchmarks import tables
from benchmarks import timing
from benchmarks import weights
from benchmarks import work
from benchmarks.systems import rlhf_jax as ours

SIZE = work.SIZES["test"]


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights")
  weights.make(SIZE, path)
  weights.make_ending(SIZE, path)
  jax.config.update("jax_disable_most_optimizations", True)  # a quick start
  with ours.around():
    yield path
  jax.config.update("jax_disable_most_optimizations", False)


def job(folder, num_warmups=1, num_quiet=1):
  return timing.Job(SIZE, folder, timing.Recorder(num_warmups, num_quiet, 2),
                    work.inputs(SIZE))


# GFLOP of the definition's table, by hand from its formulas.
@pytest.mark.parametrize("size,expected", [
    ("tiny", (54.34, 163.26, 53.71, 325.45, 541.98, 167.55, 161.11)),
    ("small", (214.51, 608.19, 176.38, 1176.86, 1960.03, 766.29, 529.14))])
def test_flops_are_those_of_the_definition(size, expected):
  found = [work.flops(work.SIZES[size], phase) / 1e9
           for phase in work.PHASES]
  np.testing.assert_allclose(found, expected, atol=0.005)


def test_parameters_and_floors_are_those_of_the_definition():
  small = work.SIZES["small"]
  assert round(work.SIZES["tiny"].num_params / 1e6, 3) == 3.356
  assert round(small.num_params / 1e6, 3) == 124.440
  # 64 * 498 MB, and 28 bytes of two models in two steps
  np.testing.assert_allclose(
      work.floor_bytes(small, "rollout") / 1e9, 31.86, atol=0.01)
  np.testing.assert_allclose(
      work.floor_bytes(small, "ppo_update") / 1e9, 13.94, atol=0.01)


def test_products_are_all_but_attention_and_the_prompts_logits():
  """FLOPs of a forward pass by the products' shapes, plus attention's."""
  size = work.SIZES["tiny"]
  by_shape = sum(2 * m * k * n for m, k, n in work.gemm_shapes(size, "score"))
  t = size.length
  attention = size.layers * 2 * size.width * t * (t + 1) * size.batch
  policy = size.batch * (work.body(size, t) + work.lm(size, size.response))
  assert by_shape + attention == policy


def test_refill_counts_what_was_sampled():
  one = work.body(SIZE, 4 + 3 - 1) + work.lm(SIZE, 3)
  assert work.rollout_flops(SIZE, 4, [3, 3]) == 2 * one


def test_unknown_phase_is_named():
  with pytest.raises(ValueError, match="phase='refill'"):
    work.flops(SIZE, "refill")


def test_only_quiet_calls_give_the_figure():
  recorder = timing.Recorder(1, 3, 9)
  recorder.seconds = [9.0, 1.0, 5.0, 2.0, 3.0]
  recorder.others = [0.0, 0.0, 0.9, 0.1, 0.0]
  assert recorder.is_enough()
  found = recorder.result()
  assert (found["first_call_seconds"], found["seconds"]) == (9.0, 2.0)
  assert (found["min_seconds"], found["max_seconds"]) == (1.0, 3.0)
  assert (found["num_quiet"], found["num_calls"]) == (3, 4)
  recorder.others = [0.0] + [0.9] * 4
  assert not recorder.is_enough()
  assert recorder.result()["num_quiet"] == 0


def test_a_loop_of_their_own_is_ended():
  recorder = timing.Recorder(1, 2, 2)
  steps = []

  def train():
    for number in range(99):
      recorder.start()
      steps.append(number)
      recorder.stop_or_end()

  timing.measure(timing.times_itself(train), recorder)
  assert steps == [0, 1, 2] and recorder.result()["num_calls"] == 2


def test_ids_past_the_vocabulary_are_no_response():
  ids = np.zeros((SIZE.batch, SIZE.response), int)
  timing.check_rollout(ids, SIZE)
  with pytest.raises(RuntimeError, match="the vocabulary ends"):
    timing.check_rollout(ids + SIZE.vocab, SIZE)
  with pytest.raises(RuntimeError, match="response ids"):
    timing.check_rollout(ids[:, 1:], SIZE)


def test_our_outputs_are_those_of_the_formulas(folder):
  """Where a formula is short: whitening, GAE with lambda .95 by hand."""
  found = ours.outputs(job(folder))
  advantages = found["advantages"]
  np.testing.assert_allclose(
      [advantages.mean(), advantages.std()], [0, 1], atol=1e-5)
  rewards = -work.KL_COEF * (found["logprobs"] - found["ref_logprobs"])
  rewards[:, -1] += found["scores"]
  last = rewards[:, -1] - found["values"][:, -1]
  before = (rewards[:, -2] + found["values"][:, -1] - found["values"][:, -2]
            + work.GAE_LAMBDA * last)
  np.testing.assert_allclose(
      found["returns"][:, -2:],
      found["values"][:, -2:] + np.stack([before, last], 1), atol=1e-5)
  assert found["greedy_ids"].max() < SIZE.vocab


@pytest.mark.parametrize(
    "phase", ["rollout", "value_fwd", "ppo_ptx_iteration"])
def test_our_phases_run(folder, phase):
  here = job(folder)
  timing.measure(ours.PHASES[phase](here), here.recorder)
  found = here.recorder.result() | {"peak_mb": 1.0}
  rates = peers.figures(SIZE, phase, found, {}, {})
  assert rates["tokens_per_second"] == pytest.approx(
      work.tokens(SIZE, phase) / found["seconds"])


def test_everybody_has_every_phase_or_says_why():
  assert set(work.PHASES) | set(work.OWN_PHASES) == ours.PHASES.keys()


def test_the_ending_policy_ends_as_often_as_asked(folder):
  """By its logits, that are all but the same at every position."""
  params = ours.load(job(folder), "ending")
  tokens = job(folder).inputs["tokens"]
  policy = ours.Policy(ours.config(SIZE))
  logits = np.asarray(policy.apply(
      {"params": params}, tokens, np.ones_like(tokens, bool)))
  chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  ends = chances[..., SIZE.vocab - 1]
  np.testing.assert_allclose(ends, 1 / work.REFILL_MEAN, rtol=0.2)


def outputs(**changes):
  rng = np.random.default_rng(0)
  found = {"logprobs": rng.normal(size=(4, 5)), "sft_loss": 3.0,
           "sampled_logprobs": rng.normal(-6, 0.3, 1000)}
  return {name: np.asarray(x).tolist()
          for name, x in (found | changes).items()}


def test_systems_that_agree_are_timed():
  expected = outputs()
  same = outputs(sft_loss=3.00001, sampled_logprobs=np.random.default_rng(
      1).normal(-6, 0.3, 1000), of_ours_alone=[1])
  assert peers.refusal(peers.differences(expected, same)) == ""


@pytest.mark.parametrize("name,value", [
    ("sft_loss", 3.001), ("sft_loss", float("nan")),
    ("logprobs", np.zeros((4, 4))),
    ("sampled_logprobs", np.full(1000, -5.8))])  # as of a top-k
def test_a_system_that_disagrees_is_refused(name, value):
  found = peers.differences(outputs(), outputs(**{name: value}))
  assert name in peers.refusal(found)


def test_a_system_without_common_outputs_is_refused():
  assert "nothing in common" in peers.refusal(
      peers.differences(outputs(), {"other": 1}))


def test_what_is_not_known_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit):
    peers.parse(["--environments=a", "--out=b", "--sizes=tiny,huge"])
  assert "--sizes has 'huge'; the known ones are tiny" in (
      capsys.readouterr().err)
  with pytest.raises(FileNotFoundError, match="make_environments"):
    peers.python_of(peers.SYSTEMS["torch"], str(tmp_path))


def runner(tmp_path, answers, monkeypatch):
  """A Runner whose systems answer from a table."""
  monkeypatch.setattr(limits, "measure", lambda launcher: {})
  monkeypatch.setattr(
      peers, "_answer", lambda *args: {"gemm": answers["gemm"]})
  found = peers.Runner(tmp_path, "", [], ())

  def ask(system, phase, size):
    answer = answers[phase] if phase == "gemm" else answers[system, phase]
    if isinstance(answer, Exception):
      raise answer
    return {"gemm": answer} if phase == "gemm" else dict(answer)

  monkeypatch.setattr(found, "ask", ask)
  return found


def timed(seconds):
  return {"seconds": seconds, "min_seconds": seconds, "max_seconds": seconds,
          "num_quiet": 1, "num_calls": 2, "setup_seconds": 1.0,
          "first_call_seconds": 2.0, "peak_mb": 100.0}


def test_a_run_from_check_to_table(tmp_path, monkeypatch):
  rates = {",".join(map(str, shape)): 1e9 for phase in work.PHASES
           for shape in work.gemm_shapes(SIZE, phase)}
  answers = {
      "gemm": rates,
      ("rlhf_jax", "check"): {"outputs": outputs()},
      ("torch", "check"): {"outputs": outputs(sft_loss=2.0)},
      ("trl", "check"): {"outputs": outputs()},
      ("tunix", "check"): peers.ProcessError("no\nModuleNotFound: tunix"),
      ("rlhf_jax", "rollout"): timed(0.5),
      ("trl", "rollout"): timed(1.0),
      ("rlhf_jax", "rm_step"): timed(0.5),
      ("trl", "rm_step"): {"skipped": "there is no such trainer"},
      ("rlhf_jax", "refill"): timed(1.0) | {
          "lengths": [2, 3], "response_sums": [1, 2]},
      ("rlhf_jax", "no_refill"): timed(2.0) | {
          "lengths": [2, 3], "response_sums": [1, 3]},
  }
  run = runner(tmp_path, answers, monkeypatch)
  run.run_size("test", ["rlhf_jax", "torch", "trl", "tunix"],
               ["rollout", "rm_step", "refill", "no_refill"])
  run.write_tables()
  lines = [json.loads(line) for line in
           (tmp_path / "results.jsonl").read_text().splitlines()]
  assert lines == run.records
  by_system = {r["system"]: r for r in lines
               if r.get("phase") == "rollout"}
  assert by_system.keys() == {"rlhf_jax", "trl"}
  flops = work.flops(SIZE, "rollout")
  assert by_system["trl"]["gflops"] == pytest.approx(flops / 1e9)
  assert by_system["trl"]["gemm_share"] == pytest.approx(flops / 1e9)
  text = (tmp_path / "table.md").read_text()
  assert "| rollout" in text and "| 2.00" in text
  assert "torch was not timed: outputs differ" in text
  assert "tunix failed: ModuleNotFound: tunix" in text
  assert "trl rm_step: there is no such trainer." in text
  assert "2.00 times the tokens a second; 1 of 2 responses" in text


def test_a_note_on_noise():
  record = {"kind": "phase", "system": "trl", "size": "tiny",
            "phase": "rollout", "tokens_per_second": 1.0, "gflops": 1.0,
            **timed(1.0), "num_quiet": 0}
  assert "others were busy" in tables.format_records([record], "simple")


def test_requirements_pin_every_version():
  assert make_environments.systems() == ["rlhf_jax", "torch", "trl", "tunix"]
  for system in make_environments.systems():
    path = make_environments.command("python", system)[6]
    for line in pathlib.Path(path).read_text().splitlines():
      assert line.startswith("#") or "==" in line, (system, line)
