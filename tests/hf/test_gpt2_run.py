"""experiments/gpt2.py on a made folder, and what else starts from one."""

import json

import jax
import numpy as np
import pytest

from experiments import gpt2
from rlhf_jax import config as config_lib, pipeline, sharding, tree
from rlhf_jax.data.records import DataError
from rlhf_jax.hf.fields import FolderError
from rlhf_jax.trainers import rm
from tests import tiny_run
from tests.hf import folders

# Rows to spare, and fewer positions than the run reads.
GPT2 = folders.GPT2 | dict(vocab_size=520, n_positions=48, n_embd=32,
                           n_layer=2, n_inner=80, eos_token_id=0)
# What experiments/ppo_ptx.py has in tests/tiny_run.py.
OURS = folders.GPT2 | dict(vocab_size=511, n_positions=64, n_embd=32,
                           n_layer=2, n_head=2)


def made(path, config, last="policy", seed=0):
  """A folder of near-uniform weights with the base run's tokenizer."""
  arrays = folders.tensors(config, last, seed)
  arrays = {name: 0.2 * x + float("ln_" in name and name.endswith("weight"))
            for name, x in arrays.items()}
  spec = folders.write(path, config, arrays)
  own = tiny_run.base().workdir / "data" / "tokenizer.json"
  (path / "tokenizer.json").write_text(own.read_text())
  return spec


def small(spec):
  config = gpt2.get_config("124m")
  config.init.policy = spec
  tiny_run.shrink(config)
  # 16 rows, of which a rollout takes all at once
  config.ppo.update(num_rollout_parts=1)
  config.ppo.method.update(num_microbatches=1, num_ptx_microbatches=1)
  config.rm.update(num_microbatches=1, num_row_parts=1)
  config.collect.num_rollout_parts = 1
  return config


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
  """(config, its folder, the imported checkpoint's)."""
  tiny_run.keep_compiled()
  folder = tmp_path_factory.mktemp("gpt2")
  config = small(made(folder / "checkpoint", GPT2))
  tiny_run.run(config, folder / "run")
  return config, folder / "run", folder / "checkpoint"


def test_all_stages_run_from_the_folder(run):
  _, workdir, _ = run
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary["stages"]) == {
      "sft", "collect", "rm", "rl_init", "ppo", "evaluate"}
  assert set(summary["eval"]["score"]) == {"init", "sft", "rl_init", "ppo"}
  assert summary["stages"]["ppo"]["first_ratio_deviation_max"] < 0.1


def test_sizes_and_tokenizer_are_the_folders(run):
  _, workdir, checkpoint = run
  config = json.loads((workdir / "config.json").read_text())
  for name in ("model", "rm_model"):
    sizes = config[name]
    assert (sizes["vocab_size"], sizes["d_model"], sizes["mlp_size"],
            sizes["context_length"]) == (520, 32, 80, 64)
  own = lambda folder: json.loads((folder / "tokenizer.json").read_text())
  assert own(workdir / "data") == own(checkpoint)


def test_training_starts_where_the_checkpoint_ends(run):
  _, workdir, _ = run
  opened = pipeline.make_run(pipeline.config_of(workdir), workdir)
  with sharding.use(opened.mesh, opened.axis_rules):
    start = jax.device_get(opened.policy_params("init"))
    after = jax.device_get(opened.policy_params("sft"))
  body = folders.sizes(GPT2)
  # 16 positions and the tables' padding are beyond the checkpoint's own
  padding = (64 * 9 - 520) * 32
  assert tree.num_params(start) == body.num_params + 16 * 32 + padding
  kernel = lambda params: np.ravel(
      params["transformer"]["blocks"]["mlp"]["up_kernel"])
  assert np.corrcoef(kernel(start), kernel(after))[0, 1] > 0.8  # fresh: 0


def test_a_second_call_finds_all_done_and_other_weights_are_refused(
    run, tmp_path, capsys):
  config, workdir, _ = run
  pipeline.run_all(config, workdir)
  printed = capsys.readouterr().out
  assert "policy from hf:" in printed and "ppo: finished before" in printed
  assert "16 positions are added" in printed
  other = small(made(tmp_path, GPT2, seed=1))
  with pytest.raises(pipeline.WorkdirError, match="init.policy"):
    pipeline.run_all(other, workdir)


def test_a_reward_model_goes_on_from_an_imported_one(tmp_path):
  spec = made(tmp_path / "rm", OURS | dict(vocab_size=512), "reward_model")
  config = tiny_run.only(
      ("rm",), init__reward_model=spec, rm__init_from="init")
  config, news = config_lib.with_imported(config)
  assert "the last 1 rows of the vocabulary are cut" in news[1]
  config_lib.validate(config, 8)
  run = pipeline.make_run(config, tiny_run.base().workdir)
  with sharding.use(run.mesh, run.axis_rules):
    start = jax.device_get(rm.make_training(run, "rm").create().params)
  arrays = folders.tensors(OURS | dict(vocab_size=512), "reward_model")
  assert np.array_equal(
      start["head"]["kernel"],
      (0.2 * arrays["score.weight"][0]).astype(np.float32))
  assert np.array_equal(
      start["transformer"]["token_embedding"]["embedding"][:511],
      (0.2 * arrays["transformer.wte.weight"][:511]).astype(np.float32))


def test_a_reward_model_of_other_ids_is_refused(tmp_path):
  spec = made(tmp_path / "rm", OURS, "reward_model")
  folders.add_tokenizer(tmp_path / "rm", ["other words"] * 9, 270)
  config = tiny_run.only(
      ("rm",), init__reward_model=spec, rm__init_from="init")
  with pytest.raises(DataError, match="other ids than the run's, as"):
    pipeline.run_all(config, tmp_path / "run")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
  config = small(made(tmp_path / "a", GPT2 | dict(vocab_size=500)))
  with pytest.raises(DataError, match="511 tokens, the embedding .* 500 rows"):
    pipeline.run_all(config, tmp_path / "run")


def test_sizes_that_are_given_must_agree(tmp_path):
  config = tiny_run.tiny_config(init__policy=made(tmp_path, GPT2))
  with pytest.raises(
      FolderError, match="num_heads is 4, not 2.*--config.model.num_heads=4"):
    pipeline.run_all(config, tmp_path / "run")


@pytest.mark.parametrize("overrides, message", (
    (dict(init__policy="gpt2"), "config.init.policy = 'gpt2' must be hf:"),
    (dict(init__policy="hf:"), "config.init.policy = 'hf:' must be"),
    (dict(sft__init_from="init"), "but config.init.policy is empty"),
    (dict(ppo__reward_model="init"), "what they measured is read as well"),
    (dict(data__tokenizer="init"), "config.init.policy, which is empty"),
    (dict(init__reward_model="hf:x"), "no stage of config.stages starts there"),
))
def test_settings_that_contradict_each_other(overrides, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.validate(tiny_run.tiny_config(**overrides), 8)


def test_ids_of_another_tokenizer_are_refused():
  config = tiny_run.tiny_config(
      init__policy="hf:x", pretrain__init_from="init")
  with pytest.raises(config_lib.ConfigError, match="'train' makes others"):
    config_lib.validate(config, 8)
