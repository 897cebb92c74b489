"""Every command of the documentation, given as it stands there.

  pip install -e '.[test]' && pytest tests/shown

In the order of the pages, in one folder; studies have test_studies.py beside
this. Commands of other programs, and those that need what is not here, have
their place in `ELSEWHERE`.
"""

import json

import pytest

from tests import dialogues, test_screening
from tests.evals import benchmarks
from tests.shown.reader import ROOT, STUDY, quick, run, steps

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
    "GLIBC_TUNABLES=": "no command: tests/test_host_memory.py",
    "CLUSTER=": "no command: a word of those that follow",
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


def is_ours(command):
  return not command.startswith((STUDY, *ELSEWHERE))


# Pages whose Python reads what their commands leave, or prepares what they
# read; that of all others is run by tests/test_docs.py.
FOLLOWED = ("docs/curves.md", "docs/evaluations.md", "docs/extend/dataset.md",
            "docs/extend/labeler.md", "docs/labeling.md")
STEPS = [
    (page, language, text) for page, language, text in steps()
    if (is_ours(text) if language == "bash" else page in FOLLOWED)]


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
  for name, other in (("a", "ppo_ptx"), ("b", "ppo")):
    (place / "runs").mkdir(exist_ok=True)
    (place / "runs" / name).symlink_to(place / "runs" / other)
  return place


@pytest.fixture(name="spaces", scope="module")
def _spaces():
  """Of each page the names that its Python has defined so far."""
  return {}


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
  assert any(text.startswith(begin) for _, language, text in steps()
             if language == "bash")
