"""A run in a bucket is the run in a folder, wherever it is continued."""

import contextlib
import io
import json
import re
from unittest import mock

from etils import epath
import pytest

from rlhf_jax import collect, metrics
from tests import bucket, tiny_run

WORKDIR = epath.Path(f"gs://{bucket.NAME}/runs/tiny")
SECONDS = {"seconds", "train/ppo/rollout_seconds",
           "train/ppo/iteration_seconds"}


def stop_collecting(groups):
  """The machine is lost after so many groups, each uploaded at once."""
  append, calls = collect.append_lines, []

  def stop(*args):
    append(*args)
    calls.append(args)
    if len(calls) == groups:
      raise KeyboardInterrupt

  stack = contextlib.ExitStack()
  stack.enter_context(mock.patch.object(collect, "append_lines", stop))
  stack.enter_context(mock.patch.object(collect, "_UPLOAD_SECONDS", 0.0))
  return stack


@pytest.fixture(name="base", scope="module")
def _base():
  return tiny_run.base()


@pytest.fixture(name="calls", scope="module")
def _calls(base, tmp_path_factory):
  """What was printed by the calls of one run, each on a fresh machine; what a
  lost machine had not uploaded is lost."""
  printed = []
  with pytest.MonkeyPatch.context() as monkeypatch:
    for lost in (stop_collecting(2), tiny_run.interrupt_at("ppo", 2), None):
      bucket.use_machine(monkeypatch, tmp_path_factory.mktemp("machine"))
      with contextlib.redirect_stdout(io.StringIO()) as out:
        if lost is None:
          tiny_run.run(base.config, WORKDIR)
        else:
          with (lost, mock.patch.object(metrics.Writer, "close"),
                pytest.raises(KeyboardInterrupt)):
            tiny_run.run(base.config, WORKDIR)
      printed.append(out.getvalue())
    yield printed


def numbers(workdir):
  """The rows of metrics.jsonl without times."""
  lines = (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in SECONDS}
          for line in lines]


def test_each_machine_goes_on_where_the_last_was_lost(base, calls):
  before = {"collect": ["pretrain", "sft"],
            "ppo": [*base.config.stages[:base.config.stages.index("ppo")]]}
  found = [[s for s in base.config.stages if f"{s}: finished before" in out]
           for out in calls]
  assert found == [[], before["collect"], before["ppo"]]


def test_metrics_are_those_of_the_run_in_a_folder(base, calls):
  assert numbers(WORKDIR) == numbers(base.workdir)


@pytest.mark.parametrize("name", [
    "samples.jsonl", "collect/responses.jsonl", "collect/comparisons.jsonl",
    "rm/report.json", "data/tokenizer.json"])
def test_files_are_the_same(base, calls, name):
  assert (WORKDIR / name).read_bytes() == (base.workdir / name).read_bytes()


def test_stages_end_alike(base, calls):
  for stage in base.config.stages:
    ours = json.loads((WORKDIR / stage / "done.json").read_text())
    assert ours["figures"] == base.json(f"{stage}/done.json")["figures"]


def test_the_report_shows_the_same(base, calls):
  samples, data = (
      [re.search(pattern, (workdir / "report.html").read_text(), re.DOTALL)[1]
       for workdir in (WORKDIR, base.workdir)]
      for pattern in (r'id="sample-data">(.*?)</script>',
                      r'<section id="data">(.*?)</section>'))
  assert samples[0] == samples[1]
  assert data[0] == data[1] and "Rows dropped, by rule" in data[0]
