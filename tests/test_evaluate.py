"""The command on a finished run: files, tables and refusals."""

import contextlib
import json

from absl import app
from absl import flags
from absl.testing import flagsaver
import jax
import pytest

from rlhf_jax import evaluate, exits, pipeline
from rlhf_jax.evals import registry
from tests import tiny_run
from tests.evals import benchmarks

POLICIES = ("pretrain", "sft", "ppo")


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="call")
def _call(base, capfd, monkeypatch):
  """Calls the program in this process; returns (stdout, stderr). The run's own
  folder stays as it is."""
  monkeypatch.setattr(
      evaluate.compilation, "enable_compilation_cache", lambda folder: None)

  def call(**given):
    before = tiny_run.contents(base.workdir)
    capfd.readouterr()
    given = {"workdir": base.workdir, "num_prompts": 32} | given
    argv = ["evaluate", *(f"--{name.replace('__', '.')}={x}"
                          for name, x in given.items())]
    with flagsaver.flagsaver(), in_a_hurry():
      evaluate.main(flags.FLAGS(argv))
    assert tiny_run.contents(base.workdir) == before
    return capfd.readouterr()

  return call


@pytest.fixture(name="refused")
def _refused(call, capfd):
  """The message with which it ends."""

  def refused(**given):
    with pytest.raises(SystemExit) as stopped:
      call(**given)
    assert stopped.value.code == exits.REFUSED
    return capfd.readouterr().err

  return refused


@contextlib.contextmanager
def in_a_hurry():
  """As the run itself was compiled, so that its programs are there."""
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


def rows_of(folder, task):
  lines = (folder / f"{task}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def by_policy(rows, name):
  return {row["policy"]: row for row in rows if row["name"] == name}


def test_the_paper_on_a_run(base, call, tmp_path):
  root, out = benchmarks.write(tmp_path / "data"), tmp_path / "out"
  said = call(out=out, data__root=root)
  files = {path.stem for path in out.glob("*.jsonl")}
  left_out = json.loads((out / "left_out.json").read_text())
  assert files | set(left_out) == set(registry.SUITES["paper"])
  assert set(left_out) == {"quac", "cnn_dm", *registry.UNMEASURED}
  for task in files:
    for row in rows_of(out, task):
      assert set(row) == {
          "run", "policy", "task", "name", "mean", "low", "high", "n"}
      assert (row["run"], row["task"]) == (str(base.workdir), task)
  for name, reason in left_out.items():
    assert name in said.out and reason.split()[0] in said.out
  assert f"written: {out}/*.jsonl" in said.out

  # where the run's own evaluation has a figure, it is the same one
  own = base.json("summary.json")["eval"]
  for task, name, figures in (
      ("win_rate", "win_rate", own["win_rate"]),
      ("kl", "kl", own["kl_intervals"]),
      ("gold", "gold", own["gold_score_intervals"]),
      ("kl", "kl_sampled", own["kl_sampled_intervals"])):
    found = by_policy(rows_of(out, task), name)
    assert set(found) == set(POLICIES) - (
        {"sft"} if task == "win_rate" else set())
    for policy, row in found.items():
      assert row["mean"] == pytest.approx(figures[policy]["mean"], abs=1e-4)
      assert row["n"] == 32
  style = rows_of(out, "style")
  for policy in POLICIES:
    assert by_policy(style, "tokens")[policy]["mean"] == pytest.approx(
        own["response_length"][policy])
  elo = by_policy(rows_of(out, "elo"), "elo")
  assert elo["sft"]["mean"] == 1000
  assert (elo["ppo"]["mean"] > 1000) == (own["win_rate"]["ppo"]["mean"] > 0.5)
  labels = rows_of(out, "metadata")
  for policy in POLICIES:
    attempts, fails = (by_policy(labels, name)[policy]["mean"] for name in (
        "attempts_instruction", "fails_instruction"))
    assert attempts == pytest.approx(1 - fails)
  known = by_policy(rows_of(out, "facts"), "accuracy")
  assert {of["n"] for of in known.values()} == {84}
  accuracy = by_policy(rows_of(out, "reward_model"), "accuracy/all")
  of_rm = base.json("rm/done.json")["figures"]["validation_accuracy_by_group"]
  assert accuracy["rm"]["mean"] == pytest.approx(of_rm["all"]["mean"])


def test_the_same_seed_gives_the_same_figures(call, tmp_path):
  def figures(name, **given):
    call(out=tmp_path / name, suite="style,win_rate", policies="ppo", **given)
    return [rows_of(tmp_path / name, task) for task in ("style", "win_rate")]

  first = figures("a", seed=5)
  assert first == figures("b", seed=5, batch_size=8)
  assert first != figures("c", seed=6)
  assert {row["policy"] for row in first[0]} == {"sft", "ppo"}  # the baseline


def test_two_runs_are_on_one_scale(base, call, tmp_path):
  again = tmp_path / "again"
  again.symlink_to(base.workdir)
  said = call(workdir=f"{base.workdir},{again}", out=tmp_path / "out",
              suite="elo", policies="sft,ppo")
  rows = rows_of(tmp_path / "out", "elo")
  assert [(row["run"], row["policy"]) for row in rows] == [
      (str(run), policy) for run in (base.workdir, again)
      for policy in ("sft", "ppo")]
  assert rows[0]["mean"] == 1000 == rows[0]["low"]
  assert rows[2]["mean"] == pytest.approx(1000)  # the same policy, all ties
  assert rows[1]["mean"] == pytest.approx(rows[3]["mean"])
  assert "again:ppo" in said.out


def test_files_of_ones_own(call, tmp_path):
  questions, text = tmp_path / "q.jsonl", tmp_path / "t.txt"
  questions.write_text('{"context": "The", "choices": ["a", "b"], "label": 0}\n'
                       * 4)
  text.write_text("Anna has a cat. Tom has a dog.")
  pairs = tmp_path / "c.jsonl"
  pairs.write_text(json.dumps(
      {"prompt": "Where is Anna?", "responses": ["Here.", "There."],
       "ranks": [1, 2]}) + "\n")
  call(out=tmp_path / "out", policies="sft",
       data__root=tmp_path, suite=f"multiple_choice:{questions},"
       f"perplexity:t.txt,comparisons:{pairs}")
  folder = tmp_path / "out"
  assert rows_of(folder, "perplexity_t.txt")[0]["policy"] == "sft"
  choice = evaluate.file_name(f"multiple_choice:{questions}")
  assert rows_of(folder, choice)[0]["n"] == 4
  accuracy = rows_of(folder, evaluate.file_name(f"comparisons:{pairs}"))[0]
  assert (accuracy["policy"], accuracy["name"]) == ("rm", "accuracy/all")


def test_a_reward_model_judges_whom_it_has_not_taught(base, call, tmp_path):
  call(out=tmp_path / "out", suite="win_rate,rating", policies="pretrain,sft",
       judge="rm")
  scores = by_policy(rows_of(tmp_path / "out", "rating"), "score")
  own = base.json("summary.json")["eval"]["score"]
  for policy in ("pretrain", "sft"):
    assert scores[policy]["mean"] == pytest.approx(own[policy], abs=1e-3)
    assert scores[policy]["n"] == 32
  rate, = rows_of(tmp_path / "out", "win_rate")
  assert (rate["policy"], rate["n"]) == ("pretrain", 32)


@pytest.fixture(name="roomy")
def _roomy(base, tmp_path):
  """The run with shorter responses: its context has room for a prefix."""
  folder = tmp_path / "roomy"
  folder.mkdir()
  for path in base.workdir.iterdir():
    if path.name != "config.json":
      (folder / path.name).symlink_to(path)
  config = base.json("config.json")
  config["data"]["max_response_tokens"] = 4
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def test_a_policy_behind_a_prefix(base, call, roomy, tmp_path):
  out, policies = tmp_path / "out", ("pretrain", "pretrain+prompted", "sft")
  call(workdir=roomy, out=out, policies=",".join(policies), num_prompts=16,
       suite="facts,gold,kl,style,win_rate")
  assert list(by_policy(rows_of(out, "gold"), "gold")) == list(policies)
  for task, name in (("facts", "accuracy"), ("kl", "kl")):
    assert list(by_policy(rows_of(out, task), name)) == ["pretrain", "sft"]
  rates = by_policy(rows_of(out, "win_rate"), "win_rate")
  assert list(rates) == ["pretrain", "pretrain+prompted"]
  assert {of["n"] for of in rates.values()} == {16}
  tokens = by_policy(rows_of(out, "style"), "tokens")
  assert 0 < tokens["pretrain+prompted"]["mean"] <= 4
  prefix, = json.loads((out / "prefixes.json").read_text())
  assert (prefix["run"], prefix["policy"]) == (str(roomy), policies[1])
  shown = pipeline.open_run(base.workdir).source("demonstrations", "train")
  assert any(f'"{row["prompt"]}" said Anna. "{row["response"].strip()}" said'
             in prefix["prefix"] for row in shown)


@pytest.fixture(name="bare")
def _bare(base, tmp_path):
  """The run as one that took its reward model from elsewhere, and never read a
  comparison or a prompt."""
  folder = tmp_path / "bare"
  (folder / "data").mkdir(parents=True)
  for name in ("sft", "data/pretrain", "data/tokenizer.json",
               "data/tokenizer_config.json"):
    if (base.workdir / name).exists():
      (folder / name).symlink_to(base.workdir / name)
  config = base.json("config.json")
  config["stages"] = ["sft", "rm"]
  config["inputs"]["rm"] = str(base.workdir / "rm")
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def test_what_a_run_never_prepared_is_left_out(bare, call, refused, tmp_path):
  out = tmp_path / "out"
  said = call(workdir=bare, out=out, suite="run", limit=8)
  assert {path.stem for path in out.glob("*.jsonl")} == {"pretraining", "facts"}
  left_out = json.loads((out / "left_out.json").read_text())
  assert set(left_out) == set(registry.SUITES["run"]) - {"pretraining", "facts"}
  assert left_out["style"] == f"{bare} has no prepared prompts"
  assert left_out["reward_model"] == f"{bare} has no prepared comparisons of rm"
  assert left_out["reward_model"] in said.out
  for name in ("reward_model", "style"):
    assert f"--suite={name}: {left_out[name]}" in refused(
        workdir=bare, out=out, suite=name)


def test_a_split_that_is_empty_is_as_good_as_none(
    base, bare, refused, tmp_path):
  report = base.json("data/prompts/report.json")
  report["rows_out"]["test"] = 0
  (bare / "data" / "prompts").mkdir()
  (bare / "data/prompts/report.json").write_text(json.dumps(report))
  assert (f"--suite=gold: {bare}/data/prompts has nothing in the split 'test'; "
          "raise config.data.test_fraction, or bring more prompts") in refused(
              workdir=bare, out=tmp_path / "out", suite="gold")


def test_what_cannot_be_is_refused(base, refused, tmp_path):
  assert "the finished policies in" in refused(policies="sft,best")
  assert "no training demonstration in" in refused(
      policies="pretrain+prompted")  # of 64 tokens none is left
  assert f"--baseline=rm: the finished policies in {base.workdir}" in refused(
      baseline="rm", suite="win_rate")
  assert "ppo in" in refused(judge="rm", suite="win_rate")  # optimised for it
  assert "ppo in" in refused(
      judge="rm", suite="win_rate", policies="pretrain,sft", baseline="ppo")
  assert "no 'x'; there are the suites paper, run, all" in refused(suite="x")
  assert "names a folder twice" in refused(
      workdir=f"{base.workdir},{base.workdir}", out=tmp_path / "out")
  assert "--workdir=, names no folder; name those" in refused(workdir=",")
  assert "config.json does not exist" in refused(
      workdir=tmp_path, out=tmp_path / "out")
  assert "--suite=hellaswag: reads evals/hellaswag.jsonl.gz of a data " in (
      refused(suite="hellaswag"))


def test_unexpected_arguments():
  with pytest.raises(app.UsageError, match="unexpected arguments: .'hello'"):
    evaluate.main(["evaluate", "hello"])
