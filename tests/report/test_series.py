"""metrics.jsonl is read as it is, and thinned without losing a spike."""

import numpy as np
import pytest

from rlhf_jax import storage
from rlhf_jax.report import series

LINES = ('{"stage": "sft", "step": 1, "seconds": 0.1, "loss": 2.0}\n'
         '{"stage": "ppo", "step": 1, "seconds": 0.2, "kl": null}\n'
         '{"stage": "sft", "step": 3, "seconds": 0.3, "loss": 1.0, "val": 5}\n')


def test_each_metric_of_each_stage_is_a_series(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(LINES + '{"stage": "ppo", "st')
  found = series.read(tmp_path / "metrics.jsonl")
  assert {stage: set(of) for stage, of in found.items()} == {
      "sft": {"loss", "val"}, "ppo": {"kl"}}
  assert found["sft"]["loss"].steps.tolist() == [1, 3]
  assert found["sft"]["loss"].values.tolist() == [2.0, 1.0]
  assert found["sft"]["val"].steps.tolist() == [3]
  assert np.isnan(found["ppo"]["kl"].values).all()


def test_a_broken_line_before_others_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("{broken\n" + LINES)
  with pytest.raises(storage.StorageError, match=r"metrics\.jsonl, line 1 "):
    series.read(tmp_path / "metrics.jsonl")


def test_thinning_keeps_spikes_gaps_and_ends():
  values = np.sin(np.arange(50_000) / 500)
  values[[12_345, 30_001]] = 9.0, -9.0
  values[40_000] = np.nan
  whole = series.Series(10 * np.arange(50_000), values)
  thinned = series.thin(whole, buckets=100)
  assert len(thinned.steps) <= 3 * 100 + 2
  assert (np.diff(thinned.steps) > 0).all()
  assert {0, 123_450, 300_010, 400_000, 499_990} <= set(thinned.steps.tolist())
  np.testing.assert_array_equal(thinned.values, values[thinned.steps // 10])


def test_a_short_series_is_drawn_whole():
  whole = series.Series(np.arange(200), np.arange(200.0))
  assert series.thin(whole, buckets=100) is whole
