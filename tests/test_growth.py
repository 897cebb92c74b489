"""The tables of growth: what is measured, and where the plan is said to be
off."""

import json

import numpy as np
import pytest

from benchmarks import growth


def row(axis, value, seconds, model_seconds):
  return {"program": "sft", "axis": axis, "sizes": growth.BASE | (
              {axis: value} if axis else {}),
          "seconds": seconds, "seconds_ratio": seconds / 0.2,
          "model_seconds": model_seconds, "bytes": int(1e6 * seconds),
          "bytes_ratio": seconds / 0.2, "model_bytes": 1e6 * model_seconds}


def test_ratios_to_the_base_by_hand():
  base = row("", None, 0.2, 0.1)
  # twice as long, as the plan has it but for 15 %, and for 16 %
  for model, is_apart in ((0.2, False), (0.2 / 1.149, False),
                          (0.2 / 1.16, True), (0.2 / 0.84, True)):
    found = growth.compared(row("depth", 8, 0.4, model), base, "seconds")
    assert found == (2.0, pytest.approx(model / 0.1), is_apart)


def test_the_table_of_an_axis():
  rows = [row("depth", 8, 0.4, 0.2), row("", None, 0.2, 0.1),
          row("depth", 2, 0.1, 0.075), row("width", 64, 9.0, 9.0)]
  lines = growth.format_table(rows, "depth").splitlines()[2:]
  cells = [[cell.strip() for cell in line.strip("|").split("|")]
           for line in lines]
  assert [line[:6] for line in cells] == [
      ["sft", "2", "100.0", "0.50", "0.75", "-33 % *"],
      ["sft", "4", "200.0", "1.00", "1.00", "+0 %"],
      ["sft", "8", "400.0", "2.00", "2.00", "+0 %"]]


def test_programs_are_measured_as_their_stages_have_them(
    tmp_path, monkeypatch, capsys):
  """The reward model, the one that has an argument of every kind; PPO's are
  built and filled by the same functions."""
  monkeypatch.setattr(growth, "BASE", growth.BASE | {
      "response": 16, "width": 32, "depth": 1, "vocabulary": 64, "K": 2})
  monkeypatch.setattr(growth, "POINTS", {"K": (2, 4)})
  monkeypatch.setattr(growth, "_PROMPT", 16)
  rows = list(growth.grow(["K"], ["rm"], repetitions=2))
  assert [(r["program"], r["axis"], r["sizes"]["K"]) for r in rows] == [
      ("rm", "", 2), ("rm", "K", 4)]
  one, two = rows
  assert all(len(r["pairs"]) == 2 and np.min(r["pairs"]) > 0 for r in rows)
  assert one["bytes_ratio"] == 1 and two["bytes_ratio"] == (
      two["bytes"] / one["bytes"])
  assert two["model_flops"] == 2 * one["model_flops"]  # twice the rows
  # parameters and moments stay, activations double
  assert one["bytes"] < two["bytes"] < 2 * one["bytes"]
  assert one["model_bytes"] < two["model_bytes"] < 2 * one["model_bytes"]
  assert json.loads(json.dumps(rows))[1]["sizes"] == two["sizes"]


def test_a_machine_that_slows_down_does_not_change_a_ratio():
  """Base and point are timed in turns."""
  speeds = iter(range(1, 100))
  base, twice = lambda: 1.0 * next(speeds), lambda: 2.0 * next(speeds)
  pairs = growth.in_turns(base, twice, 20)
  assert len(pairs) == 20
  ratios = [other / first for first, other in pairs]
  assert max(ratios[10:]) < 2.1 < pairs[-1][1] / pairs[0][0]
