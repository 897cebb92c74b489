"""What evaluators see of a policy is what its network says."""

from etils import epath
import jax
import numpy as np
import pytest

from rlhf_jax import datasets, pipeline, sharding
from rlhf_jax.evals import language_loss, perplexity, subjects
from tests import tiny
from tests import tiny_run

VOCAB_SIZE = 511
TEXTS = [("The dog", " runs home."), ("", "Anna has a cat."),
         ("Where is Anna? " * 3, " She is here."), ("A", " b"),
         ("Tom likes " * 6, " the red ball and the blue one, and Anna too.")]


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
  """Prepared data and no training."""
  folder = epath.Path(tmp_path_factory.mktemp("subjects"))
  tiny_run.keep_compiled()
  made = pipeline.make_run(tiny_run.tiny_config(), folder)
  datasets.prepare_for(made, ("pretrain",))
  return made


@pytest.fixture(name="make", scope="module")
def _make(run):
  """`make(batch_size)`: a policy of random weights."""
  params = tiny.params(run.policy())

  def make(batch_size=8, tick=lambda number: None):
    settings = subjects.Settings(
        reference="", batch_size=batch_size, num_prompts=1, temperature=1.0,
        limit=None, seed=0)
    return subjects.Policy(
        subjects.Bench(run, settings, tick), "sft", params)

  return make


@pytest.fixture(autouse=True)
def _mesh(run):
  """In a hurry: it is mostly compiling."""
  jax.config.update("jax_disable_most_optimizations", True)
  with sharding.use(run.mesh, run.axis_rules):
    yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(name="likelihoods", scope="module")
def _likelihoods(run, make):
  with sharding.use(run.mesh, run.axis_rules):
    return make().likelihoods(TEXTS)


def expected(run, context, text):
  """(sum, count) by one plain pass over context and text, no padding."""
  ids = run.tokenizer.encode(context) or [run.tokenizer.eos_id]
  new = run.tokenizer.encode(text)
  tokens = np.array([(ids + new)[-64:]] * 8, np.int32)  # a row a device
  logits = np.asarray(run.policy().apply(
      {"params": tiny.params(run.policy())}, tokens, tokens >= 0),
      np.float64)[0, :-1, :VOCAB_SIZE]
  logits -= logits.max(-1, keepdims=True)
  logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  picked = logprobs[np.arange(len(logprobs)), tokens[0, 1:]]
  return picked[-len(new):].sum(), len(new)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_likelihoods_are_those_of_the_network(run, likelihoods, number):
  total, count = expected(run, *TEXTS[number])
  found = likelihoods[number]
  assert found.total == pytest.approx(total, rel=1e-4)
  assert (found.tokens, found.is_cut) == (count, False)
  assert found.mean == found.total / count


def test_neither_order_nor_batch_nor_padding_matters(
    make, likelihoods, monkeypatch):
  monkeypatch.setattr(subjects, "_MIN_LENGTH", 16)  # two lengths
  policy = make(batch_size=3)
  assert policy._bench.lengths() == [16, 64]
  found = policy.likelihoods(TEXTS[::-1])[::-1]
  np.testing.assert_allclose(
      [of.total for of in found], [of.total for of in likelihoods], rtol=1e-4)


def test_a_long_context_loses_its_beginning(run, make):
  context, text = "Tom sees a dog. " * 30, " The dog runs."
  cut, alike, long, none = make().likelihoods(
      [(context, text), ("Anna. " + context, text), ("", context), ("a", "")])
  assert cut.is_cut and cut.total == pytest.approx(
      expected(run, context, text)[0], rel=1e-4)
  assert alike.total == pytest.approx(cut.total, rel=1e-5)
  assert long is None and none is None


def test_texts_are_read_whole_in_windows(run, make):
  long, short = "Anna sees Tom. " * 40, TEXTS[1][1]
  ticks = []
  found = make(tick=ticks.append).text_likelihoods([long, short])
  count = len(run.tokenizer.encode(long))
  assert [of.tokens for of in found[0]] == (
      [63] * (count // 63) + [count % 63] * bool(count % 63))
  assert found[1][0].total == pytest.approx(
      expected(run, "", short)[0], rel=1e-4)
  assert sum(ticks) == 2


def test_held_out_loss_is_that_of_training(run, make):
  policy = make(batch_size=16)
  settings = run.config.pretrain.copy_and_resolve_references()
  settings.update(eval_batch_size=16, max_eval_batches=1000)
  params = tiny.params(run.policy())
  (_, loss), = language_loss.make_evaluate(run, settings)(params)
  row = next(perplexity.of_windows(policy.held_out()))
  assert row.mean == pytest.approx(loss, rel=1e-5)
  assert row.n == len(run.source("pretrain", "validation"))


def test_answers_are_greedy(run, make):
  """Each token is the most likely one after those before it."""
  prompts = ["Where is Anna?", "The dog"]
  long = "Anna sees Tom. " * 40
  found = make().complete([*prompts, long, "Kate has it. " + long])
  assert [of.is_cut for of in found] == [False, False, True, True]
  assert found[2].text == found[3].text  # for their beginnings are cut off
  forward = jax.jit(lambda tokens: run.policy().apply(
      {"params": tiny.params(run.policy())}, tokens, tokens < VOCAB_SIZE))
  for prompt, of in zip(prompts, found):
    ids = run.tokenizer.encode(prompt)
    room = make()._bench.new_tokens
    assert room == 36
    tokens = np.full((1, 64), VOCAB_SIZE, np.int32)
    tokens[0, :len(ids)] = ids
    new = []
    while len(new) < room and run.tokenizer.eos_id not in new:
      at = len(ids) + len(new)
      logits = np.asarray(forward(tokens))[0, at - 1, :VOCAB_SIZE]
      new.append(int(logits.argmax()))
      tokens[0, at] = new[-1]
    assert of.text == run.tokenizer.decode(new).strip()


def test_ticks_add_up():
  ticks = []
  tick = subjects.scaled(ticks.append, 3, 10)
  for count in (4, 4, 2):
    tick(count)
  assert ticks == [1, 1, 1]
