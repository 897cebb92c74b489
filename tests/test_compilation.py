"""What was compiled once is compiled by no later start."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax._src import compilation_cache
import pytest

from rlhf_jax import compilation

ROOT = pathlib.Path(__file__).parent.parent
# A process of its own: the program, and what JAX says of its compiles.
PROGRAM = textwrap.dedent("""
    import collections, json, sys
    import jax
    from absl import app
    events = collections.Counter()
    jax.monitoring.register_event_listener(
        lambda name, **unused: events.update([name.rpartition("/")[2]]))
    jax.config.update("jax_disable_most_optimizations", True)
    from rlhf_jax import main
    sys.argv[0] = "main"
    try:
      app.run(main.main, flags_parser=main.parse_flags)
    except SystemExit as ended:
      print(json.dumps(events))
      sys.exit(ended.code)
    """)


def test_what_a_killed_process_wrote_in_part_is_removed(tmp_path):
  good = compilation_cache.compress_executable(b"program" * 100)
  for number in range(20):
    (tmp_path / f"good{number}-cache").write_bytes(good)
  (tmp_path / "torn-cache").write_bytes(good[:-7])
  (tmp_path / "empty-cache").write_bytes(b"")
  (tmp_path / "torn.txt").write_bytes(b"no entry")
  assert set(compilation.remove_torn(str(tmp_path))) == {
      "torn-cache", "empty-cache"}
  assert len(list(tmp_path.iterdir())) == 21
  assert not compilation.remove_torn(str(tmp_path / "not there"))


@pytest.fixture(name="starts", scope="module")
def _starts(tmp_path_factory):
  """(events, rows of metrics.jsonl, what was printed) of two starts with
  workdirs of the same parent."""
  root = tmp_path_factory.mktemp("runs")
  experiment = root / "tiny.py"
  experiment.write_text(
      "from tests import tiny_run\n\n\ndef get_config():\n"
      "  return tiny_run.tiny_config(stages=('pretrain',))\n")
  env = {k: v for k, v in os.environ.items()
         if k != "JAX_COMPILATION_CACHE_DIR"}
  found = []
  for name in ("first", "second"):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"--config={experiment}",
         f"--workdir={root / name}"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = (root / name / "metrics.jsonl").read_text().splitlines()
    found.append((json.loads(done.stdout.splitlines()[-1]),
                  [json.loads(row) for row in rows], done.stdout))
  return root, found


def test_the_second_start_compiles_nothing(starts):
  _, ((first, *_), (second, *_)) = starts
  assert first["cache_misses"] == first["compile_requests_use_cache"] > 3
  assert second.get("cache_misses", 0) == 0
  assert second["cache_hits"] == second["compile_requests_use_cache"]


def test_metrics_do_not_depend_on_the_cache(starts):
  _, found = starts
  first, second = (
      [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
      for _, rows, _ in found)
  assert first == second and len(first) > 3


def test_the_folder_is_named_and_beside_the_workdirs(starts):
  root, found = starts
  assert any((root / compilation.FOLDER).iterdir())
  for _, _, printed in found:
    assert f"compiled programs {root / compilation.FOLDER}\n" in printed


def test_the_summary_says_what_was_compiled(starts):
  root, found = starts
  first, second = (json.loads((root / name / "summary.json").read_text())[
      "compiled"]["pretrain"] for name in ("first", "second"))
  assert first["from_cache"] == 0 < first["programs"]
  assert second["from_cache"] == second["programs"] == first["programs"]
  assert first["lowering_seconds"] > 0 < first["tracing_seconds"]
  assert "lm_step" in first["seconds_by_function"]
  for _, _, printed in found:
    table = printed[printed.index("compiled for"):].splitlines()
    assert table[2].split()[:2] == ["pretrain", str(first["programs"])]


def test_what_is_compiled_is_recorded_while_it_is_asked_for():
  @jax.jit
  def doubled(x):
    return 2 * x

  with compilation.recorded() as outer:
    with compilation.recorded() as inner:
      doubled(1.0)
    doubled(2.0)  # nothing to compile
    doubled(1)
  doubled(1j)
  assert (inner.programs, outer.programs) == (1, 2)
  assert "doubled" in inner.as_json()["seconds_by_function"]
  parts = ("tracing", "lowering", "compiling")
  assert all(0 < inner.seconds[f"{name}_seconds"]
             < outer.seconds[f"{name}_seconds"] for name in parts)


@pytest.mark.parametrize("module", [
    "rlhf_jax.main", "rlhf_jax.plan.planning"])
def test_a_start_does_not_import_what_it_does_not_need(module):
  """Each of these takes a second or several to import; that tensorboardX takes
  torch where it finds one is not ours."""
  heavy = ("tensorflow", "torch", "transformers", "matplotlib", "pandas",
           "scipy", "sklearn", "IPython")
  done = subprocess.run(
      [sys.executable, "-c", "import sys; sys.modules['torch'] = None; "
       f"import {module}; "
       f"print([m for m in {heavy} if sys.modules.get(m)])"],
      cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    for name in ("jax_compilation_cache_dir",
                 "jax_persistent_cache_min_entry_size_bytes",
                 "jax_persistent_cache_min_compile_time_secs"):
      self.addCleanup(jax.config.update, name, getattr(jax.config, name))
    jax.config.update("jax_compilation_cache_dir", None)

  @parameterized.parameters(
      ("/data/runs/one", "/data/runs/.jax_cache", 0.0),
      ("gs://bucket/runs/one", "gs://bucket/runs/.jax_cache", 1.0),
      ("one", f"{os.getcwd()}/.jax_cache", 0.0))
  def test_beside_the_workdir(self, workdir, folder, seconds):
    self.assertEqual(compilation.enable_compilation_cache(workdir), folder)
    self.assertEqual(jax.config.jax_compilation_cache_dir, folder)
    self.assertEqual(
        jax.config.jax_persistent_cache_min_compile_time_secs, seconds)

  def test_a_given_folder_stays(self):  # JAX reads its variable when imported
    jax.config.update("jax_compilation_cache_dir", "/cache")
    self.assertEqual(compilation.enable_compilation_cache("/runs/x"), "/cache")


if __name__ == "__main__":
  absltest.main()
