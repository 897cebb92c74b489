"""The data rules of the paper, as laws over rows."""

import dataclasses
import itertools
import random
import time

import numpy as np
import pytest

from rlhf_jax.data import account
from rlhf_jax.data import cleaning
from rlhf_jax.data import personal

SETTINGS = cleaning.Settings(
    window=8,
    max_prompt_tokens=40,
    max_response_tokens=12,
    dedup_prefix_tokens=10,
    max_prompts_per_user=3,
    validation_fraction=0.2,
    test_fraction=0.2,
    prompt_suffix="",
    response_prefix="",
)


class Bytes:
  """A tokenizer whose tokens are bytes."""

  eos_id = 256
  start_ids = ()

  def encode_batch(self, texts):
    return [list(text.encode("utf-8")) for text in texts]


def _clean(kind, rows, **changes):
  settings = dataclasses.replace(SETTINGS, **changes)
  rows = [(row, f"f:{n + 1}") for n, row in enumerate(rows)]
  return cleaning.clean(kind, rows, Bytes(), settings)


def _records(by_split):
  return {s: [row.record for row in rows] for s, rows in by_split.items()}


def _all(by_split):
  return list(itertools.chain(*by_split.values()))


def _dropped(report):
  return {rule: entry["count"] for rule, entry in report["dropped"].items()}


def _many(kind, n=300, seed=0):
  """Rows that give every rule something to do."""
  rng = random.Random(seed)
  rows = []
  for _ in range(n):
    prompt = f"{rng.randrange(60):02d} asks for " + "x" * rng.randrange(30)
    prompt += rng.choice(["", "", " a.b@c.org"])
    row = {"prompt": prompt, "user_id": f"u{rng.randrange(40)}"}
    if rng.random() < 0.3:
      del row["user_id"]
    answers = ["y" * rng.randrange(1, 16) for _ in range(4)]
    if kind == "demonstrations":
      row["response"] = answers[0]
    if kind == "comparisons":
      ranks = [rng.randint(1, 3) for _ in answers]
      row |= {"responses": answers, "ranks": ranks}
    if kind == "pretrain":
      row = {"text": prompt}
    elif rng.random() < 0.7:
      row["category"] = rng.choice(["chat", "rewrite"])
    if rng.random() < 0.8:
      row["source"] = rng.choice("st")
    rows.append(row)
  return rows


KINDS = ("pretrain", "demonstrations", "comparisons", "prompts")


SEEDS = (0, 1, 2)


def _without_origins(report):
  for entry in report["dropped"].values():
    for example in entry["examples"]:
      del example["origin"]
  return report


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_the_order_of_rows(kind, seed, monkeypatch):
  monkeypatch.setattr(account, "_NUM_LANGUAGE_ROWS", 20)
  rows = _many(kind, seed=seed)
  by_split, want = _clean(kind, rows)
  random.Random(seed).shuffle(rows)
  again, report = _clean(kind, rows)
  assert _records(again) == _records(by_split)
  assert _without_origins(report) == _without_origins(want)
  assert list(report["dropped"]) == list(want["dropped"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_cleaning_twice_changes_nothing(kind, seed):
  once = _records(_clean(kind, _many(kind, seed=seed))[0])
  rows = _all(once)
  random.Random(seed).shuffle(rows)
  again, report = _clean(kind, rows)
  assert _records(again) == once
  assert not report["dropped"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_accounted_for(kind):
  by_split, report = _clean(kind, _many(kind))
  assert report["rows_in"] == 300
  assert report["rows_out"] == {s: len(rows) for s, rows in by_split.items()}
  out = sum(report["rows_out"].values())
  assert report["rows_in"] == out + sum(_dropped(report).values())
  for split, counts in report["categories"].items():
    assert sum(counts.values()) == report["rows_out"][split]
  assert all(1 <= len(e["examples"]) <= 3 for e in report["dropped"].values())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_user_and_no_prompt_is_in_two_splits(kind):
  by_split = _records(_clean(kind, _many(kind))[0])
  for name in ("user_id", "prompt"):
    seen = [{r[name] for r in rows if name in r} for rows in by_split.values()]
    assert all(seen)
    for a, b in itertools.combinations(seen, 2):
      assert not a & b


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_splits_stay_when_rows_are_added(kind, seed):
  rows = _many(kind, seed=seed)
  few = {repr(r.record): r.split for r in _all(_clean(kind, rows[:100])[0])}
  random.Random(seed).shuffle(rows)
  more = {repr(r.record): r.split for r in _all(_clean(kind, rows)[0])}
  common = few.keys() & more.keys()
  assert len(common) > 5
  assert all(few[key] == more[key] for key in common)


def test_a_user_has_at_most_the_cap_of_prompts():
  rows = [{"prompt": f"{n} is it", "user_id": "u"} for n in range(9)]
  rows += [{"prompt": f"{n} was it"} for n in range(9)]
  by_split, report = _clean("prompts", rows, dedup_prefix_tokens=0)
  users = [r.record.get("user_id") for r in _all(by_split)]
  assert users.count("u") == 3 and users.count(None) == 9
  assert _dropped(report) == {"over_user_cap": 6}


def test_the_cap_counts_prompts_not_comparisons():
  rows = [
      {"prompt": f"{n} is it", "user_id": "u", "responses": ["a", "b"],
       "ranks": [1, 2], "labeler_id": f"l{k}"}
      for n in range(4) for k in range(5)
  ]
  by_split, report = _clean("comparisons", rows)
  assert len(_all(by_split)) == 3 * 5
  assert _dropped(report) == {"over_user_cap": 5}


def test_long_common_prefixes_are_one_prompt_and_short_prompts_differ():
  prompts = ["0123456789", "0123456789a", "0123456789b", "012345678", "0123"]
  by_split, report = _clean("prompts", [{"prompt": p} for p in prompts])
  kept = {r.record["prompt"] for r in _all(by_split)}
  assert {"012345678", "0123"} < kept and len(kept) == 3
  assert _dropped(report) == {"duplicate_prompt": 2}


def test_rows_of_several_annotators_stay_together():
  row = {"prompt": "which one", "responses": ["a", "b"], "ranks": [1, 2]}
  rows = [row, row, row | {"labeler_id": "l1"}, row | {"labeler_id": "l2"}]
  rows += [row | {"labeler_id": "l1"}, row | {"user_id": "another"}]
  by_split, report = _clean("comparisons", rows)
  assert sum(bool(kept) for kept in by_split.values()) == 1
  dropped = _dropped(report)
  # The prompt belongs to one user, whichever has the smaller hash.
  if {r.record.get("user_id") for r in _all(by_split)} == {None}:
    assert dropped == {"duplicate_row": 1, "duplicate_prompt": 1}
  else:
    assert dropped == {"duplicate_prompt": 5}


def test_long_prompts_and_responses_are_dropped_with_the_suffix_and_end():
  rows = [
      {"prompt": "p" * 40, "response": "r"},
      {"prompt": "q" * 39, "response": "r"},
      {"prompt": "s", "response": "r" * 12},
      {"prompt": "t", "response": "r" * 11},
  ]
  by_split, report = _clean("demonstrations", rows, prompt_suffix="\n")
  kept = {r.record["prompt"][0]: r.tokens for r in _all(by_split)}
  assert kept.keys() == {"q", "t"}
  assert _dropped(report) == {"long_prompt": 1, "long_response": 1}
  assert len(kept["q"][0]) == 40 and kept["q"][0][-1] == ord("\n")
  assert len(kept["t"][1]) == 12 and kept["t"][1][-1] == Bytes.eos_id
  example = report["dropped"]["long_prompt"]["examples"]
  assert example == [{"origin": "f:1", "text": "p" * 40}]


def test_a_comparison_loses_long_responses_and_goes_with_too_few():
  long = "r" * 12
  rows = [
      ("p", [long, "b", "a", "b"], [1, 3, 2, 3]),
      ("q", [long, "a"], [1, 2]),
      ("s", ["a", long, "b"], [2, 1, 2]),
      ("t", ["a", "b"], [1, 1]),
  ]
  rows = [{"prompt": p, "responses": r, "ranks": k,
           "metadata": [{"of": text} for text in r]} for p, r, k in rows]
  by_split, report = _clean("comparisons", rows)
  (row,) = _all(by_split)
  assert row.record["responses"] == ["b", "a", "b"]
  assert [of["of"] for of in row.record["metadata"]] == ["b", "a", "b"]
  assert row.record["ranks"] == [2, 1, 2]
  assert [t.tolist() for t in row.tokens[1:]] == [
      [ord(r), Bytes.eos_id] for r in "bab"
  ]
  assert _dropped(report) == {"long_response": 1, "all_tied": 2}
  assert report["long_responses"] == 3


PRIVATE = (
    "Write to ann.lee+x@mail.example.org.",
    "Call 555-010-0199!", "Call (555) 010-0199.", "Call me at 555-0199.",
    "Ring +44 20 7946 0958", "Call me at 555-123-456.",
    "My card is 4111 1111 1111 1111.", "Card 4111111111111111",
    "Send it to 221 Baker Street.", "I live at 7 Old Mill Rd",
)
HARMLESS = (
    "The years 2001 2002 2003 2004.", "400-120-200=80 students",
    "It was 450,000-2000 dollars.", "Pi is 3.1415926535897932.",
    "I counted 12 sheep on the street.", "Send 3 copies @ noon.",
)


def test_personal_data_is_found():
  assert not [text for text in PRIVATE if not personal.find(text)]
  assert not [text for text in HARMLESS if personal.find(text)]


def test_personal_data_is_redacted_whole():
  for text in PRIVATE:
    hidden = personal.redact(text)
    assert personal.find(hidden) is None
    assert f"[{personal.find(text)}]" in hidden
    assert not any(c.isdigit() or c == "@" for c in hidden)
  assert [personal.redact(text) for text in HARMLESS] == list(HARMLESS)
  both = "a@b.org or 555-010-0199, 7 Old Mill Rd"
  assert personal.redact(both) == (
      "[e-mail address] or [phone number], [street address]"
  )


@pytest.mark.parametrize("part", ["a", "a.b", "a@", "5", "555-", "+1 22 ",
                                  "1 Abc ", "4111 "])
def test_long_texts_without_an_end_are_searched_in_linear_time(part):
  seconds = {}
  for length in (10**4, 10**5):
    text = part * (length // len(part))
    start = time.process_time()
    personal.find(text)
    seconds[length] = time.process_time() - start
  assert seconds[10**5] < 40 * seconds[10**4] + 0.1


def test_examples_show_no_personal_data():
  rows = [
      {"prompt": f"{n} " + "word " * 30 + "a@b.org", "response": "r"}
      for n in range(20)
  ]
  rows += [{"prompt": f"{n} is", "response": "a@b.org"} for n in range(20)]
  rows += [{"prompt": f"{n} is a@b.org", "response": "r"} for n in range(20)]
  _, report = _clean("demonstrations", rows, max_prompt_tokens=400)
  dropped = report["dropped"]["personal_data"]
  assert dropped["count"] > 3 and len(dropped["examples"]) == 3
  assert all("[e-mail address]" in e["text"] for e in dropped["examples"])
  _, report = _clean("demonstrations", rows, test_fraction=0.99,
                     max_prompt_tokens=1)
  assert "b.org" not in str(report["dropped"])
  assert all(len(e["text"]) <= 80 for entry in report["dropped"].values()
             for e in entry["examples"])


def test_personal_data_is_dropped_from_the_train_split_only():
  rows = [{"prompt": f"{n} a@b.org", "user_id": f"u{n}"} for n in range(50)]
  rows += [{"prompt": f"{n} plain", "user_id": f"u{n}"} for n in range(50)]
  by_split, report = _clean("prompts", rows)
  has_mail = {
      split: any("@" in row.record["prompt"] for row in kept)
      for split, kept in by_split.items()
  }
  assert has_mail == {"train": False, "validation": True, "test": True}
  in_train = sum("plain" in r.record["prompt"] for r in by_split["train"])
  assert _dropped(report) == {"personal_data": in_train}


def test_a_long_prompt_with_personal_data_counts_as_that():
  rows = [{"prompt": f"{n} a@b.org " + "word " * 200, "user_id": f"u{n}"}
          for n in range(50)]
  by_split, report = _clean("prompts", rows)
  assert not _all(by_split)
  dropped = _dropped(report)
  assert set(dropped) == {"personal_data", "long_prompt"}
  assert dropped["personal_data"] > dropped["long_prompt"] > 0


def test_length_statistics():
  rows = [{"prompt": "p" * n} for n in (1, 2, 3, 10)]
  changes = {"validation_fraction": 0.0, "test_fraction": 0.0}
  by_split, report = _clean("prompts", rows, **changes)
  assert report["tokens"] == {
      "train": {"prompt": {
          "count": 4, "mean": 4.0, "std": 4.1, "min": 1, "p25": 1.75,
          "p50": 2.5, "p75": 4.75, "max": 10}},
      "validation": {},
      "test": {},
  }
  assert by_split["train"][0].tokens[0].dtype == np.int32


def test_lengths_of_each_category_and_source():
  rows = [{"prompt": "p" * n, "response": "r" * (n // 2),
           "category": "chat" if n < 4 else "rewrite",
           "source": "people"} for n in (2, 4, 6)]
  rows.append({"prompt": "q", "response": "r"})
  _, report = _clean("demonstrations", rows)
  means = lambda groups: {
      name: {of: (n["count"], n["mean"]) for of, n in fields.items()}
      for name, fields in groups.items()
  }
  assert means(report["tokens_by_category"]) == {
      "rewrite": {"prompt": (2, 5.0), "response": (2, 3.5)},
      "chat": {"prompt": (1, 2.0), "response": (1, 2.0)},
      "none": {"prompt": (1, 1.0), "response": (1, 2.0)},
  }
  assert means(report["tokens_by_source"]) == {
      "people": {"prompt": (3, 4.0), "response": (3, 3.0)},
      "none": {"prompt": (1, 1.0), "response": (1, 2.0)},
  }


def test_rare_sources_are_counted_together():
  rows = [{"prompt": f"{n}", "source": f"url{max(n, 9)}"} for n in range(90)]
  _, report = _clean("prompts", rows)
  by_source = report["tokens_by_source"]
  assert len(by_source) == 51
  assert next(iter(by_source)) == "url9"
  assert by_source["url9"]["prompt"]["count"] == 10
  assert by_source[account.OTHER_GROUPS]["prompt"]["count"] == 31
  assert _clean("prompts", [{"prompt": "p"}])[1]["tokens_by_source"] == {}


def test_prompts_of_a_user():
  pair = {"responses": ["a", "b"], "ranks": [1, 2]}
  rows = [pair | {"prompt": f"{n}", "user_id": f"u{n % 2}", "labeler_id": who}
          for n in range(5) for who in "ab"]
  rows.append(pair | {"prompt": "nobody's"})
  changes = {"validation_fraction": 0.0, "test_fraction": 0.0}
  _, report = _clean("comparisons", rows, **changes)
  assert report["users"]["train"] == {"users": 2, "prompts_per_user": 2.5}
  assert report["users"]["test"] == {"users": 0, "prompts_per_user": 0.0}


def test_the_share_of_languages_in_what_comes_in():
  english = "Write a short story about a fisherman and his daughter, please"
  german = "Bitte schreibe eine kurze Geschichte über die Tochter des Fischers"
  rows = [{"prompt": f"{english if n % 4 else german} {n}"} for n in range(80)]
  _, report = _clean("prompts", rows)
  assert report["rows_out"]["train"] == 0  # All are too long here.
  assert report["languages"] == {
      "sampled": 80, "shares": {"en": 0.75, "de": 0.25}}


def test_a_bounded_number_of_texts_is_asked_for_its_language(monkeypatch):
  monkeypatch.setattr(account, "_NUM_LANGUAGE_ROWS", 7)
  _, report = _clean("pretrain", _many("pretrain"))
  assert report["languages"]["sampled"] == 7


def test_what_tokenises_to_nothing_is_dropped():
  class Deaf(Bytes):
    def encode_batch(self, texts):
      return [[] for _ in texts]

  rows = [({"prompt": "p", "response": "r"}, "f:1")]
  by_split, report = cleaning.clean("demonstrations", rows, Deaf(), SETTINGS)
  assert not _all(by_split) and _dropped(report) == {"empty": 1}


def test_a_start_stands_before_prompts_only():
  class Starting(Bytes):
    start_ids = (257,)

  rows = [({"prompt": "p", "response": "r"}, "f:1")]
  by_split, _ = cleaning.clean("demonstrations", rows, Starting(), SETTINGS)
  (row,) = _all(by_split)
  prompt, response = row.tokens
  assert list(prompt) == [257, ord("p")] and list(response) == [ord("r"), 256]
