"""The benchmark of preparing runs, on rows that give every rule some work."""

import collections
import json

from benchmarks import prepare_prompts


def test_prompts_depend_on_the_seed_only():
  rows = list(prepare_prompts.prompts(500))
  assert rows == list(prepare_prompts.prompts(500))
  assert rows != list(prepare_prompts.prompts(500, seed=1))
  assert len({row["prompt"] for row in rows}) > 450
  users = collections.Counter(row["user_id"] for row in rows)
  assert len(users) > 10 and max(users.values()) > 2 * min(users.values())


def test_each_size_is_measured_in_a_process_of_its_own(
    tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(prepare_prompts, "_NUM_TOKENIZER_ROWS", 100)
  held = b"x" * 2**30  # what the caller holds is not the measured one's
  (found,) = prepare_prompts.run([300], str(tmp_path))
  assert json.loads(capsys.readouterr().out) == found
  assert found["rows"] == 300 and 200 < found["rows_out"] < 300
  assert found["seconds"] > 0 and found["cpu_seconds"] > 0
  assert len(held) > 50e6 and 50 < found["peak_mb"] < 1000
  printed = prepare_prompts.format_results([found])
  assert str(found["rows_out"]) in printed and "peak MB" in printed
  assert {path.name for path in tmp_path.iterdir()} == {
      "tokenizer.json", "tokenizer_config.json"}
