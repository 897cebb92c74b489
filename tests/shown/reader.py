"""What a reader of the documentation does: goes through each page from top to
bottom and gives its commands, each a process of its own, with less of
everything added so that it ends in seconds.
"""

import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

from tests import processes, shared, test_docs, tiny_run

ROOT = processes.ROOT
LIMIT = 900  # seconds of a command, where the machine is busy
FIRST = ("README.md", "docs/quickstart.md")
STUDY = "python -m rlhf_jax.study"
# What is added to others, by their begin.
ADDED = {
    "python -m rlhf_jax.replay": "--step=2",
    "python -m rlhf_jax.evaluate": "--num_prompts=8 --limit=2",
    "python -m rlhf_jax.plan": "--only=ppo/decode_copy",
    "python -m benchmarks.prepare_prompts": "--sizes=1000",
    "python -m benchmarks.overlap": "--steps=4",
    "JAX_PLATFORMS=cpu python -m benchmarks.growth":
        "--axes=K --programs=rm --repetitions=1",
    "python -m rlhf_jax.screen": "--roster=passed.jsonl",  # a first roster
    STUDY: "--seeds=0",
    "launch/tpu_pod.sh": "--dry-run",
    "launch/gke_xpk.sh": "--dry-run",
    "launch/slurm.sh": "--dry-run",
}
# Words that stand for what a reader has.
WORDS = {"FILE.json": "trace.json", "--step=N": "--step=3",
         "$CLUSTER": "--project=PROJECT --zone=us-west4-a --cluster=CLUSTER "
                     "--tpu-type=v5litepod-16"}


def pages():
  found = sorted(map(test_docs.named, test_docs.PAGES))
  return (*FIRST, *(page for page in found if page not in FIRST))


def steps():
  """(page, "bash", command) and (page, "python", text) of all pages, each from
  top to bottom."""
  for page in pages():
    for language, text in test_docs.fences(ROOT / page):
      if language == "python":
        yield page, language, text
      if language != "bash":
        continue
      for line in whole_lines(text):
        for command in filter(None, re.split(r"\s*&&\s*", line.strip())):
          yield page, language, " ".join(command.split())


def whole_lines(text):
  """Lines of a shell: one that ends in a backslash, or within quotes, goes on
  in the next."""
  begun = ""
  for line in text.replace("\\\n", " ").splitlines():
    begun += re.sub(r"(^|\s)#.*", "", line)
    if not begun.count("'") % 2:
      yield begun
      begun = ""
  assert not begun, text


def run(command, place):
  """What a command prints in a shell; it has to succeed."""
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  done = subprocess.run(
      command, shell=True, cwd=place, timeout=LIMIT, text=True, check=False,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env=os.environ | {
          "PATH": path, "PYTHONPATH": str(ROOT),
          "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
          "JAX_COMPILATION_CACHE_DIR": str(shared.compiled())})
  assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
  return done.stdout


def quick(command):
  """A command of a page with less of everything."""
  command = re.sub(r"\[(.*?)\]", r"\1", command)  # what may be left out
  for word, ours in WORDS.items():
    command = command.replace(word, ours)
  if re.match("python -m rlhf_jax[.](main|study) ", command):
    command = with_settings(command)
  elif command.startswith("launch/local.sh"):
    command = with_settings(f"{command} --")
  for begin, words in ADDED.items():
    if command.startswith(begin):
      command += f" {words}"
  return command


def with_settings(command):
  """With smaller settings before its own, which are all kept."""
  own = set(re.findall(r"--config\.([^\s=]+)=", command))
  settings = [f"--config.{path}={shlex.quote(str(value))}"
              for path, value in smaller(config_of(command)) if path not in own]
  return " ".join([command, *settings])


def config_of(command):
  """The experiment, or the study, that a command names."""
  return re.search(r"--config=(\S+)", command)[1]


def smaller(name):
  """(path, value) of what makes an experiment small, or each run of a study."""
  file, _, size = name.partition(":")
  module = importlib.import_module(
      file.removesuffix(".py").replace("/", "."))
  config = module.get_config(*filter(None, [size]))
  if "runs" not in config:
    yield from shrunk(config)
    return
  for run in config.runs:
    for path, value in shrunk(config.runs[run]):
      yield f"runs.{run}.{path}", value


def shrunk(config):
  """(path, value) of what tests/tiny_run.py changes."""
  before = dict(leaves(config))
  small = config.copy_and_resolve_references()
  is_imported = config.model.d_model is None
  tiny_run.shrink(small)
  small.smallworld.num_prompts = 320
  if is_imported:
    small.ppo.update(num_rollout_parts=1)
    small.ppo.method.update(num_microbatches=1, num_ptx_microbatches=1)
    small.rm.update(num_microbatches=1, num_row_parts=1)
    small.collect.num_rollout_parts = 1
  else:  # their own lengths, which commands change
    for part in ("data.max_prompt_tokens", "data.max_response_tokens",
                 "model.context_length", "rm_model.context_length"):
      tiny_run.set_key(small, part, before[part])
  if config.data.pretrain != "smallworld":
    for model in (small.model, small.rm_model):
      model.vocab_size = 300  # so little text has few merges
  for path, value in leaves(small):
    if value != before[path]:
      yield path, value


def leaves(config, path=""):
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from leaves(value, f"{path}{key}.")
    else:
      yield f"{path}{key}", value
