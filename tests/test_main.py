"""Bad input: one message that says what to do, before any compile, and with
nothing overwritten."""

import contextlib
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys
from unittest import mock

from absl import app
from absl.testing import flagsaver
import jax
import pytest

from rlhf_jax import checkpoint, config as config_lib, main, pipeline
from rlhf_jax.data import splits
from rlhf_jax.data import tokenizer as tokenizer_lib
from tests import tiny_run

ROOT = pathlib.Path(__file__).parent.parent
SFT = "--config.stages=('pretrain', 'sft')"
RM = "--config.stages=('pretrain', 'sft', 'rm')"
DEMONSTRATION = {"prompt": "Say hello.", "response": "Sure! Hello."}
COMPARISON = {"prompt": "Say hello.", "responses": ["Hello.", "No."],
              "ranks": [1, 2]}


@pytest.fixture(name="experiment", scope="module")
def _experiment(tmp_path_factory):
  """An experiment file with the tiny run's settings."""
  path = tmp_path_factory.mktemp("experiments") / "tiny.py"
  path.write_text(
      "from tests import tiny_run\n\n\ndef get_config():\n"
      "  return tiny_run.tiny_config()\n")
  return path


@pytest.fixture(name="workdir")
def _workdir(tmp_path):
  """A folder in which an earlier run left something."""
  folder = tmp_path / "run"
  folder.mkdir()
  for name in ("config.json", "metrics.jsonl", "summary.json", "samples.jsonl"):
    (folder / name).write_text(f"{name} of an earlier run")
  return folder


def call(*args):
  """The program in this process."""
  argv = ["main", *args]
  with flagsaver.flagsaver(), mock.patch.object(sys, "argv", argv):
    main.main(main.parse_flags(argv))


@contextlib.contextmanager
def compiles_nothing():
  seen = []

  def listen(name, seconds, **unused):
    if name.endswith("backend_compile_duration"):
      seen.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not seen


@pytest.fixture(name="refuses")
def _refuses(experiment, workdir, capsys):
  """Calls the program and checks how it gives up."""

  def refuses(*args, message):
    before = tiny_run.contents(workdir)
    with compiles_nothing(), pytest.raises(SystemExit) as stopped:
      call(f"--config={experiment}", f"--workdir={workdir}", *args)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    said = printed[printed.index("error: "):]
    assert re.search(message, said), said
    assert said.count("error: ") == 1 and "Traceback" not in printed
    after = tiny_run.contents(workdir)
    assert {name: after[name] for name in before} == before

  return refuses


def test_the_listener_hears_compiles():
  with pytest.raises(AssertionError), compiles_nothing():
    jax.jit(lambda x: x + 1)(3.0).block_until_ready()


# -------------------------------------------------------------------- settings


@pytest.mark.parametrize("args, message", [
    (["--config.sft.batchsize=8"],
     r"--config has no key 'batchsize'\nDid you mean \"batch_size\""),
    (["--config.pppo.batch_size=8"],
     r"--config has no key 'pppo'\nDid you mean \"ppo\""),
    (["--no_such_flag=3"], r"Unknown command line flag 'no_such_flag'"),
    (["--config.sft.batch_size=12"],
     r"config.sft.batch_size = 12 is not a multiple of 8 .*use e.g. 16"),
    (["--config.ppo.batch_size=24"],
     r"config.ppo.batch_size = 24 .*8 batch shards x 2 minibatches"),
    (["--config.mesh.fsdp=3"], r"needs 3 devices, but 8 are present"),
    (["--config.data.max_response_tokens=37"],
     r"max_prompt_tokens = 28 and max_response_tokens = 37 make 65 tokens, "
     r"more than config.model.context_length = 64; lower them or raise it"),
    (["--config.data.demonstrations=jsonl:nowhere.jsonl"],
     r"config.data.demonstrations: nothing at 'nowhere.jsonl'"),
    (["--config.stages=('sft',)"],
     r"config.sft.init_from = 'pretrain', but no such stage comes before "
     r"'sft'.*set config.inputs.pretrain to the folder of a finished one"),
    (["--config.stages=('sft', 'pretrain')"], r"'pretrain' comes after 'sft'"),
    (["--config.inputs.pretrain=/nowhere/pretrain"],
     r"config.inputs.pretrain = '/nowhere/pretrain' has no done.json"),
])
def test_settings(refuses, args, message):
  refuses(*args, message=message)


@pytest.mark.parametrize("body, message", [
    ("common.model('7b')",
     r"common.py:\d+: ValueError: unknown size '7b'; the sizes are \['mini'"),
    ("int('x')", r"mine.py:4: ValueError: invalid literal for int"),
])
def test_an_experiment_that_fails(tmp_path, capsys, body, message):
  path = tmp_path / "mine.py"
  path.write_text("from experiments import common\n\n"
                  f"def get_config():\n  {body}\n")
  with pytest.raises(SystemExit) as stopped:
    call(f"--config={path}")
  assert stopped.value.code == 2
  printed = capsys.readouterr().err
  assert re.match(rf"\nerror: .*{message}", printed), printed
  assert "Traceback" not in printed


def test_all_that_contradicts_is_named_at_once(refuses):
  refuses("--config.sft.batch_size=12", "--config.rm.max_responses=3",
          message=r"rm.max_responses = 3 cannot hold .*\n.*batch_size = 12 is")


def test_a_key_that_the_experiment_made_up(refuses, tmp_path):
  path = tmp_path / "made_up.py"
  path.write_text(
      "from tests import tiny_run\n\n\ndef get_config():\n"
      "  config = tiny_run.tiny_config()\n  config.sft.warm_up = 3\n"
      "  return config\n")
  refuses(f"--config={path}", message="config.sft has unknown warm_up")


@pytest.mark.parametrize("override, message", [
    ("collect@2.labeler=nobody", r"config.collect@2.labeler = 'nobody'"),
    ("rm@2.num_epochs=-1", r"config.rm@2.num_epochs = -1 must be >= 1"),
    ("rm@9.num_epochs=1", r"--config has no key 'rm@9'"),
    ("inputs.rm@2=/nowhere", r"inputs.rm@2 = '/nowhere' has no done.json"),
    ("rm[.num_epochs=1", r"Could not parse 'rm\[.num_epochs'"),
])
def test_a_later_rounds_settings(tmp_path, capsys, override, message):
  """A stage such as collect@2 has a name that is no identifier."""
  rounds = f"--config={ROOT / 'experiments' / 'rounds.py'}:mini"
  with pytest.raises(SystemExit) as stopped:
    call(rounds, f"--workdir={tmp_path / 'run'}", f"--config.{override}")
  assert stopped.value.code == 2
  assert re.search(f"error: .*{message}", capsys.readouterr().err)
  assert not (tmp_path / "run").exists()


def test_no_such_experiment(refuses):
  refuses("--config=nowhere.py",
          message=r"--config=nowhere.py: there is no such file; .*\n\nexperim")


def test_unexpected_arguments(experiment):
  with pytest.raises(app.UsageError, match="unexpected arguments: .'tiny'"):
    call(f"--config={experiment}", "tiny")


# ------------------------------------------------------------------------ data


def lines(*rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("content, message", [
    (lines(DEMONSTRATION) + b'{"prompt": "a" "b"}\n',
     r"data.jsonl:2: not JSON .*column 16.*write one JSON object a line"),
    (lines(DEMONSTRATION, DEMONSTRATION) + b'{"prompt": "\xff"}\n',
     r"data.jsonl:3: byte 13 of the line is not UTF-8.*iconv"),
    (lines(DEMONSTRATION, [1]), r"data.jsonl:2: expected a JSON object"),
    (lines({"prompt": "a"}),
     r"data.jsonl:1: no field 'response' .*the fields prompt, response"),
    (lines(DEMONSTRATION | {"response": 3}),
     r"data.jsonl:1: 'response' must be text, got 3"),
    (lines(DEMONSTRATION | {"prompt": " "}), r"data.jsonl:1: 'prompt' is emp"),
    (b"", r"data.jsonl: the file is empty; expected JSON lines"),
    (b"\n\n", r"data.jsonl: the file is empty"),
    (lines(DEMONSTRATION | {"prompt": "a word " * 40}),
     r"no demonstrations left to train on .*'long_prompt': 1.*loosen the rule"),
])
def test_demonstrations(refuses, tmp_path, content, message):
  path = tmp_path / "data.jsonl"
  path.write_bytes(content)
  refuses(SFT, f"--config.data.demonstrations=jsonl:{path}", message=message)


@pytest.mark.parametrize("rows, message", [
    ([COMPARISON, COMPARISON | {"ranks": [1, 2, 3]}],
     r"data.jsonl:2: 2 responses but 3 ranks \(\[1, 2, 3\]\); give one rank"),
    ([COMPARISON | {"ranks": [0, 1]}],
     r"data.jsonl:1: rank 0 in \[0, 1\]; ranks are whole numbers from 1"),
    ([COMPARISON | {"responses": ["a"], "ranks": [1]}],
     r"data.jsonl:1: 1 response\(s\); a comparison needs at least 2"),
    ([COMPARISON | {"ranks": [1, 1], "prompt": f"Say {n}."} for n in range(3)],
     r"data.jsonl: each of the 3 rows ranks all its responses the same; "
     r"nothing can be learnt from ties, check the field 'ranks'"),
])
def test_comparisons(refuses, tmp_path, rows, message):
  path = tmp_path / "data.jsonl"
  path.write_bytes(lines(*rows))
  refuses(RM, f"--config.data.comparisons=jsonl:{path}", message=message)


def many(number, **fields):
  return lines(*[COMPARISON | {"prompt": f"Say {n}."} | fields
                 for n in range(number)])


@pytest.mark.parametrize("content, args, message", [
    (many(60, responses=list("abcdef"), ranks=[1, 2, 3, 4, 5, 6]), [],
     r"has 6 responses, but config.rm.max_responses = 5; set it to 6"),
    (many(60), ["--config.data.validation_fraction=0.0"],
     r"no validation comparison to measure 'rm' by; raise config.data.valid"),
    (many(1), ["--config.data.validation_fraction=0.0",
               "--config.data.test_fraction=0.0",
               f"--config.rm.half={1 - splits.half_of('Say 0.')}"],
     r"no training comparison falls into config.rm.half = \d; bring more"),
])
def test_comparisons_that_a_reward_model_cannot_use(
    refuses, tmp_path, content, args, message):
  path = tmp_path / "data.jsonl"
  path.write_bytes(content)
  refuses(RM, f"--config.data.comparisons=jsonl:{path}", *args,
          message=message)


def test_no_prompts_to_evaluate_by(refuses):
  """Before anything is trained, not in the last stage."""
  refuses("--config.smallworld.num_prompts=1", message=(
      r"data/prompts has nothing in the split 'test'; raise config.data.test_"
      r"fraction, or bring more prompts; or leave 'evaluate' out of config.st"))


def test_a_file_that_cannot_be_read(refuses, tmp_path):
  folder = tmp_path / "folder.jsonl"
  folder.mkdir()
  refuses(SFT, f"--config.data.demonstrations=jsonl:{folder}",
          message=r"folder.jsonl: cannot be read \(Is a directory\)")
  cut = tmp_path / "cut.jsonl.gz"
  cut.write_bytes(gzip.compress(lines(*[DEMONSTRATION] * 99))[:-20])
  refuses(SFT, f"--config.data.demonstrations=jsonl:{cut}",
          message=r"cut.jsonl.gz:\d+: broken gzip file after line \d+")


def test_another_vocabulary(refuses, tmp_path):
  path = tmp_path / "tokenizer.json"
  tokenizer_lib.train(["a little text"], 260).save(str(path))
  refuses(f"--config.data.tokenizer={path}",
          message=r"has 260 entries, config.model.vocab_size is 511: set "
          r"--config.model.vocab_size=260 and the same for rm_model")
  path.write_text("{")
  refuses(f"--config.data.tokenizer={path}",
          message=r"tokenizer '.*tokenizer.json': cannot be read")


def test_long_prompts_are_dropped_and_counted(
    experiment, workdir, tmp_path, capsys):
  rows = [{"prompt": f"Say {n}.", "response": f"Sure! {n}"} for n in range(9)]
  rows[4]["prompt"] = "Say it. " * 30
  path = tmp_path / "data.jsonl"
  path.write_bytes(lines(*rows))

  def stop(run, stage):
    raise KeyboardInterrupt

  with (mock.patch.dict(pipeline.STAGES, pretrain=stop), compiles_nothing(),
        pytest.raises(KeyboardInterrupt)):
    call(f"--config={experiment}", f"--workdir={workdir}", SFT,
         f"--config.data.demonstrations=jsonl:{path}")
  assert re.search(r"- long_prompt +-1  Say it\. .*\.\.\.  data\.jsonl:5\n",
                   capsys.readouterr().out)
  report = json.loads(
      (workdir / "data" / "demonstrations" / "report.json").read_text())
  assert report["dropped"]["long_prompt"]["count"] == 1
  assert (report["rows_in"], sum(report["rows_out"].values())) == (9, 8)


# --------------------------------------------------------------------- workdir


def begin(workdir, stage, **changes):
  """What a run with other settings leaves when it begins a stage."""
  config = tiny_run.tiny_config(**changes)
  checkpoint.write_json(workdir / stage / "settings.json",
                        config_lib.stage_keys(config, stage))


def test_the_workdir_of_another_config(refuses, workdir):
  begin(workdir, "pretrain", model__num_layers=4, pretrain__num_steps=7)
  refuses(message=r"run/pretrain was begun with other settings:\n"
          r"  model.num_layers: 4 -> 2\n  pretrain.num_steps: 7 -> 16\n"
          r"Set them back, use another --workdir, or remove that folder")


def test_a_comma_in_the_name(refuses, tmp_path):
  refuses(f"--workdir={tmp_path / 'a,b'}",
          message=r"a,b' has a comma, which would cut its path in two")


def test_data_that_were_prepared_otherwise(
    refuses, experiment, workdir, tmp_path, capsys):
  path = tmp_path / "data.jsonl"
  path.write_bytes(lines(DEMONSTRATION))
  with (mock.patch.dict(pipeline.STAGES, pretrain=lambda *args: 1 / 0),
        pytest.raises(ZeroDivisionError)):
    call(f"--config={experiment}", f"--workdir={workdir}", SFT)
  capsys.readouterr()
  refuses(SFT, f"--config.data.demonstrations=jsonl:{path}",
          message=r"demonstrations was prepared otherwise \(source: "
          r"'smallworld .* -> 'jsonl:.*remove that folder")


def test_a_missing_checkpoint(refuses, workdir):
  done = {"stage": "pretrain", "seconds": 1.0, "tokenizer": "", "figures": {}}
  checkpoint.write_done(workdir / "pretrain", done)
  refuses(SFT, message=r"run/pretrain/checkpoints is gone, and 'sft' needs it:"
          r" bring it back, remove .*run/pretrain so that 'pretrain' runs")


# --------------------------------------------------------------------- process


@pytest.mark.parametrize("override, message", [
    ("--config.sft.batchsize=8", "error: --config has no key 'batchsize'"),
    ("--config.sft.num_epochs=-1",
     "error: config.sft.num_epochs = -1 must be >= 0."),
])
def test_the_program_ends_with_code_2_and_no_traceback(
    tmp_path, override, message):
  done = subprocess.run(
      [sys.executable, "-m", "rlhf_jax.main",
       "--config=experiments/ppo_ptx.py", f"--workdir={tmp_path / 'run'}",
       override], cwd=ROOT, capture_output=True, text=True, check=False,
      # libtpu, which plans need, has its own words where there is no TPU
      env=os.environ | {"JAX_PLATFORMS": "cpu"})
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.strip().startswith(message)
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()
