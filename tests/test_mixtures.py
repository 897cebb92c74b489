"""Files of demonstrations share training by weight, whatever their length."""

import collections
import dataclasses
import json
import pathlib

import ml_collections
import numpy as np
import pytest

from experiments import common
from rlhf_jax import config as config_lib
from rlhf_jax import datasets, streams
from rlhf_jax.data import batches, prepare, sources, splits, tokenizer
from rlhf_jax.data.records import DataError

SIZES = {"large": 90, "small": 30, "tiny": 15}  # rows of each file
WEIGHTED = "jsonl:large.jsonl=0.5,small.jsonl=2,tiny.jsonl=1"
BARE = "jsonl:large.jsonl,small.jsonl,tiny.jsonl"
LENGTH = 96  # of a packed row
NUM_BATCHES, BATCH_SIZE = 60, 16


@dataclasses.dataclass
class Prepared:
  """A run as far as demonstrations ask for one."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  tokenizer: tokenizer.Tokenizer
  world: None = None
  pair_length: int = LENGTH

  def source(self, kind, split):
    return prepare.open_split(str(self.workdir / "data"), kind, split)

  def batches(self, examples, batch_size):
    return batches.Batches(examples, batch_size)

  def prepare(self):
    datasets.prepare_for(self, ("demonstrations",))

  def stream(self, split="train", batch_size=BATCH_SIZE, seed=3):
    return streams.demonstrations(self, split, batch_size, seed)


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory):
  """Files whose prompts begin with their names, and of one length all."""
  root = tmp_path_factory.mktemp("files")
  for name, size in SIZES.items():
    write(root / f"{name}.jsonl", (
        {"prompt": f"{name} {number}:", "response": f"answer {number:04}"}
        for number in range(size)))
  return root


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(root, workdir, source, packed=False, **data):
  config = common.base("mixture", "mini", ("sft",))
  made = tokenizer.train(["large small tiny answer 0123456789:"] * 9, 300)
  config.model.update(context_length=LENGTH, vocab_size=made.vocab_size)
  config.data.update(root=str(root), demonstrations=source,
                     pack_demonstrations=packed, dedup_prefix_tokens=0,
                     validation_fraction=0.2, test_fraction=0.1)
  config.data.update(data)
  return Prepared(config, workdir, made)


@pytest.fixture(name="run", scope="module")
def _run(root, tmp_path_factory):
  """source, packed -> a run; all of them on what is prepared once."""
  workdir = tmp_path_factory.mktemp("run")
  make(root, workdir, BARE).prepare()
  return lambda source=WEIGHTED, **more: make(root, workdir, source, **more)


@pytest.fixture(name="drawn", scope="module")
def _drawn(run):
  """packed -> the first rows of a mixture, each as its demonstrations."""
  found = {}
  for packed in (False, True):
    mixed = run(packed=packed)
    at = mixed.stream()
    found[packed] = [
        row for n in range(NUM_BATCHES) for row in texts(mixed, at(n))]
  return found


def texts(run, batch):
  """The demonstrations of each row of a batch."""
  return [
      tuple(run.tokenizer.decode(tokens[mask == n]).strip()
            for n in range(1, mask.max() + 1))
      for tokens, mask in zip(batch["tokens"], batch["mask"])]


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name])


def file_of(row):
  return row[0].split()[0]


@pytest.mark.parametrize("packed", [False, True])
def test_in_the_long_run_files_have_the_shares_of_their_weights(drawn, packed):
  counts = collections.Counter(map(file_of, drawn[packed]))
  total = NUM_BATCHES * BATCH_SIZE
  for name, weight in (("large", 0.5), ("small", 2), ("tiny", 1)):
    assert counts[name] == pytest.approx(total * weight / 3.5, rel=0.02)


def test_packed_rows_hold_demonstrations_of_one_file(drawn):
  assert max(map(len, drawn[True])) > 1
  for row in drawn[True]:
    assert len({text.split()[0] for text in row}) == 1


def test_a_batch_does_not_depend_on_those_asked_before(run):
  first = run().stream()
  series = [first(n) for n in range(9)]
  resumed = run().stream()
  for n in (8, 2):
    same(resumed(n), series[n])
  other = run().stream(seed=4)
  assert any((other(n)["tokens"] != series[n]["tokens"]).any()
             for n in range(9))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_global_batch(run, count, monkeypatch):
  whole = run().stream()
  monkeypatch.setattr(Prepared, "batches", lambda self, examples, size: [
      batches.Batches(examples, size, rows=rows)
      for rows in np.arange(size).reshape(count, -1)])
  parts = run().stream()
  for n in range(6):
    shares = [part(n) for part in parts]
    same({name: np.concatenate([share[name] for share in shares])
          for name in shares[0]}, whole(n))


@pytest.mark.parametrize("packed", [False, True])
def test_without_weights_every_row_comes_once_an_epoch_as_before(run, packed):
  plain = run(BARE, packed=packed)
  at = plain.stream()
  rows = plain.source("demonstrations", "train")
  examples = batches.demonstration_examples(
      rows, 3, length=LENGTH, pad_id=plain.config.model.vocab_size,
      packed=packed)
  direct = batches.Batches(examples, 16)
  for n in range(12):
    same(at(n), direct(n))
  epoch = [examples[i] for i in range(examples.epoch_size)]
  seen = [text for example in epoch for text in texts(
      plain, {name: value[None] for name, value in example.items()})[0]]
  assert sorted(seen) == sorted(
      row["prompt"] + "\n" + row["response"] for row in rows)


@pytest.mark.parametrize("name", SIZES)
def test_a_file_comes_whole_and_in_a_new_order_each_pass(run, drawn, name):
  rows = [row for row in drawn[False] if file_of(row) == name]
  size = sum(row["file"] == f"{name}.jsonl"
             for row in run().source("demonstrations", "train"))
  passes = [tuple(rows[start:start + size])
            for start in range(0, len(rows) - size + 1, size)]
  assert len(passes) > 1
  for each in passes:
    assert sorted(each) == sorted(passes[0]) and len(set(each)) == size
    assert sorted(each) != list(each)
  assert len(set(passes)) == len(passes)


def test_a_file_keeps_its_order_when_weights_change(run, drawn):
  other = run(WEIGHTED.replace("=2", "=9"))
  at = other.stream()
  rows = [row for n in range(20) for row in texts(other, at(n))]
  for name in SIZES:
    series = [[row for row in each if file_of(row) == name]
              for each in (rows, drawn[False])]
    assert series[0][:10] == series[1][:10] and len(series[0]) > 9


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_is_as_many_rows_as_all_files_have(run, drawn, packed):
  at = run(packed=packed).stream(batch_size=2)
  assert at.count(3) == 3 * len(set(drawn[packed])) // 2


def test_what_is_measured_comes_once_in_its_own_order(run):
  mixed, plain = run(), run(BARE)
  at = mixed.stream("validation", seed=None)
  want = plain.stream("validation", seed=None)
  assert at.num_batches == want.num_batches
  for n in range(at.num_batches):
    same(at(n), want(n))


def test_other_weights_need_no_preparation_but_other_files_do(run):
  settings = set()
  for source in (BARE, WEIGHTED, "jsonl:large.jsonl=1,small.jsonl=1,"
                 "tiny.jsonl=1e3"):
    run(source).prepare()
    settings.add(json.dumps(config_lib.stage_keys(
        sft_config(run(source)), "sft"), sort_keys=True))
  assert len(settings) == 3  # a begun stage notices
  with pytest.raises(DataError, match="was prepared otherwise .*source"):
    run("jsonl:large.jsonl=1,small.jsonl=1").prepare()


def sft_config(run):
  run.config.sft = common.sft("mini")
  return run.config


def test_a_glob_gives_its_weight_to_every_file(root, tmp_path):
  mixed = make(root, tmp_path, "jsonl:[lt]*.jsonl=1, small.jsonl = 2")
  mixed.prepare()
  at = mixed.stream()
  counts = collections.Counter(
      file_of(row) for n in range(20) for row in texts(mixed, at(n)))
  assert counts == {"large": 80, "small": 160, "tiny": 80}


def test_files_are_named_from_the_root_on(root, tmp_path, run):
  rows = run().source("demonstrations", "train")
  assert {row["file"] for row in rows} == {f"{n}.jsonl" for n in SIZES}
  outside = make("", tmp_path, f"jsonl:{root}/tiny.jsonl=1")
  outside.prepare()
  batch = outside.stream()(0)
  assert {file_of(row) for row in texts(outside, batch)} == {"tiny"}


def test_the_account_has_the_rows_of_each_file(run, root):
  report = json.loads(
      (run().workdir / "data" / "demonstrations" / "report.json").read_text())
  assert list(report["files"]) == [f"{name}.jsonl" for name in SIZES]
  for name, size in SIZES.items():
    counts = dict(report["files"][f"{name}.jsonl"])
    assert counts.pop("in") == size == sum(counts.values())
  for split in splits.SPLITS:
    assert report["rows_out"][split] == sum(
        of[split] for of in report["files"].values())
  printed = prepare.format_report(report)
  assert "rows in" in printed and "small.jsonl" in printed
  assert str(root) not in json.dumps(report["files"])


def test_a_file_with_nothing_left_is_named(root, tmp_path):
  write(tmp_path / "a.jsonl", (
      {"prompt": f"tiny {n}:", "response": "x"} for n in range(20)))
  write(tmp_path / "same.jsonl", (
      {"prompt": f"tiny {n}:", "response": "x"} for n in range(20)))
  mixed = make(tmp_path, tmp_path, "jsonl:a.jsonl=1,same.jsonl=2")
  mixed.prepare()
  with pytest.raises(DataError, match="'same.jsonl' has the weight 2 .*none"
                     " of its rows is left .*leave it out"):
    mixed.stream()


def test_rows_of_an_unknown_file_are_refused(root, tmp_path, run):
  write(tmp_path / "other.jsonl", [{"prompt": "p", "response": "r"}])
  elsewhere = run("jsonl:other.jsonl=1")
  elsewhere.config.data.root = str(tmp_path)
  with pytest.raises(DataError, match="rows of the file .*prepared again"):
    elsewhere.stream()


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize("path,weight", [
    ("a.jsonl=1", "1"), ("a.jsonl.gz=0.2", "0.2"), ("*.gz=1e-3", "1e-3"),
    ("a.jsonl= 2 ", "2"), ("k=v/a.jsonl=3", "3"), ("a=1=2", "2"),
    ("a.jsonl=x", "x"), ("a.jsonl=", ""), ("a.jsonl=-1", "-1"),
    ("a.jsonl=nan", "nan"),
    ("a.jsonl", None), ("lang=en/a.jsonl", None), ("lang=en.jsonl", None),
    ("day=2024.jsonl.gz", None), ("day=3/*", None), ("=1", None),
])
def test_what_is_a_weight_and_what_a_name(path, weight):
  found = sources.weighted_paths(f"jsonl:b,{path}")
  assert found[0] == ("b", None)
  name = path if weight is None else path.rpartition("=")[0]
  assert found[1] == (name, weight)


BAD_WEIGHTS = [
    (f"jsonl:large.jsonl={weight},small.jsonl=1",
     f"'large.jsonl' has the weight '{weight}'; write a number above 0")
    for weight in ("0", "-1", "nan", "inf", "-inf", "1e999", "much", "")
] + [
    ("jsonl:large.jsonl=1,small.jsonl", "'small.jsonl' has none; give every"),
    ("jsonl:large.jsonl,small.jsonl=1", "'large.jsonl' has none; give every"),
    ("jsonl:*.jsonl=1,tiny.jsonl=2",
     "'tiny.jsonl' is named twice, with weights 1 and 2; name each file"),
    ("jsonl:nothing.jsonl=1,tiny.jsonl=2", "nothing at '.*/nothing.jsonl'"),
    ("jsonl:tiny.jsonl=1/2", "nothing at .*A weight is written as PATH=0.5"),
    ("jsonl: =1", "is named twice|nothing at"),
]


@pytest.mark.parametrize("source,message", BAD_WEIGHTS)
def test_a_bad_weight_is_refused_before_anything_starts(root, source, message):
  with pytest.raises(
      config_lib.ConfigError, match=f"config.data.demonstrations: .*{message}"):
    config_lib.validate(experiment(root, demonstrations=source), 1)


@pytest.mark.parametrize("kind", ["pretrain", "prompts", "comparisons"])
def test_only_demonstrations_take_weights(root, kind):
  config = experiment(root, **{kind: "jsonl:large.jsonl=1"})
  message = "'large.jsonl' has the weight '1', but only demonstrations"
  with pytest.raises(
      config_lib.ConfigError, match=f"config.data.{kind}: {message}"):
    config_lib.validate(config, 1)
  with pytest.raises(DataError, match=message):
    list(sources.read("jsonl:large.jsonl=1", kind, root=str(root)))


def test_a_mixture_is_accepted(root):
  config_lib.validate(experiment(root, demonstrations=WEIGHTED), 1)


def experiment(root, **sources):
  """A pretraining and a supervised stage."""
  config = common.base("mixture", "mini", ("pretrain", "sft"))
  config.pretrain, config.sft = common.pretrain("mini"), common.sft("mini")
  config.data.update(root=str(root), **sources)
  return config
