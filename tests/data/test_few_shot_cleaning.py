"""A few-shot set is whole in one split, and once, whoever sends it."""

import collections
import itertools
import random

import pytest

from rlhf_jax.data import few_shot
from tests.data import test_cleaning as plain

LONG = dict(max_prompt_tokens=400, max_response_tokens=100)


def _set(number, num_pairs=3, answer="a", **fields):
  """A set whose prompts share a prefix far longer than 10 tokens."""
  examples = [
      {"query": f"query {number} {k}", "response": f"{answer} {number} {k}"}
      for k in range(num_pairs)
  ]
  return {"prompt_kind": "few_shot", "instruction": "Answer as shown below.",
          "examples": examples} | fields


def _expand(*sets, kind="demonstrations"):
  rows = [r for s in sets for r in few_shot.expand(s, kind, "f:1")]
  drop = ("instruction", "examples") + ("response",) * (kind == "prompts")
  return [{k: v for k, v in r.items() if k not in drop} for r in rows]


def _clean(rows, kind="demonstrations", **changes):
  return plain._clean(kind, rows, **LONG | changes)


def _many():
  """Sets with and without users, some sent again by others or answered anew."""
  rng = random.Random(0)
  sets = []
  for _ in range(120):
    number = rng.randrange(60)
    row = _set(number, 2 + number % 3, answer=rng.choice("ab"))
    if rng.random() < 0.6:
      row["user_id"] = f"u{rng.randrange(30)}"
    sets.append(row)
  return _expand(*sets)


def _splits_of_sets(by_split):
  found = collections.defaultdict(set)
  for split, rows in by_split.items():
    for row in rows:
      found[row.record["few_shot_set"]].add(split)
  return found


def test_the_examples_of_a_set_are_no_duplicates_of_each_other():
  by_split, report = _clean(_expand(_set(0), _set(1), _set(2)))
  assert len(plain._all(by_split)) == 9 and not report["dropped"]


@pytest.mark.parametrize("again,dropped", [
    ({}, {"duplicate_row": 3}),
    ({"answer": "b"}, {"duplicate_prompt": 3}),
    ({"user_id": "u1"}, {"duplicate_prompt": 3}),
    ({"labeler_id": "l1"}, {"duplicate_prompt": 3}),
    ({"prompt_kind": "plain"}, {"duplicate_row": 3}),
])
def test_a_set_sent_again_is_found(again, dropped):
  second = _expand(_set(0, **again)) if "prompt_kind" not in again else [
      row | again for row in _expand(_set(0))]
  by_split, report = _clean(_expand(_set(0)) + second)
  assert len(plain._all(by_split)) == 3
  assert plain._dropped(report) == dropped


def test_a_set_in_another_order_is_the_same_set():
  turned = _set(0)
  turned["examples"] = turned["examples"][::-1]
  by_split, report = _clean(_expand(_set(0), turned))
  assert len(plain._all(by_split)) == 3
  assert plain._dropped(report) == {"duplicate_prompt": 3}


def test_no_set_is_in_two_splits_or_of_two_users():
  by_split, _ = _clean(_many(), max_prompts_per_user=99)
  found = _splits_of_sets(by_split)
  assert len(found) == len({row["few_shot_set"] for row in _many()})
  assert all(len(of) == 1 for of in found.values())
  assert {s for of in found.values() for s in of} == set(by_split)
  users = collections.defaultdict(set)
  for row in plain._all(by_split):
    users[row.record["few_shot_set"]].add(row.record.get("user_id"))
  assert all(len(of) == 1 for of in users.values())


def test_without_users_the_split_is_that_of_the_set():
  by_split, report = _clean(_expand(*(_set(n) for n in range(90))))
  assert not report["dropped"]
  found = _splits_of_sets(by_split)
  assert len(found) == 90 and all(len(of) == 1 for of in found.values())
  counts = collections.Counter(s for of in found.values() for s in of)
  assert all(counts[split] >= 9 for split in by_split)


def test_with_a_user_the_split_is_the_users():
  rows = _expand(*(_set(n, user_id="u") for n in range(9)))
  by_split, _ = _clean(rows + [{"prompt": "p", "response": "r",
                                "user_id": "u"}], max_prompts_per_user=99)
  assert sorted(map(len, by_split.values())) == [0, 0, 28]


def test_sets_that_share_a_query_never_stand_in_two_splits():
  """Else one split would hold the responses that another is asked for."""
  def shared(user):
    row = _set(0, user_id=user)
    row["examples"].append({"query": f"of {user}", "response": "r"})
    return row

  sets = [shared(f"u{n}") for n in range(30)]
  by_split, report = _clean(_expand(*sets), max_prompts_per_user=99)
  assert len(plain._all(by_split)) == 4
  assert sum(map(bool, by_split.values())) == 1
  assert plain._dropped(report) == {"duplicate_prompt": 29 * 4}
  # one user may well ask again with other examples beside it
  one = _expand(shared("u1"), _set(0, user_id="u1"))
  by_split, _ = _clean(one, max_prompts_per_user=99)
  assert len(plain._all(by_split)) == 4 + 3


def _overlapping():
  """Sets that share some of their queries."""
  sets = []
  for number in range(80):
    row = _set(number % 20, 2 + number % 3)
    row["examples"].append(
        {"query": f"own {number % 25}", "response": f"r {number}"})
    sets.append(row | ({"user_id": f"u{number % 7}"} if number % 2 else {}))
  return _expand(*sets)


@pytest.mark.parametrize("make", [_many, _overlapping])
def test_order_and_a_second_cleaning_change_nothing(make):
  rows = make()
  once = plain._records(_clean(rows)[0])
  random.Random(1).shuffle(rows)
  assert plain._records(_clean(rows)[0]) == once
  again, report = _clean(plain._all(once))
  assert plain._records(again) == once and not report["dropped"]


def test_each_example_counts_for_the_cap():
  rows = _expand(*(_set(n, user_id="u") for n in range(3)))
  by_split, report = _clean(rows)
  assert len(plain._all(by_split)) == 3
  assert plain._dropped(report) == {"over_user_cap": 6}


def test_personal_data_of_one_example_takes_the_set_out_of_train():
  def mailed(number):
    row = _set(number)
    row["examples"][0]["response"] = "Ask ann@mail.example.org."
    return row

  by_split, report = _clean(_expand(*(mailed(n) for n in range(30))))
  assert not by_split["train"]
  assert report["dropped"].keys() == {"personal_data"}


def test_comparisons_of_a_set_stay_together_with_all_their_labelers():
  ranked = {"responses": ["a", "b"], "ranks": [1, 2]}
  rows = [
      row | ranked | {"labeler_id": f"l{k}"}
      for row in _expand(*(_set(n) for n in range(20)), kind="prompts")
      for k in range(2)
  ]
  by_split, report = _clean(rows, kind="comparisons")
  assert len(plain._all(by_split)) == 20 * 3 * 2 and not report["dropped"]
  assert all(len(of) == 1 for of in _splits_of_sets(by_split).values())


def test_where_a_prompt_is_from_makes_it_no_other_row():
  rows = [{"prompt": p, "response": r} for p in "pqrst" for r in "abcdefgh"]
  want = _clean(rows)[0]
  where = itertools.cycle([{"prompt_kind": "plain"}, {
      "prompt_kind": "user_based", "use_case": "A shop."}])
  marked = [row | more for row, more in zip(rows, where)]
  for kept, bare in zip(plain._all(_clean(marked)[0]), plain._all(want)):
    assert kept.record.items() > bare.record.items()
  _, report = _clean(rows + marked)
  assert plain._dropped(report) == {"duplicate_row": 5, "duplicate_prompt": 70}


def test_the_report_counts_the_kinds_of_each_split():
  fields = {"validation_fraction": 0.0, "test_fraction": 0.0}
  rows = _expand(_set(0, num_pairs=4))
  rows += [{"prompt": f"{n}", "response": "r"} for n in range(5)]
  rows += [{"prompt": "p", "response": "r", "prompt_kind": "plain"}]
  _, report = _clean(rows, **fields)
  assert report["prompt_kinds"] == {
      "train": {"customer": 5, "few_shot": 4, "plain": 1},
      "validation": {}, "test": {}}
  assert "prompt_kinds" not in _clean([{"text": "t"}], kind="pretrain")[1]
