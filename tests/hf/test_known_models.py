"""Real models, by their config.json alone: sizes, and the recipe for them."""

import json

import pytest

from experiments import gpt2
from rlhf_jax import config as config_lib
from tests.hf import folders

# What their repositories' config.json say, and how many parameters their
# weights have.
GPT2 = {
    "124m": (dict(n_layer=12, n_embd=768, n_head=12), 124_439_808),
    "355m": (dict(n_layer=24, n_embd=1024, n_head=16), 354_823_168),
    "774m": (dict(n_layer=36, n_embd=1280, n_head=20), 774_030_080),
    "1.5b": (dict(n_layer=48, n_embd=1600, n_head=25), 1_557_611_200),
}
OPT = {
    "125m": (dict(num_hidden_layers=12, hidden_size=768, ffn_dim=3072,
                  num_attention_heads=12, word_embed_proj_dim=768),
             125_239_296),
    "350m": (dict(num_hidden_layers=24, hidden_size=1024, ffn_dim=4096,
                  num_attention_heads=16, word_embed_proj_dim=512,
                  do_layer_norm_before=False), 331_196_416),
    "1.3b": (dict(num_hidden_layers=24, hidden_size=2048, ffn_dim=8192,
                  num_attention_heads=32, word_embed_proj_dim=2048),
             1_315_758_080),
}
CEREBRAS_111M = dict(n_layer=10, n_embd=768, n_head=12, n_inner=3072,
                     n_positions=2048, activation_function="gelu")


@pytest.mark.parametrize("config, num_params", [
    *((dict(model_type="gpt2") | own, count) for own, count in GPT2.values()),
    *((dict(model_type="opt") | own, count) for own, count in OPT.values()),
    (dict(model_type="gpt2") | CEREBRAS_111M, 111_050_496),
])
def test_sizes_of_models_that_are_out_there(config, num_params):
  assert folders.sizes(config).num_params == num_params


@pytest.mark.parametrize("device_count", (1, 8))
@pytest.mark.parametrize("size", GPT2)
def test_the_recipe_is_valid_for_every_size(size, device_count, tmp_path):
  fields, num_params = GPT2[size]
  (tmp_path / "config.json").write_text(
      json.dumps(dict(model_type="gpt2") | fields))
  config = gpt2.get_config(size)
  assert config.init.policy.startswith("hf:openai-community/gpt2")
  config.init.policy = f"hf:{tmp_path}"
  config, news = config_lib.with_imported(config)
  config_lib.validate(config, device_count, check_inputs=False)
  assert len(news) == 1 and config.rm_model == config.model
  assert folders.sizes(dict(model_type="gpt2") | fields).num_params == (
      num_params)


def test_learning_rates_are_relative_to_those_of_1_3b():
  rate = lambda size, stage: (
      gpt2.get_config(size)[stage].optimizer.learning_rate)
  for stage, paper in (("sft", 9.65e-6), ("rm", 9e-6), ("ppo", 8.05e-6)):
    assert rate("1.5b", stage) == paper
    assert rate("124m", stage) == pytest.approx(3 * paper)  # 6e-4 to 2e-4
    assert rate("774m", stage) == pytest.approx(1.25 * paper)
  with pytest.raises(ValueError, match="unknown size '7b'"):
    gpt2.get_config("7b")
