"""Laws of a run's files: a bucket does what a folder does, or says why not."""

import os
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from etils import epath
import pytest

from rlhf_jax import checkpoint, compare, config as config_lib, metrics
from rlhf_jax import pipeline, storage
from rlhf_jax.data import sources
from tests import bucket, tiny_run

ROOT = epath.Path(f"gs://{bucket.NAME}")


class BucketTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.monkeypatch = pytest.MonkeyPatch()
    self.addCleanup(self.monkeypatch.undo)
    self.path = ROOT / self.id()
    self.new_machine()

  def new_machine(self):
    """From here on nothing is left of what was kept beside the bucket."""
    bucket.use_machine(self.monkeypatch, self.new_folder())

  def new_folder(self):
    return epath.Path(self.enterContext(tempfile.TemporaryDirectory()))


class FilesTest(BucketTest):

  @parameterized.parameters(True, False)
  def test_text_is_there_whole_and_nothing_beside_it(self, in_bucket):
    folder = self.path if in_bucket else self.new_folder()
    for text in ("first", "second"):
      storage.write_text(folder / "sub" / "file.json", text)
      self.assertEqual((folder / "sub" / "file.json").read_text(), text)
    self.assertEqual(
        [p.name for p in (folder / "sub").iterdir()], ["file.json"])

  def test_a_local_path_is_its_own_copy(self):
    folder = self.new_folder()
    self.assertEqual(storage.local_path(folder), folder)
    self.assertEqual(storage.local_copy(folder), folder)

  def test_a_copy_follows_the_bucket(self):
    for name, text in (("a", "1"), ("sub/b", "2"), ("c", "3")):
      storage.write_text(self.path / name, text)
    here = storage.local_copy(self.path)
    storage.write_text(self.path / "a", "4")  # of the same size
    (here / "c").write_text("what somebody changed here")
    read = lambda folder: {name: (folder / name).read_text()
                           for name in ("a", "sub/b", "c")}
    expected = {"a": "4", "sub/b": "2", "c": "3"}
    self.assertEqual(read(storage.local_copy(self.path)), expected)
    self.new_machine()
    there = storage.local_copy(self.path)
    self.assertNotEqual(there, here)
    self.assertEqual(read(there), expected)

  def test_what_is_the_same_is_not_fetched_again(self):
    storage.write_text(self.path / "a", "1")
    here = storage.local_copy(self.path)
    os.utime(here / "a", (1, 1))
    storage.local_copy(self.path)
    self.assertEqual(os.stat(here / "a").st_mtime, 1)

  def test_nothing_there(self):
    with self.assertRaisesRegex(FileNotFoundError, self.id()):
      storage.local_copy(self.path)

  def test_a_folder_takes_the_place_of_another(self):
    storage.write_text(self.path / "old", "half made")
    (storage.local_path(self.path) / "sub").mkdir(parents=True)
    (storage.local_path(self.path) / "sub" / "new").write_text("1")
    storage.upload_folder(self.path)
    self.assertFalse((self.path / "old").exists())
    self.assertEqual((self.path / "sub" / "new").read_text(), "1")

  def test_lines_of_a_file_in_a_bucket(self):
    path = str(self.path / "roster.jsonl")
    storage.write_text(path, '{"a": 1}\n{"a": 2}\n')
    self.assertEqual(list(sources.json_lines(path)), [
        ({"a": 1}, f"{path}:1"), ({"a": 2}, f"{path}:2")])


class GrowingTest(BucketTest):

  def test_the_next_machine_goes_on_with_what_was_uploaded(self):
    first = storage.Growing(self.path / "rows")
    first.append("one\n")
    self.assertFalse((self.path / "rows").exists())
    first.upload()
    first.append("lost\n")
    self.new_machine()
    second = storage.Growing(self.path / "rows")
    second.append("two\n")
    second.upload()
    self.assertEqual((self.path / "rows").read_text(), "one\ntwo\n")

  def test_a_removed_run_leaves_nothing_on_this_machine(self):
    first = storage.Growing(self.path / "rows")
    first.append("one\n")
    first.upload()
    storage.remove(self.path)
    second = storage.Growing(self.path / "rows")
    second.append("two\n")
    second.upload()
    self.assertEqual((self.path / "rows").read_text(), "two\n")

  def test_is_due_by_the_clock_and_only_in_a_bucket(self):
    there = storage.Growing(self.path / "rows")
    here = storage.Growing(self.new_folder() / "rows")
    self.assertEqual([there.is_due(0.0), there.is_due(60.0)], [True, False])
    self.assertFalse(here.is_due(0.0))

  def test_metrics_and_events_are_those_of_a_folder(self):
    found = []
    folder = self.new_folder()
    for workdir in (self.path, folder):
      writer = metrics.Writer(workdir)
      for step in (1, 2, 3):
        writer.write("sft", step, {"loss": step / 2})
      writer.rewind("sft", 2)
      rows = writer.read("sft")
      self.assertEqual(rows, metrics.read(workdir, "sft"))
      found.append([(row["step"], row["loss"]) for row in rows])
      writer.close()
      (events,) = (workdir / "tensorboard" / "sft").iterdir()
      found.append(len(events.read_bytes()) > 100)
    self.assertEqual(found, [[(1, 0.5), (2, 1.0)], True] * 2)


class CheckTest(BucketTest):
  """Each ends in one message, and leaves nothing in the bucket."""

  def refused(self, path, pattern, is_written=True):
    with self.assertRaisesRegex(storage.StorageError, pattern):
      storage.check(path, "--workdir", is_written=is_written)

  def test_a_good_one_stays_as_it_was(self):
    storage.check(self.path, "--workdir", is_written=True)
    self.assertFalse(self.path.exists())
    storage.check("runs/some", "--workdir", is_written=True)

  @parameterized.parameters(
      "s3://bucket/run", "az://bucket/run", "gs:/bucket/run", "file:///run")
  def test_another_scheme(self, path):
    self.refused(path, f"--workdir={path}: only local folders and gs://BUCKET")

  @parameterized.parameters("gs://bucket", "gs://bucket/", "gs://")
  def test_no_folder(self, path):
    self.refused(path, "names no folder in a bucket; write gs://BUCKET/PATH")

  @parameterized.parameters(True, False)
  def test_no_such_bucket(self, is_written):
    self.refused(
        "gs://no-such-bucket/run", "--workdir=gs://no-such-bucket/run: there "
        "is no bucket 'no-such-bucket'; correct .*buckets create", is_written)

  @parameterized.parameters(
      ((), "look for the bucket"),
      (("GET",), "write run/.probe-"),
      (("GET", "POST"), "delete run/.probe-"))
  def test_not_permitted(self, allowed, doing):
    with bucket.Refusing(self.monkeypatch, allowed, 403):
      self.refused("gs://bucket/run",
                   rf"gs://bucket/run: not permitted to {doing}.* in the "
                   r"bucket 'bucket' \(.*no access.*\); have roles/.* granted")

  def test_credentials_that_are_not_taken(self):
    with bucket.Refusing(self.monkeypatch, (), 401):
      self.refused("gs://bucket/run", "no usable Google credentials .*run")

  def test_reading_asks_for_no_permission_to_write(self):
    with bucket.Refusing(self.monkeypatch, ("GET",), 403):
      storage.check("gs://bucket/run", "--workdir", is_written=False)

  def test_no_credentials(self):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
      self.monkeypatch.delenv(name, raising=False)
    self.monkeypatch.setenv("CLOUDSDK_CONFIG", str(self.new_folder()))
    self.refused("gs://bucket/run", "no usable Google credentials .*run "
                 "'gcloud auth application-default login'")

  def test_no_gcsfs(self):
    with mock.patch.dict(sys.modules, gcsfs=None):
      self.refused("gs://bucket/run", "run 'pip install gcsfs'")

  def test_a_run_is_refused_before_anything_is_made(self):
    with mock.patch.object(pipeline, "make_run") as make_run:
      with self.assertRaisesRegex(storage.StorageError, "no bucket 'none'"):
        pipeline.run_all(tiny_run.tiny_config(), "gs://none/run")
    make_run.assert_not_called()

  @parameterized.parameters(
      (dict(inputs__pretrain="gs://none/run/pretrain"),
       "config.inputs.pretrain=gs://none/run/pretrain: there is no bucket"),
      (dict(inputs__pretrain=f"{ROOT}/run/pretrain"),
       "config.inputs.pretrain = 'gs://bucket/run/pretrain' has no done.json"),
      (dict(data__demonstrations="jsonl:gs://bucket/rows.jsonl"),
       "config.data.demonstrations: 'gs://bucket/rows.jsonl' is in a bucket, "
       "but rows are read from local files; fetch it"),
      (dict(data__tokenizer="gs://bucket/run/tokenizer.json"),
       "config.data.tokenizer: nothing at 'gs://bucket/run/tokenizer.json'"))
  def test_settings(self, changes, message):
    with self.assertRaisesRegex(config_lib.ConfigError, message):
      config_lib.validate(tiny_run.tiny_config(**changes), 1)

  def test_a_program_that_reads(self):
    with self.assertRaisesRegex(Exception, "there is no bucket 'none'"):
      compare.main(["compare", "gs://none/run"])
    with self.assertRaisesRegex(
        checkpoint.CheckpointError, "config.json does not exist: --workdir"):
      pipeline.open_run(self.path)


if __name__ == "__main__":
  absltest.main()
