"""Mean token loss: against NumPy, whatever the batches."""

from etils import epath
import jax
import numpy as np
import pytest

from rlhf_jax import datasets, pipeline, sharding
from rlhf_jax.data import prepare
from rlhf_jax.evals import language_loss
from tests import tiny
from tests import tiny_run

VOCAB_SIZE = 511


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Prepared data and no training."""
  folder = epath.Path(tmp_path_factory.mktemp("loss"))
  made = pipeline.make_run(tiny_run.tiny_config(), folder)
  datasets.prepare_for(made, ("demonstrations", "pretrain"))
  return made


@pytest.fixture(scope="module")
def params(run):
  return tiny.params(run.policy())


def numpy_loss(logits, tokens):
  """-log p of each token but the first, in float64 [B, L - 1]."""
  logits = np.asarray(logits, np.float64)[:, :-1, :VOCAB_SIZE]
  logits -= logits.max(-1, keepdims=True)
  logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(logprobs, tokens[:, 1:, None], -1)[..., 0]


def all_rows(run, stream):
  """Every validation row of a stream, in one batch."""
  rows = len(run.source(stream, "validation"))
  batch = language_loss.STREAMS[stream](run, "validation", rows, None)(0)
  assert batch["row_mask"].all()
  return batch


@pytest.mark.parametrize("stream", ["pretrain", "demonstrations"])
def test_is_the_mean_over_all_tokens(run, params, stream):
  """Batches that do not fill count their real rows only."""
  batch = all_rows(run, stream)
  logits = jax.jit(lambda p, t, m: run.policy().apply({"params": p}, t, m))(
      params, batch["tokens"], batch["mask"])
  tokens = np.where(batch["mask"], batch["tokens"], 0)
  losses = numpy_loss(logits, tokens)[batch["loss_mask"][:, 1:]]
  settings = run.config.sft.copy_and_resolve_references()
  settings.update(
      eval_streams=(stream,), max_eval_batches=1000,
      eval_batch_size=next(  # that leaves a part of a batch
          size for size in (8, 24, 40) if len(tokens) % size))
  with sharding.use(run.mesh, run.axis_rules):
    (name, found), = language_loss.make_evaluate(run, settings)(params)
  assert name == f"validation/{stream}/loss"
  assert found == pytest.approx(losses.mean(), rel=1e-5)
  if stream == "demonstrations":  # the response with its end, not the prompt
    rows = prepare.open_split(
        run.workdir / "data", "demonstrations", "validation")
    assert len(losses) == sum(len(row["response_tokens"]) for row in rows)


def test_rows_that_fill_a_batch_do_not_count(run, params):
  eval_step = jax.jit(language_loss.make_eval_step(run.policy()))
  batch = dict(all_rows(run, "pretrain"))
  batch = {name: x[:4] for name, x in batch.items()}
  total, count = eval_step(params, batch)
  filled = dict(batch, row_mask=np.array([True, True, False, False]))
  first = {name: x[:2] for name, x in batch.items()}
  for a, b in zip(eval_step(params, filled), eval_step(params, first)):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert count == 4 * 63 and total > 0


def test_the_number_of_batches_is_limited(run, params):
  batch = all_rows(run, "pretrain")
  total, count = jax.jit(language_loss.make_eval_step(run.policy()))(
      params, {name: x[:8] for name, x in batch.items()})
  settings = run.config.pretrain.copy_and_resolve_references()
  settings.update(eval_batch_size=8, max_eval_batches=1)
  with sharding.use(run.mesh, run.axis_rules):
    found = dict(language_loss.make_evaluate(run, settings)(params))
  assert found["validation/pretrain/loss"] == pytest.approx(
      float(total / count), rel=1e-6)
