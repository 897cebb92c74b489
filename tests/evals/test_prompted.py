"""A policy behind a few-shot prefix: its text, and who wins."""

import types

import numpy as np
import pytest

from rlhf_jax.data.smallworld import Smallworld, text as text_lib
from rlhf_jax.evals import finished, prompted, responses, suite
from rlhf_jax.evals.responses import Responses
from rlhf_jax.sampler import Response

WORLD = Smallworld(seed=0, num_people=8, validation_fraction=0.1,
                   test_fraction=0.2)
PROMPTS = ["What pet does Anna have?", "Which animal does Ben take care of?"]


def of_texts():
  """A run that is not of Smallworld."""
  data = types.SimpleNamespace(prompt_suffix="\n", response_prefix="")
  return types.SimpleNamespace(
      world=None, config=types.SimpleNamespace(data=data))


def test_in_smallworld_people_talk_as_they_do_in_its_text():
  form = prompted.form_of(types.SimpleNamespace(world=WORLD))
  text = form.shown("Who?", " Ben. ") + form.shown("Where?", "Here.")
  assert text == ('"Who?" said Anna. "Ben." said Ben. '
                  '"Where?" said Anna. "Here." said Ben. ')
  assert form.asked("Why?") == '"Why?" said Anna. "'
  assert text_lib.QUOTED in text_lib.EXCHANGES
  assert form.cut(' Of course." said Ben. "Who') == ("Of course.", True)
  assert form.cut("Of course, it") == ("Of course, it", False)


def test_elsewhere_texts_follow_each_other():
  form = prompted.form_of(of_texts())
  assert form.shown("Who?\n(Say it.)", "Ben.") + form.asked("Why?") == (
      "Who?\n(Say it.)\nBen.\n\nWhy?\n")
  assert form.cut("Ben. \n\nWho?") == ("Ben.", True)
  data = types.SimpleNamespace(
      prompt_suffix="\n\nAssistant:", response_prefix=" ")
  form = prompted.form_of(types.SimpleNamespace(
      world=None, config=types.SimpleNamespace(data=data)))
  assert form.shown("Human: Who?", "Ben.") + form.asked("Human: Why?") == (
      "Human: Who?\n\nAssistant: Ben.\n\nHuman: Why?\n\nAssistant:")


@pytest.fixture(name="make")
def _make(monkeypatch):
  """`make(world, rubric)`: a policy that answers rightly behind the prefix
  "b"."""
  right = [f"Of course. {name} has a {WORLD.world.facts[name, 'pet']}."
           for name in ("Anna", "Ben")]
  rows = [{"prompt": prompt, "prompt_tokens": []} for prompt in PROMPTS]
  monkeypatch.setattr(prompted, "prefixes", lambda run: ["a", "b", "c"])
  monkeypatch.setattr(prompted, "_rows", lambda *args: rows)
  monkeypatch.setattr(finished, "stages", lambda run, kinds: ["rm"])

  def respond(self, key, asked, tick):
    tick(len(asked))
    texts = [right[PROMPTS.index(prompt)] if prefix == "b" else f"{prefix}!"
             for prefix, prompt in asked]
    return [Response(text, np.arange(len(text)), True) for text in texts]

  monkeypatch.setattr(prompted.PromptedPolicy, "_respond", respond)

  def make(world, rubric, tick):
    run = of_texts()
    run.world, run.rubric, run.scalar = world, rubric, lambda: None
    run.key, run.load = (lambda name: name), (lambda *args: "params")
    run.tokenizer = types.SimpleNamespace(digest="d")
    return prompted.PromptedPolicy(types.SimpleNamespace(
        run=run, tick=tick, prompts=rows[::-1],
        settings=types.SimpleNamespace(seed=0),
        # of texts the longest is liked best
        scorer=lambda params, pairs: np.array([len(of) for _, of in pairs])),
        "pretrain+prompted", None)

  return make


@pytest.mark.parametrize("world, rubric", [
    (WORLD, WORLD), (None, None), (WORLD, None)])
def test_the_prefix_that_scores_best_is_used(
    make, world, rubric, monkeypatch):
  """By the rubric of its own prompts, not by that of a world that it has read
  about: that one cannot tell what others ask."""
  if rubric is None:
    monkeypatch.setattr(Smallworld, "judge", None)
  ticks = []
  policy = make(world, rubric, ticks.append)
  found = policy.responses
  assert policy.prefix == "b"
  assert found.world is rubric
  assert all("has a" in of.text for of in found.responses)
  assert list(found.prompts) == PROMPTS[::-1]
  assert sum(ticks) == prompted.NUM_PREFIXES * prompted.NUM_PROMPTS + 2


def test_it_has_no_kl():
  found = Responses(["p"], [Response("r", np.array([1]), True)], None, None)
  assert not list(responses.divergence(found))
  assert next(responses.style(found)).name == "tokens"


def test_its_stage_is_what_is_judged(monkeypatch):
  """A reward model that a stage was optimised for cannot judge it."""
  run = types.SimpleNamespace(
      config={"ppo": {"reward_model": "rm"}}, workdir="w",
      stage_dir=lambda stage: stage)
  monkeypatch.setattr(finished, "stages", lambda run, kinds: ["rm"])
  assert finished.choose_judge({"w": run}, "rm", {"w": ["sft"]}) == "rm"
  with pytest.raises(suite.LeftOut, match="ppo.prompted in w was optimised"):
    finished.choose_judge({"w": run}, "rm", {"w": ["ppo+prompted"]})


def test_a_teacher_is_found_in_any_folder(monkeypatch, tmp_path):
  """Named from elsewhere, through a link, or copied."""
  monkeypatch.setattr(finished, "stages", lambda run, kinds: ["rm"])
  monkeypatch.chdir(tmp_path)
  for name, seconds in (("a/rm", 1.5), ("copy", 1.5), ("other", 2.5)):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "done.json").write_text(f'{{"seconds": {seconds}}}')
  (tmp_path / "link").symlink_to("a")
  first = types.SimpleNamespace(
      config={}, workdir="a", stage_dir=lambda stage: tmp_path / "a" / stage)

  def chosen(folder):
    run = types.SimpleNamespace(
        config={"ppo": {"reward_model": "rm"}}, workdir="b",
        stage_dir=lambda stage: folder)
    return finished.choose_judge(
        {"a": first, "b": run}, "rm", {"a": ["sft"], "b": ["sft", "ppo"]})

  assert chosen("other") == "rm"
  for folder in ("a/rm", "link/rm", "copy"):
    with pytest.raises(suite.LeftOut, match="ppo in b was optimised for it"):
      chosen(folder)
