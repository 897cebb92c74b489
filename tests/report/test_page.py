"""The page: whole, harmless, of one run or several, finished or not."""

import errno
import html.parser
import json
import os
import subprocess
import sys
from unittest import mock

from etils import epath
import pytest

from rlhf_jax import exits, pipeline, storage
from rlhf_jax.report import charts, folder, page
from tests.report import made


class Parts(html.parser.HTMLParser):
  """Counts elements; keeps the JSON in it, and the text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.json, self.links, self.ids = [], {}, [], []
    self._id = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.ids += [attrs["id"]] if "id" in attrs else []
    self.links += [attrs[name] for name in ("href", "src") if name in attrs]
    is_json = attrs.get("type") == "application/json"
    self._id = attrs["id"] if is_json else None

  def handle_data(self, data):
    if self._id:
      self.json[self._id] = json.loads(data)
      self._id = None


def rendered(*paths):
  text = page.render(folder.read_all(paths))
  return text, Parts(text)


def test_what_a_run_says_is_text_not_markup(tmp_path):
  text, parts = rendered(made.folder(tmp_path / "run"))
  assert "img" not in parts.tags and parts.tags.count("script") == 4
  assert text.count("</script>") == 4
  row = parts.json["sample-data"]["rows"][1]
  assert row["responses"]["ppo"]["text"] == f"ppo says {made.HOSTILE}"


def test_nothing_is_fetched_and_every_link_has_its_place(tmp_path):
  _, parts = rendered(made.folder(
      tmp_path / "run", metrics=made.ppo_metrics(kl=lambda v, t: 40 * t**4)))
  assert "#chart-ppo-kl" in parts.links
  assert {link.removeprefix("#") for link in parts.links} <= set(parts.ids)
  assert len(set(parts.ids)) == len(parts.ids)


def test_every_metric_that_changes_is_in_a_chart(tmp_path):
  path = made.folder(tmp_path / "run")
  text, parts = rendered(path)
  curves = folder.read(path).curves
  del curves["ppo"]["train/skipped"]
  assert "The same in all rows: skipped 0." in text
  drawn = {(chart["id"].split("-")[1], line["metric"])
           for chart in parts.json["chart-data"]["charts"]
           for line in chart["lines"]}
  assert drawn == {(stage, metric.removeprefix("train/"))
                   for stage in curves for metric in curves[stage]}


def test_metrics_that_nobody_knows_have_a_chart_of_their_own():
  assert charts.kind_of("train/new/thing").title == "train/new/thing"


def test_runs_are_compared(tmp_path):
  paths = (made.folder(tmp_path / "a" / "run"),
           made.folder(tmp_path / "b" / "run", kl_coef=0.2))
  text, parts = rendered(*paths)
  assert parts.json["chart-data"]["runs"] == ["a/run", "b/run"]
  chart = next(chart for chart in parts.json["chart-data"]["charts"]
               if chart["id"] == "chart-ppo-kl")
  assert [line["run"] for line in chart["lines"]] == [0, 1]
  assert parts.json["sample-data"]["policies"] == [
      f"{run}/run: {policy}" for run in "ab"
      for policy in ("pretrain", "sft", "ppo")]
  assert parts.json["sample-data"]["shown"] == ["a/run: ppo", "b/run: ppo"]
  assert len(parts.json["sample-data"]["rows"]) == 60
  assert ("<tr><td>ppo.kl_coef</td><td>0.1</td><td>0.2</td></tr>") in text
  assert "<td>eval.gold_score.ppo</td><td>0.710</td><td>0.710</td>" in text


def test_an_unfinished_run_shows_what_is_there(tmp_path):
  text, parts = rendered(made.folder(tmp_path / "run", is_done=False))
  assert "2 of 4 stages are finished" in text and "at step 100" in text
  assert "No policy was evaluated yet" in text and "form" not in parts.tags
  (tmp_path / "bare").mkdir()
  (tmp_path / "bare" / "config.json").write_text(
      json.dumps({"name": "bare", "stages": ["sft"]}))
  text, _ = rendered(tmp_path / "bare")
  assert "No metrics yet" in text and "not begun" in text


def test_samples_that_do_not_fit_are_counted(tmp_path):
  path = made.folder(tmp_path / "run")
  with mock.patch.object(page, "_SAMPLE_CHARS", 2_000):
    text, parts = rendered(path)
  shown = len(parts.json["sample-data"]["rows"])
  assert 1 < shown < 60 and f"the first {shown} of 60 prompts" in text


def test_long_metrics_stay_a_small_page(tmp_path):
  metrics = made.ppo_metrics(num=20_000)
  text, _ = rendered(made.folder(tmp_path / "run", metrics=metrics))
  assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 9e6
  assert len(text) < 3e6


def test_a_full_disk_ends_the_run_with_its_message(tmp_path):
  path = epath.Path(made.folder(tmp_path / "run"))
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.html")
  config = mock.Mock(stages=made.STAGES)
  with mock.patch.object(storage, "write_text", side_effect=full):
    with pytest.raises(storage.StorageError, match="the disk is full"):
      with pipeline.storage_faults(config, path):
        pipeline.leave_report(path)
    pipeline.leave_report(path, is_failing=True)  # another error counts more


def test_the_command(tmp_path):
  run = made.folder(tmp_path / "run")
  call = lambda *args: subprocess.run(
      [sys.executable, "-m", "rlhf_jax.report", *args], check=False,
      capture_output=True, text=True)
  done = call(f"--workdir={run}", f"--out={tmp_path}/out.html")
  assert done.stdout == f"written: {tmp_path}/out.html\n"
  assert "What to look at" in (tmp_path / "out.html").read_text()
  refused = call(f"--workdir={tmp_path}")
  assert refused.returncode == exits.REFUSED
  assert refused.stderr.strip() == (
      f"error: {tmp_path}/config.json does not exist: --workdir must be the "
      "folder of a run.")
