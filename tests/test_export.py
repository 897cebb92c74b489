"""A run's models as folders of Hugging Face's form."""

import json
import pathlib
import resource
import signal
import subprocess
import sys

from absl import app
from absl import flags
from absl.testing import flagsaver
from etils import epath
import jax
import numpy as np
import pytest

from rlhf_jax import export, pipeline, scoring, sharding
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.hf import folder as folder_lib, importing, vocabulary
from tests import tiny_run

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="run", scope="module")
def _run(base):
  return pipeline.open_run(epath.Path(base.workdir))


@pytest.fixture(name="folder", scope="module")
def _folder(base, tmp_path_factory):
  """`folder(stage, **options)`: what the program writes, once for all."""
  made = {}

  def folder(stage, **options):
    key = (stage, *options.items())
    if key not in made:
      made[key] = tmp_path_factory.mktemp("out") / "model"
      call(workdir=base.workdir, stage=stage, out=made[key], **options)
    return made[key]

  return folder


def call(**given):
  """The program, in this process."""
  argv = ["export", *(f"--{name.replace('_size', '-size').replace('_s', '-s')}"
                      f"={x}" for name, x in given.items())]
  with flagsaver.flagsaver():
    export.main(flags.FLAGS(argv))


@pytest.fixture(name="refused")
def _refused(base, tmp_path, capsys):
  """The message with which it ends; nothing is written."""

  def refused(**given):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
      call(**{"workdir": base.workdir, "stage": "ppo", "out": out} | given)
    assert stopped.value.code == 2
    assert not out.exists() and not out.with_name("out.partial").exists()
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message.removeprefix("error: ")

  return refused


def imported(run, path, model, head=None):
  with sharding.use(run.mesh, run.axis_rules):
    abstract = run.abstract_params(model)
    if head is None:
      return importing.policy_params(f"hf:{path}", model.config, abstract)
    return importing.scalar_params(
        f"hf:{path}", model.config, abstract, lambda: head)


def leaves(params, num_tokens):
  """Path -> array, of tables the rows that tokens have."""
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found[name] = x[:num_tokens] if "token_embedding" in name else x
  return found


@pytest.mark.parametrize("stage,item", [
    ("ppo", "params"), ("ppo:ema", "ema"), ("sft", "params")])
def test_a_policy_comes_back_to_the_last_bit(run, folder, stage, item):
  with sharding.use(run.mesh, run.axis_rules):
    params = run.load(stage.partition(":")[0], item, run.policy())
  ours = leaves(params, 511)
  again = leaves(imported(run, folder(stage), run.policy()), 511)
  assert ours.keys() == again.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_the_average_is_another_model(folder):
  weights = [(folder(stage) / "model.safetensors").read_bytes()
             for stage in ("ppo", "ppo:ema")]
  assert weights[0] != weights[1]


def test_a_step_is_that_of_its_checkpoint(run, folder):
  with sharding.use(run.mesh, run.axis_rules):
    params = run.load("rl_init", "params", run.policy(), 8)
  again = leaves(imported(run, folder("rl_init", step=8), run.policy()), 511)
  for name, x in leaves(params, 511).items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)
  card = (folder("rl_init", step=8) / "README.md").read_text()
  assert "at step 8" in card
  assert "is of another checkpoint than that of step 8" in card


def test_scores_are_those_of_the_run(run, folder):
  pairs = [(run.prompt_tokens(prompt), run.response_tokens(response))
           for prompt, response in (("Where is Anna?", "At the mill."),
                                    ("Name two animals.", "A cat, a dog."))]
  score = scoring.Scorer(run, run.scalar(), 8)
  with sharding.use(run.mesh, run.axis_rules):
    params = run.load("rm", "params", run.scalar())
    again = imported(run, folder("rm"), run.scalar(), head=0)
    assert abs(float(params["head"]["bias"])) > 0.1
    assert float(again["head"]["bias"]) == 0
    np.testing.assert_allclose(
        score(again, pairs), score(params, pairs), atol=1e-5)


def test_the_folder_of_a_policy(run, folder):
  path, ours = folder("ppo:ema"), run.tokenizer
  assert sorted(file.name for file in path.iterdir()) == [
      "README.md", "config.json", "generation_config.json", "merges.txt",
      "model.safetensors", "special_tokens_map.json", "tokenizer.json",
      "tokenizer_config.json", "vocab.json"]
  config = json.loads((path / "config.json").read_text())
  assert config["architectures"] == ["GPT2LMHeadModel"]
  assert (config["vocab_size"], config["dtype"]) == (511, "float32")
  ids = {f"{name}_token_id": ours.eos_id for name in ("bos", "eos", "pad")}
  assert ids.items() <= config.items()
  assert json.loads((path / "generation_config.json").read_text()) == {
      "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
      "max_new_tokens": 36, **ids}
  for spec in (path, f"{path}/vocab.json,{path}/merges.txt"):
    assert tokenizer_lib.load(str(spec)).encode("Where is Anna?\n") == (
        run.prompt_tokens("Where is Anna?"))
  with folder_lib.Folder(f"hf:{path}") as opened:
    assert "lm_head.weight" not in opened.names


def test_the_folder_of_a_reward_model(run, folder):
  config = json.loads((folder("rm") / "config.json").read_text())
  assert config["architectures"] == ["GPT2ForSequenceClassification"]
  assert config["problem_type"] == "regression"
  assert config["id2label"] == {"0": "reward"}
  assert config["pad_token_id"] == 511 != run.tokenizer.eos_id
  assert config["vocab_size"] == 512
  assert not (folder("rm") / "generation_config.json").exists()


def test_files_and_their_type_are_as_asked(folder):
  path = folder("sft", dtype="bfloat16", max_shard_size="40KB")
  files = sorted(path.glob("*.safetensors"))
  assert len(files) > 1
  assert all(file.stat().st_size < 40_000 + 4_000 for file in files)  # a header
  with folder_lib.Folder(f"hf:{path}") as opened:
    assert {opened.dtype(name) for name in opened.names} == {"BF16"}
  assert "rounded to bfloat16" in (path / "README.md").read_text()


def test_the_template_says_what_the_run_says():
  words = vocabulary.of_policy(tokenizer_lib.train(["a"], 257))
  template = vocabulary.chat_template(words, "\n\"?\u00e9", " ")
  assert r'''messages[0]['content'] + "\n\"?''' in template
  assert '''{{- " " + message['content'] + "<|endoftext|>" -}}''' in template


# --------------------------------------------------------------------- messages


@pytest.mark.parametrize("stage", [
    "collect", "pppo", "sft:ema", "ppo:average", "ppo:", "rm:ema", ""])
def test_no_such_model(base, refused, stage):
  assert refused(stage=stage) == (
      f"--stage={stage}: the finished stages with a model in {base.workdir} "
      "are pretrain, sft, rm, rl_init, ppo, ppo:ema")


def test_an_unfinished_stage(base, refused, tmp_path):
  for name in ("config.json", "data/tokenizer.json", "sft/done.json"):
    copy = tmp_path / "run" / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((base.workdir / name).read_bytes())
  assert refused(workdir=tmp_path / "run", stage="ppo:ema") == (
      f"--stage=ppo:ema: 'ppo' of {tmp_path}/run is not finished; give the "
      "run's command again to finish it. Those with a model that are: sft")


@pytest.mark.parametrize("size", [
    "5", "GB", "0GB", "-1GB", "5 apples", "1e3MB"])
def test_a_size_that_is_none(refused, size):
  assert refused(max_shard_size=size) == (
      f"--max-shard-size={size}: it is no size above 0; write e.g. 5GB, 500MB "
      "or 2GiB")


def test_sizes():
  assert [export.parse_size(text) for text in (
      "5GB", "1.5 KB", "2GiB", "7b", "1TB")] == [
          5 * 10**9, 1500, 2 * 2**30, 7, 10**12]


def test_other_arguments(refused, tmp_path):
  assert refused(dtype="int8") == (
      "--dtype=int8: weights are written as float32, bfloat16, float16; name "
      "one of them")
  assert refused(stage="rl_init", step=9) == (
      "--step=9: the checkpoints kept of 'rl_init' are those of the steps 8, "
      "16")
  assert refused(workdir=tmp_path) == (
      f"{tmp_path}/config.json does not exist: --workdir must be the folder of "
      "a run.")
  assert refused(out="gs://bucket/model").startswith(
      "--out=gs://bucket/model: folders are written on this machine only")
  file = tmp_path / "file"
  file.write_text("mine")
  assert "is there and no folder" in refused(out=file)
  assert f"--out={tmp_path} is not empty" in refused(out=tmp_path)
  assert file.read_text() == "mine"
  with pytest.raises(app.UsageError, match="unexpected arguments: .'hello'"):
    export.main(["export", "hello"])


def test_a_file_that_may_not_become_so_large(refused, tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    message = refused(stage="sft")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert message.startswith(
      f"--out={tmp_path}/out: a file may not become that large")
  assert message.endswith("Nothing of it was kept.")


# ------------------------------------------------------------------ interrupted


_KILLED = """
import os, signal, sys
from absl import app
from rlhf_jax import export
from rlhf_jax.hf import exporting

save = exporting._save

def save_and_die(path, *args):
  save(path, *args)
  os.kill(os.getpid(), signal.SIGKILL)

exporting._save = save_and_die
app.run(export.main)
"""


def test_killed_half_way(base, tmp_path, monkeypatch):
  """And on the way there it needs none of the devices that others have."""
  before = tiny_run.contents(base.workdir)
  given = dict(workdir=base.workdir, stage="sft", out=tmp_path / "out")
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  found = subprocess.run(
      [sys.executable, "-c", _KILLED, "--max-shard-size=40KB",
       *(f"--{name}={x}" for name, x in given.items())],
      cwd=ROOT, capture_output=True, check=False)
  assert found.returncode == -signal.SIGKILL, found.stderr.decode()
  assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
  half = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
  assert len(half) == 1 and half[0].startswith("model-00001-of-")
  given["out"].mkdir()  # an empty folder is as good as none
  call(**given)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert not list(given["out"].glob("model-*"))  # of the first
  assert (given["out"] / "README.md").exists()
  assert tiny_run.contents(base.workdir) == before
