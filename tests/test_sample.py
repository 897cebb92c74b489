"""Responses on the terminal."""

import io
import sys

from absl import app
from absl import flags
from absl.testing import flagsaver
from etils import epath
import pytest

from rlhf_jax import checkpoint, exits, pipeline, sample
from tests import tiny_run

PROMPT = "Where is Anna?"


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="ask")
def _ask(base, capsys, monkeypatch):
  """Calls the program in this process; returns (stdout, stderr)."""

  def ask(typed="", **given):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    before = tiny_run.contents(base.workdir)
    capsys.readouterr()
    given = {"workdir": base.workdir} | given
    argv = ["sample", *(f"--{name}={x}" for name, x in given.items())]
    with flagsaver.flagsaver():
      sample.main(flags.FLAGS(argv))
    assert tiny_run.contents(base.workdir) == before
    return capsys.readouterr()

  return ask


@pytest.fixture(name="refused")
def _refused(ask, capsys):
  """The message with which it ends."""

  def refused(**given):
    with pytest.raises(SystemExit) as stopped:
      ask(**given)
    assert stopped.value.code == exits.REFUSED
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    return said

  return refused


def test_every_stage_answers_in_its_own_way(ask):
  said = {stage: ask(prompt=PROMPT, stage=stage, temperature=0.0).out
          for stage in ("pretrain", "sft", "rl_init", "ppo")}
  assert all(text.endswith("\n") for text in said.values())
  assert said["pretrain"].strip()
  assert len(set(said.values())) > 1
  assert ask(prompt=PROMPT, temperature=0.0).out == said["ppo"]  # the last


def test_greedy_responses_need_no_seed(ask):
  texts = {ask(prompt=PROMPT, stage="sft", temperature=0.0, seed=seed).out
           for seed in (0, 1)}
  assert len(texts) == 1


def test_noise_is_that_of_the_seed(ask):
  first, again, other = (
      ask(prompt=PROMPT, stage="pretrain", num=8, seed=seed).out
      for seed in (3, 3, 4))
  assert first == again != other
  lines = [line for line in first.splitlines() if line]
  assert len(set(lines)) >= 7  # eight responses, none shares noise


def test_prompts_are_read_from_the_terminal(ask):
  typed = f"{PROMPT}\n\nName two animals.\n"
  found = ask(typed, stage="sft", temperature=0.0)
  one = ask(prompt=PROMPT, stage="sft", temperature=0.0).out
  two = ask(prompt="Name two animals.", stage="sft", temperature=0.0).out
  assert found.out == one + two


def test_a_bad_line_does_not_end_the_session(ask):
  found = ask(f"{'long ' * 60}\n{PROMPT}\n", stage="sft", temperature=0.0)
  assert "error: the prompt has " in found.err
  assert found.out == ask(prompt=PROMPT, stage="sft", temperature=0.0).out


def test_a_long_prompt(refused):
  assert refused(prompt="long " * 60).endswith(
      "tokens, this run's limit is config.data.max_prompt_tokens=28")


def test_an_empty_prompt(refused):
  assert refused(prompt=" ") == "error: the prompt is empty"


@pytest.mark.parametrize("stage", ["rm", "collect", "pppo"])
def test_a_stage_without_a_policy(base, refused, stage):
  assert refused(stage=stage) == (
      f"error: --stage={stage}: the finished policies in {base.workdir} are "
      "pretrain, sft, rl_init, ppo")


def test_the_policy_of_a_step(ask, refused):
  of_step = {step: ask(prompt=PROMPT, stage="rl_init", num=8, **step_given).out
             for step, step_given in (
                 (8, {"step": 8}), (16, {"step": 16}), (None, {}))}
  assert of_step[16] == of_step[None] != of_step[8]
  assert refused(stage="rl_init", step=9) == (
      "error: --step=9: the checkpoints kept of 'rl_init' are those of the "
      "steps 8, 16")


def test_no_workdir(refused, tmp_path):
  assert refused(workdir=tmp_path) == (
      f"error: {tmp_path}/config.json does not exist: --workdir must be the "
      "folder of a run.")


def test_no_finished_stage(base, tmp_path):
  for name in ("config.json", "data/tokenizer.json"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes((base.workdir / name).read_bytes())
  with pytest.raises(checkpoint.CheckpointError, match="no stage with a polic"):
    sample.choose_stage(pipeline.open_run(epath.Path(tmp_path)), None)


def test_unexpected_arguments():
  with pytest.raises(app.UsageError, match="unexpected arguments: .'hello'"):
    sample.main(["sample", "hello"])
