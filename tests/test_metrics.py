"""Laws of the numbers that a run leaves: complete, readable, the same twice."""

import json
import pathlib
import struct
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
from tensorboardX.proto import event_pb2

from rlhf_jax import metrics


def _events(folder: pathlib.Path):
  """The scalars {(step, name): value} of TensorBoard's event files."""
  found = {}
  for path in folder.iterdir():
    content = path.read_bytes()
    while content:  # length, its checksum, event, its checksum
      (length,) = struct.unpack("<Q", content[:8])
      event = event_pb2.Event.FromString(content[12:12 + length])
      content = content[12 + length + 4:]
      for value in event.summary.value:
        found[event.step, value.tag] = value.simple_value
  return found


class WriterTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.workdir / "metrics.jsonl"
    self.writer = metrics.Writer(self.workdir)
    self.addCleanup(self.writer.close)

  def _lines(self):
    return [json.loads(line) for line in self.path.read_text().splitlines()]

  def test_file_and_tensorboard_have_the_same_numbers(self):
    self.writer.write("sft", 1, {"train/loss": jnp.float32(0.1), "lr": 3})
    self.writer.write("sft", 2, {"train/loss": jnp.bfloat16(0.5)})
    self.writer.write("ppo", 1, {"kl": -0.25})
    self.writer.close()
    rows = metrics.read(self.workdir, "sft")
    self.assertEqual(
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
        [{"stage": "sft", "step": 1, "train/loss": float(jnp.float32(0.1)),
          "lr": 3.0},
         {"stage": "sft", "step": 2, "train/loss": 0.5}])
    for stage in ("sft", "ppo"):
      expected = {
          (row["step"], name): value
          for row in metrics.read(self.workdir, stage)
          for name, value in row.items()
          if name not in ("stage", "step", "seconds")}
      self.assertEqual(
          _events(self.workdir / "tensorboard" / stage), expected)

  @parameterized.parameters(float("nan"), float("inf"))
  def test_what_json_lacks_is_null(self, value):
    self.writer.write("ppo", 1, {"kl": value, "score": 1.0})
    (row,) = self._lines()
    self.assertIsNone(row["kl"])
    self.assertEqual(row["score"], 1.0)

  def test_rewind_drops_later_rows_of_its_stage_alone(self):
    for step in (1, 2, 3):
      self.writer.write("sft", step, {"loss": step})
      self.writer.write("ppo", step, {"kl": step})
    self.writer.rewind("sft", 1)
    self.assertEqual(
        [(row["stage"], row["step"]) for row in self._lines()],
        [("sft", 1), ("ppo", 1), ("ppo", 2), ("ppo", 3)])
    self.writer.write("sft", 2, {"loss": 2})
    self.assertEqual(
        [row["step"] for row in metrics.read(self.workdir, "sft")], [1, 2])

  @parameterized.parameters('{"stage": "sft", "st', '{"stage": "ppo"', "{")
  def test_rewind_drops_half_a_line(self, half):
    self.writer.write("sft", 1, {"loss": 1})
    with self.path.open("a") as f:
      f.write(half)
    metrics.Writer(self.workdir).rewind("sft", 1)
    self.writer.write("sft", 2, {"loss": 2})
    self.assertEqual([row["step"] for row in self._lines()], [1, 2])

  def test_rewind_without_a_file(self):
    self.writer.rewind("sft", 0)
    self.assertFalse(self.path.exists())


class CadenceTest(parameterized.TestCase):

  @parameterized.parameters((3, [3, 6, 7]), (0, [7]), (1, [*range(1, 8)]))
  def test_multiples_and_the_last(self, every, expected):
    self.assertEqual(
        [step for step in range(1, 8) if metrics.should_run(step, every, 7)],
        expected)

  def test_track_hands_on_every_item(self):
    self.assertEqual(list(metrics.track("collect", [3, 1, 2], "prompt")),
                     [3, 1, 2])


if __name__ == "__main__":
  absltest.main()
