"""Every command of the documentation, given as it stands there.

  pip install -e '.[test]' && pytest -n 0 tests/shown

In the order of the pages, in one folder, each a process of its own, as a reader
would; with less of everything added, so that each ends in seconds. Commands of
other programs, and those that need what is not here, have their place in
`ELSEWHERE`.
"""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests import (
    dialogues, processes, test_docs, test_screening, tiny_run,
)
from tests.evals import benchmarks

ROOT = processes.ROOT
LIMIT = 900  # seconds of a command, where the machine is busy
FIRST = ("README.md", "docs/quickstart.md")
# Begin of a command -> who runs it, or why nobody does.
ELSEWHERE = {
    "pip install": ".ci/run",
    "git clone": ".ci/run begins in a clone",
    "python -m venv": ".ci/run", "python3 -m venv": ".ci/run",
    "source": ".ci/run", "cd": ".ci/run",
    "ruff": ".ci/run", "mypy": ".ci/run", "pytest": ".ci/run",
    "RLHF_JAX_DATA=DIR pytest": "tests themselves, on files that are not here",
    "python -m tests.reliability.report": "tests/reliability/test_report.py",
    "lm_eval": "tests/interop", "transformers": "tests/interop",
    "curl": "tests/interop",
    "python -m rlhf_jax.report --workdir=gs://": "tests/test_bucket_run.py",
    "python -m rlhf_jax.main --config=experiments/gpt2.py:124m "
    "--workdir=runs/neo": "tests/test_docs.py, with the page's family",
    "python -m rlhf_jax.main --config=experiments/hh.py:6b":
        "6.7 billion parameters; its settings in tests/test_experiments.py",
    "python -m rlhf_jax.main --config=experiments/hh.py:1.3b":
        "the same",
    "python -m benchmarks.make_environments":
        "installs other systems, of gigabytes",
    "python -m benchmarks.peers": "needs them; tests/test_benchmarks.py",
    "launch/local.sh --processes=2 --gpus=8": "needs GPUs; its --dry-run is in "
                                              "tests/test_launch.py",
    **dict.fromkeys((
        "python -m rlhf_jax.study --config=experiments/studies/" + name
        for name in ("alignment_tax", "model_sizes", "overoptimisation",
                     "best_of_n", "reward_models")),
        "the command is that of `behaviour`, and these take longer than all "
        "others; their configs and measurements: tests/studies"),
    "GLIBC_TUNABLES=": "no command: tests/test_host_memory.py",
    "CLUSTER=": "no command: a word of those that follow",
}
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
    "python -m rlhf_jax.study": "--seeds=0",
    "launch/tpu_pod.sh": "--dry-run",
    "launch/gke_xpk.sh": "--dry-run",
    "launch/slurm.sh": "--dry-run",
}
# What comes before a command of a page that speaks of it without giving it.
BEFORE = {
    "python -m rlhf_jax.compare":
        "python -m rlhf_jax.main --config=experiments/ppo_ptx.py "
        "--workdir=runs/ppo_ptx_1 --config.seed=1",
    "python -m rlhf_jax.main --config=experiments/gpt2.py":
        "python -m rlhf_jax.export --workdir=runs/ppo_ptx --stage=sft "
        "--out=FOLDER",
}
# Words that stand for what a reader has.
WORDS = {"FILE.json": "trace.json", "--step=N": "--step=3",
         "$CLUSTER": "--project=PROJECT --zone=us-west4-a --cluster=CLUSTER "
                     "--tpu-type=v5litepod-16"}


def pages():
  found = sorted(map(test_docs.named, test_docs.PAGES))
  return (*FIRST, *(page for page in found if page not in FIRST))


def steps(page):
  """("bash", command) and ("python", text) of a page, from top to bottom."""
  for language, text in test_docs.fences(ROOT / page):
    if language == "python":
      yield language, text
    if language != "bash":
      continue
    for line in whole_lines(text):
      for command in filter(None, re.split(r"\s*&&\s*", line.strip())):
        yield language, " ".join(command.split())


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


def elsewhere(command):
  return [begin for begin in ELSEWHERE if command.startswith(begin)]


# Pages whose Python reads what their commands leave, or prepares what they
# read; that of all others is run by tests/test_docs.py.
FOLLOWED = ("docs/curves.md", "docs/evaluations.md", "docs/extend/dataset.md",
            "docs/extend/labeler.md", "docs/labeling.md")
STEPS = [
    (page, language, text) for page in pages()
    for language, text in steps(page)
    if (not elsewhere(text) if language == "bash" else page in FOLLOWED)]


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory):
  """A folder like a checkout, with what a reader of the pages has."""
  place = tmp_path_factory.mktemp("reader")
  for name in ("experiments", "launch", "benchmarks"):
    (place / name).symlink_to(ROOT / name)
  benchmarks.write(dialogues.write(place / "DATA"))
  (place / "my_book.txt").write_text("The sun shines on the hill. " * 200)
  for name in ("researchers", "ann", "bob"):
    rows = test_screening.answer_rows(name)
    if name != "researchers":
      rows.append({"labeler_id": name, "demonstration_rating": 6})
    test_screening.write(place / f"{name}.jsonl", rows)
  for name, run in (("a", "ppo_ptx"), ("b", "ppo")):
    (place / "runs").mkdir(exist_ok=True)
    (place / "runs" / name).symlink_to(place / "runs" / run)
  return place


@pytest.fixture(name="spaces", scope="module")
def _spaces():
  """Of each page the names that its Python has defined so far."""
  return {}


def run(command, place):
  """Runs a command in a shell, and says how long it took and what it said."""
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  done = subprocess.run(
      command, shell=True, cwd=place, timeout=LIMIT, text=True, check=False,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env=os.environ | {
          "PATH": path, "PYTHONPATH": str(ROOT),
          "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
          "JAX_COMPILATION_CACHE_DIR": str(place / "compiled")})
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
  config = re.search(r"--config=(\S+)", command)[1]
  own = set(re.findall(r"--config\.([^\s=]+)=", command))
  settings = [f"--config.{path}={shlex.quote(str(value))}"
              for path, value in smaller(config) if path not in own]
  return " ".join([command, *settings])


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


@pytest.mark.parametrize(
    "page, language, text", STEPS,
    ids=[f"{page}: {text.splitlines()[0][:90]}" for page, _, text in STEPS])
def test_a_page_is_followed(page, language, text, place, spaces, monkeypatch):
  if language == "python":
    monkeypatch.chdir(place)
    exec(compile(text, page, "exec"), spaces.setdefault(page, {}))
    return
  for begin, command in BEFORE.items():
    if text.startswith(begin):
      run(quick(command), place)
  run(quick(text), place)


def test_a_run_of_the_pages_is_whole(place):
  summary = json.loads((place / "runs/ppo_ptx/summary.json").read_text())
  assert set(summary["eval"]["gold_score"]) >= {"sft", "ppo"}
  assert (place / "runs/ppo_ptx/report.html").stat().st_size > 1e5


@pytest.mark.parametrize("begin", ELSEWHERE)
def test_what_is_run_elsewhere_is_on_a_page(begin):
  assert any(text.startswith(begin) for page in pages()
             for language, text in steps(page) if language == "bash")
