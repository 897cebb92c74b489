"""docs/results.md says what the files beside it hold."""

import functools
import json
import pathlib
import shutil
import sys

import pytest

from rlhf_jax.studies import (
    measuring, overoptimisation, registry, results,
)
from tests import shared

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text()
SEEDS = (0, 1, 2)
FILES = sorted((DOCS / "results").glob("*.csv"))


def test_every_study_has_its_figures():
  assert [path.stem for path in FILES] == sorted(registry.STUDIES)
  for path in FILES:  # of what its seeds were measured with
    assert len(json.loads(path.with_suffix(".json").read_text())[
        "settings"]) == 64


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tables_are_those_of_the_rows(path):
  rows = results.from_csv(path.read_text())
  assert results.as_csv(rows) == path.read_text()
  assert results.format_tables(registry.find(path.stem), rows) in PAGE
  assert f"](results/{path.stem}.svg)" in PAGE
  assert f"--config=experiments/studies/{path.stem}.py" in PAGE


def test_the_page_says_that_best_of_ns_kl_is_a_bound():
  section = PAGE.partition("\n## Best-of-n against PPO")[2]
  said, _, _ = section.partition("\n## ")
  for words in ("bound from above", "n of the first table is too small"):
    assert words in said


def test_what_is_said_of_a_kl_penalty_is_what_the_rows_have():
  """Gains over the start in its SDs: of a penalised policy, and of five
  iterations without a penalty at the KL next above, and at best."""
  rows = {name: results.from_csv((DOCS / "results" / f"{name}.csv").read_text())
          for name in ("best_of_n", "overoptimisation")}
  of = functools.partial(measuring.values, rows["best_of_n"])
  gold, kl = (of(run="tax", policy="ppo@kl03", task="ppo", name=name)
              for name in ("gold", "kl"))
  start = of(run="main", policy="best_of_1", name="gold")
  sd = measuring.values(rows["overoptimisation"], name="gold_sd")
  free = overoptimisation.points(
      rows["overoptimisation"], "rl", ("gao", "ppo@n4500"))
  said = [[(gold[seed] - start[seed]) / sd[seed] for seed in SEEDS],
          [kl[seed] for seed in SEEDS], [], [], []]
  for seed in SEEDS:
    kls, gains = (overoptimisation.binned(values) for values in (
        free["d"][seed]**2, free["gold_gain"][seed]))
    at = int((kls > kl[seed]).argmax())
    for place, value in zip(said[2:], (gains[at], kls[at], gains.max())):
      place.append(value)
  text = " ".join(PAGE.split())
  for found in said:
    assert "{}, {} and {}".format(
        *(f"{value:.2f}".lstrip("0") for value in found)) in text


def test_what_is_said_of_optimised_runs_holds_in_every_seed():
  rows = results.from_csv((DOCS / "results/overoptimisation.csv").read_text())
  peaks, kls, proxies, left = [], [], [], []
  runs = [overoptimisation.points(rows, "rl", model.ppo)
          for model in overoptimisation.MODELS]
  for seed in SEEDS:
    lost = min(of["gold_gain"][seed].min() for of in runs)
    for of in runs:
      kl, gold, proxy = map(overoptimisation.binned, (
          of["d"][seed]**2, of["gold_gain"][seed], of["proxy_gain"][seed]))
      peaks.append(gold.max())
      kls.append(kl[gold.argmax()])
      proxies.append(proxy[-1])
      left.append(1 - gold[-1] / lost)
      assert proxy.max() - proxy[-1] < 0.1
  text = " ".join(PAGE.split())
  assert f"by {min(proxies):.1f} to {max(proxies):.1f} SDs at the end" in text
  assert f".{100 * min(peaks):.0f} to .{100 * max(peaks):.0f} SDs" in text
  assert f"at a KL of {min(kls):.1f} to {max(kls):.1f} nats" in text
  rest = sorted(left)[10:]
  assert len(left) == 15 and sorted(left)[9] < 0.03
  assert f"the others {100 * rest[0]:.0f} to {100 * rest[-1]:.0f} %" in text


def test_runs_of_one_stage_name_share_their_noise_and_the_page_says_so():
  rows = results.from_csv((DOCS / "results/overoptimisation.csv").read_text())
  moved = []
  for seed in SEEDS:
    first = {}
    for model in overoptimisation.MODELS:
      gold = overoptimisation.points(rows, "rl", model.ppo)["gold_gain"][seed]
      first.setdefault(model.ppo[1], []).append(gold[0])
    assert len(set(first["ppo"])) == 1 and len(first["ppo"]) == 2
    moved.append(abs(sum(of[0] for of in first.values()) / len(first)))
  text = " ".join(PAGE.split())
  assert "share their noise" in " ".join(overoptimisation.__doc__.split())
  assert "share their noise" in text
  assert "by {} to {} SDs".format(*(
      f"{of(moved):.2f}".lstrip("0") for of in (min, max))) in text


def test_the_longest_study_is_the_one_that_is_said():
  minutes = {path.stem: sum(
      row["mean"] / 60 for row in results.from_csv(path.read_text())
      if row["task"] == "stage") for path in FILES}
  longest = max(minutes, key=minutes.get)
  text = " ".join(PAGE.split())
  assert f"The longest study by itself is `{longest}`" in text
  assert (f"took {minutes[longest]:.0f} minutes in all three seeds, those of "
          f"`alignment_tax` {minutes['alignment_tax']:.0f};") in text


def test_comparisons_are_called_by_their_number():
  """4,500 are the prompts before cleaning; the rows have 4,317 and 4,321."""
  assert "4,500 comparisons" not in PAGE
  assert not any("4,500" in model.label for model in overoptimisation.MODELS)
  assert "set out for" not in PAGE


def test_another_seed_is_taken_in(tmp_path):
  """Beside those that are there; and one that is there is replaced."""
  docs, workdir = tmp_path / "docs", tmp_path / "studies"
  docs.mkdir()
  shutil.copy(DOCS / "results.md", docs)
  shutil.copytree(DOCS / "results", docs / "results")
  kept = docs / "results" / "behaviour.csv"
  before = results.from_csv(kept.read_text())
  first = [row for row in before if row["seed"] == 0]
  measured = [row | {"seed": seed, "mean": row["mean"] + seed}
              for seed in (7, 0) for row in first]
  (workdir / "behaviour").mkdir(parents=True)
  (workdir / "behaviour" / "rows.csv").write_text(results.as_csv(measured))
  shutil.copy(DOCS / "results" / "behaviour.json",
              workdir / "behaviour" / "rows.json")
  maker = shared.module_at(DOCS / "make_results.py")
  for _ in range(2):  # the second changes nothing
    assert maker.update(workdir, docs) == ["behaviour"]
    found = results.from_csv(kept.read_text())
    assert [row for row in found if row["seed"] in (1, 2)] == [
        row for row in before if row["seed"] in (1, 2)]
    assert results.as_csv(
        row for row in found if row["seed"] in (0, 7)) == results.as_csv(
            measured[len(first):] + measured[:len(first)])
    tables = results.format_tables(registry.find("behaviour"), found)
    assert tables in (docs / "results.md").read_text()


def test_a_page_that_was_changed_by_hand_is_left_alone(tmp_path):
  docs, workdir = tmp_path / "docs", tmp_path / "studies"
  shutil.copytree(DOCS / "results", docs / "results")
  (docs / "results.md").write_text(PAGE.replace("| PPO ", "| P. "))
  (workdir / "behaviour").mkdir(parents=True)
  for kind in ("csv", "json"):
    shutil.copy(DOCS / "results" / f"behaviour.{kind}",
                workdir / "behaviour" / f"rows.{kind}")
  with pytest.raises(ValueError, match="has not the tables of behaviour.csv"):
    shared.module_at(DOCS / "make_results.py").update(workdir, docs)


@pytest.fixture(name="measured")
def _measured(tmp_path):
  """(docs, a workdir in which seed 2 of a study was measured by others)."""
  docs, workdir = tmp_path / "docs", tmp_path / "studies"
  docs.mkdir()
  shutil.copy(DOCS / "results.md", docs)
  shutil.copytree(DOCS / "results", docs / "results")
  rows = results.from_csv((DOCS / "results" / "behaviour.csv").read_text())
  (workdir / "behaviour").mkdir(parents=True)
  (workdir / "behaviour" / "rows.csv").write_text(
      results.as_csv(row for row in rows if row["seed"] == 2))
  (workdir / "behaviour" / "rows.json").write_text('{"settings": "other"}')
  return docs, workdir


def test_seeds_of_other_settings_are_not_joined(measured):
  docs, workdir = measured
  maker = shared.module_at(DOCS / "make_results.py")
  before = (docs / "results" / "behaviour.csv").read_text()
  with pytest.raises(ValueError, match=(
      "behaviour.csv has seeds 0,1, which .* than the workdir's 2: .*"
      "behaviour.py --seeds=0,1, .* --without=0,1")):
    maker.update(workdir, docs)
  assert (docs / "results" / "behaviour.csv").read_text() == before
  maker.update(workdir, docs, without=(0, 1))
  kept = docs / "results" / "behaviour.csv"
  rows = results.from_csv(kept.read_text())
  assert {row["seed"] for row in rows} == {2}
  assert "other" in kept.with_suffix(".json").read_text()
  assert results.format_tables(registry.find("behaviour"), rows) in (
      docs / "results.md").read_text()


@pytest.mark.parametrize("gone, way_out", [
    ("docs/results/behaviour.csv", "bring it back, or name it as its study"),
    ("docs/results/behaviour.json", "bring it back, or name it as its study"),
    ("studies/behaviour/rows.json", "give the study's command again"),
])
def test_what_is_not_there_is_named(measured, gone, way_out):
  docs, workdir = measured
  (docs.parent / gone).unlink()
  with pytest.raises(ValueError, match=f"{gone} does not exist: {way_out}"):
    shared.module_at(DOCS / "make_results.py").update(workdir, docs)


def test_a_digest_that_says_nothing_is_named(measured):
  docs, workdir = measured
  (docs / "results" / "behaviour.json").write_text("[]")
  with pytest.raises(ValueError, match="behaviour.json does not say what"):
    shared.module_at(DOCS / "make_results.py").update(workdir, docs)


@pytest.mark.parametrize("flags, message", [
    ([], "--without=0,1"), (["--without=a"], "invalid seeds value: 'a'")])
def test_the_command_ends_with_one_message(
    measured, flags, message, monkeypatch, capsys):
  docs, workdir = measured
  maker = shared.module_at(DOCS / "make_results.py")
  monkeypatch.setattr(maker, "DOCS", docs)
  monkeypatch.setattr(sys, "argv", ["make_results.py", str(workdir), *flags])
  with pytest.raises(SystemExit, match="2"):
    maker.main()
  assert message in capsys.readouterr().err
