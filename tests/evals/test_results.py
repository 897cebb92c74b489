"""Rows, their tables, and the figures of responses and texts."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.data.fields import DataError
from rlhf_jax.evals import (
    diversity, intervals, items, perplexity, responses, results,
)
from rlhf_jax.sampler import Response
from tests.evals.models import ByRote, by_name


def test_wilson_by_hand():
  # 8 of 10: a textbook's .490 to .943
  found = intervals.share([1] * 8 + [0] * 2)
  assert found["mean"] == 0.8
  assert (found["low"], found["high"]) == pytest.approx(
      (0.490, 0.943), abs=1e-3)
  sure = intervals.share([1] * 20)
  assert 0.8 < sure["low"] < sure["high"] == 1


def test_a_bootstrap_of_a_mean_is_its_normal_interval():
  values = np.random.default_rng(1).normal(size=300)
  low, high = intervals.bootstrap(lambda w: (w @ values) / w.sum(), 300)
  normal = intervals.mean(values)
  assert (low, high) == pytest.approx(
      (normal["low"], normal["high"]), abs=0.02)


def test_distinct_n_and_its_interval():
  texts = [[1, 2, 3], [1, 2], [4, 5, 6], [7]]
  assert diversity.distinct(texts) == 4 / 5
  found = diversity.distinct_interval(texts)
  # without each text in turn: 3/3, 4/4, 2/3, 4/5
  left = np.array([1, 1, 2 / 3, 4 / 5])
  error = 1.959964 * np.sqrt(3 / 4 * np.square(left - left.mean()).sum())
  assert (found["mean"], found["high"] - found["mean"]) == pytest.approx(
      (0.8, error))
  assert diversity.distinct_interval(texts, 1)["mean"] == 7 / 9
  assert diversity.distinct_interval([[1], []], 2)["mean"] == 0


def made():
  lengths, ended = (3, 2, 1), (True, False, True)
  return responses.Responses(
      ["a", "b", "c"],
      [Response("t", np.arange(n), end) for n, end in zip(lengths, ended)],
      kl=np.array([3.0, 1.0, 2.0]), kl_sampled=np.array([2.0, 2.0, -1.0]))


def test_what_is_said_of_responses():
  style = by_name(responses.style(made()))
  assert (style["tokens"].mean, style["ended"].mean) == (2, 2 / 3)
  assert style["distinct_1"].mean == 0.5  # 0 1 2 0 1 0
  kl = by_name(responses.divergence(made()))
  assert (kl["kl"].mean, kl["kl_per_token"].mean, kl["kl_sampled"].mean) == (
      2, 1, 1)


def test_perplexity_is_over_tokens_and_bits_over_bytes():
  texts = [perplexity.Text("aaa bbbbb"), perplexity.Text("c")]
  found = by_name(perplexity.measure(ByRote(), texts))
  # three windows of 2 nats over 3 + 5 + 1 tokens, 10 bytes
  assert found["loss"].mean == pytest.approx(6 / 9)
  assert found["perplexity"].mean == pytest.approx(math.exp(6 / 9))
  assert found["perplexity"].high == pytest.approx(
      math.exp(found["loss"].high))
  assert found["bits_per_byte"].mean == pytest.approx(6 / math.log(2) / 10)
  assert found["bits_per_byte"].n == 2


def test_texts_are_files_or_rows(tmp_path):
  plain, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
  plain.write_text("one\ntext")
  rows.write_text('{"text": "a"}\n{"text": "b"}\n')
  assert [item.text for item in perplexity.read(str(plain))] == ["one\ntext"]
  assert [item.text for item in perplexity.read(str(rows))] == ["a", "b"]
  plain.write_bytes(b"\xff")
  with pytest.raises(DataError, match="a.txt: byte 1 is not UTF-8"):
    perplexity.read(str(plain))


def test_one_value_has_no_interval():
  row = results.mean("x", [0.25])
  assert json.dumps(row.as_json()) == (
      '{"name": "x", "mean": 0.25, "low": null, "high": null, "n": 1}')


def test_items_are_spread_over_a_file():
  assert items.spread(range(10), 4) == [0, 2, 5, 7]
  assert items.spread(range(3), 4) == items.spread(range(3), None) == [0, 1, 2]


def test_a_table_has_a_column_a_policy():
  rows = {"accuracy": results.share("accuracy", [1, 0, 1, 1]),
          "chance": results.constant("chance", 0.25, 4),
          "cut": results.constant("cut", 0.5, 4),
          "left_out": results.constant("left_out", 0, 4)}
  table = results.format_table({"sft": rows, "ppo": rows}).splitlines()
  assert table[0].split() == ["n", "=", "4", "sft", "ppo"]
  assert "0.750 ± 0.327" in table[2]
  assert table[3].split() == ["chance", "0.250", "0.250"]
  assert table[4].split() == "texts cut 50.0 % 50.0 %".split()
  assert len(table) == 5
