"""A run's models in programs that know nothing of this code.

transformers' pipelines, EleutherAI's lm_eval and transformers' server, all
without a network, on the folders of `python -m rlhf_jax.export`.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from etils import epath
import jax
import numpy as np
import pytest
import transformers

from rlhf_jax import export, pipeline, ppo_step, sampler, scoring, sharding
from tests import tiny_run

PROMPTS = ("Where is Anna?", "Name two animals.", "What does Ben do?")
RESPONSES = ("At the mill.", "A cat, a dog.", "He reads a book.")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
           "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
BIN = pathlib.Path(sys.executable).parent


@pytest.fixture(name="run", scope="module")
def _run():
  return pipeline.open_run(epath.Path(tiny_run.base().workdir))


@pytest.fixture(name="folders", scope="module")
def _folders(run, tmp_path_factory):
  """Stage -> its folder."""
  out = tmp_path_factory.mktemp("out")
  for stage in ("ppo:ema", "rm"):
    export.export(run.workdir, stage, str(out / stage.partition(":")[0]),
                  dtype="float32", max_shard_size="5GB", step=None)
  return {"ppo": str(out / "ppo"), "rm": str(out / "rm")}


@pytest.fixture(name="greedy", scope="module")
def _greedy(run):
  """The run's likeliest responses to PROMPTS."""
  generate = sampler.make_generate(run, run.policy(), temperature=0.0)
  tokens = [run.prompt_tokens(prompt) for prompt in PROMPTS]
  with sharding.use(run.mesh, run.axis_rules):
    (_, found), = sampler.respond(
        run, generate, run.policy_params("ppo"), jax.random.key(0), tokens,
        range(len(tokens)), batch_size=8)
  assert all(len(response.tokens) > 1 for response in found)
  return found


def text_of(run, response):
  """What a program prints of it: all but the end."""
  return run.tokenizer.decode(response.tokens.tolist())


def test_text_generation(run, folders, greedy):
  generate = transformers.pipeline(
      "text-generation", model=folders["ppo"], device="cpu")
  ask = lambda inputs: generate(
      inputs, do_sample=False, return_full_text=False, batch_size=3)
  suffix = run.config.data.prompt_suffix
  plain = ask([prompt + suffix for prompt in PROMPTS])  # padded on the left
  chats = ask([[{"role": "user", "content": prompt}] for prompt in PROMPTS])
  for response, one, other in zip(greedy, plain, chats):
    assert one[0]["generated_text"] == text_of(run, response)
    assert other[0]["generated_text"] == text_of(run, response)


def test_text_classification(run, folders, account):
  pairs = [(run.prompt_tokens(prompt), run.response_tokens(response))
           for prompt, response in zip(PROMPTS, RESPONSES)]
  score = scoring.Scorer(run, run.scalar(), 8)
  with sharding.use(run.mesh, run.axis_rules):
    ours = np.asarray(score(run.load("rm", "params", run.scalar()), pairs))
  classify = transformers.pipeline(
      "text-classification", model=folders["rm"], device="cpu")
  data = run.config.data
  theirs = [found["score"] for found in classify(
      [prompt + data.prompt_suffix + data.response_prefix + response
       + run.tokenizer.end for prompt, response in zip(PROMPTS, RESPONSES)],
      batch_size=3)]
  difference = float(np.abs(ours - theirs).max())
  account("pipeline/text-classification", scores=difference)
  assert np.ptp(ours) > 0.05
  assert difference < 1e-4


TASK = """
task: two_responses
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: {suffix}
metric_list:
  - metric: acc
"""


def test_lm_eval(run, folders, tmp_path, account):
  # it counts blanks at the end of a prompt as the response's
  suffix = run.config.data.prompt_suffix
  docs = [{"prompt": prompt, "gold": number % 3, "choices": list(RESPONSES)}
          for number, prompt in enumerate(PROMPTS)]
  rows = tmp_path / "rows.jsonl"
  rows.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
  (tmp_path / "task.yaml").write_text(TASK.format(
      rows=rows, suffix=json.dumps(suffix)))
  subprocess.run(
      [BIN / "lm_eval", "run", "--model", "hf",
       "--model_args", f"pretrained={folders['ppo']},dtype=float32",
       "--tasks", "two_responses", "--include_path", tmp_path,
       "--device", "cpu", "--batch_size", "2", "--log_samples",
       "--output_path", tmp_path / "out"],
      check=True, env=os.environ | OFFLINE | {"HF_HOME": str(tmp_path)})
  (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
  samples = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(samples) == len(docs)
  differences = []
  for sample in samples:
    theirs = [float(found[0][0]) for found in sample["resps"]]
    ours = [logprob_of(run, sample["doc"]["prompt"], suffix + choice)
            for choice in RESPONSES]
    differences += list(np.abs(np.subtract(ours, theirs)))
    assert sample["acc"] == float(np.argmax(ours) == sample["doc"]["gold"])
  account("lm_eval", logprobs=float(max(differences)))
  assert max(differences) < 1e-3  # sums of a dozen tokens' in float32


def logprob_of(run, prompt, choice):
  """Of a continuation's tokens, by this code."""
  whole = run.tokenizer.encode(prompt + choice)
  length = len(whole) - len(run.tokenizer.encode(prompt))
  logprobs = ppo_step.make_response_logprobs(run.policy(), 1.0)
  tokens = np.asarray([whole], np.int32)
  return float(logprobs(
      policy_params(run), tokens, tokens >= 0, length).sum())


def policy_params(run):
  with sharding.use(run.mesh, run.axis_rules):
    return jax.device_get(run.policy_params("ppo"))


def test_an_openai_compatible_server(run, folders, greedy, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  with open(tmp_path / "log", "wb") as log, subprocess.Popen(
      [BIN / "transformers", "serve", folders["ppo"], "--device", "cpu",
       "--dtype", "float32", "--host", "localhost", "--port", str(port)],
      stdout=log, stderr=log, env=os.environ | OFFLINE) as server:
    try:
      base = f"http://localhost:{port}"
      wait_for(f"{base}/health", server, tmp_path / "log")
      for prompt, response in zip(PROMPTS, greedy):
        answer = post(f"{base}/v1/chat/completions", {
            "model": folders["ppo"], "temperature": 0, "stream": False,
            "max_tokens": run.response_length,
            "messages": [{"role": "user", "content": prompt}]})
        text = answer["choices"][0]["message"]["content"]
        assert text.strip() == text_of(run, response).strip()
    finally:
      server.terminate()


def wait_for(url, server, log, seconds=120):
  """Until the server answers.

  Raises:
    AssertionError: it ends, or does not come.
  """
  for _ in range(seconds):
    with contextlib.suppress(urllib.error.URLError, OSError):
      with urllib.request.urlopen(url, timeout=5):
        return
    if server.poll() is not None:
      break
    time.sleep(1)
  raise AssertionError(f"no server: {log.read_text()[-3000:]}")


def post(url, content):
  request = urllib.request.Request(
      url, json.dumps(content).encode(), {"Content-Type": "application/json"})
  with urllib.request.urlopen(request, timeout=120) as answer:
    return json.load(answer)
