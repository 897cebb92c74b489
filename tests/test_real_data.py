"""Every file of a data folder, read and prepared as a run would, accounted for.

  RLHF_JAX_DATA=DIR python -m pytest tests/test_real_data.py -s

DIR holds comparisons/, demonstrations/, prompts/ and pretrain/ with
`*.jsonl.gz` in the schemas of rlhf_jax/data/records.py, perhaps evals/ with
JSON lines of any fields, and gpt2_bpe/ with GPT-2's encoder.json and vocab.bpe.
Without it the same tests run on the small files beside these tests.
"""

import collections
import dataclasses
import functools
import gzip
import itertools
import json
import os
import pathlib

import numpy as np
import pytest

from rlhf_jax.data import (
    batches, cleaning, prepare, records, sources, splits, tokenizer,
)

FIXTURES = pathlib.Path(__file__).parent / "data" / "fixtures"
FOLDER = os.environ.get("RLHF_JAX_DATA", "")
# So generous that no file loses a row to them.
SETTINGS = cleaning.Settings(
    window=1024,
    max_prompt_tokens=12_288,  # whole stories of up to 10,111
    max_response_tokens=4_096,
    dedup_prefix_tokens=0,
    max_prompts_per_user=200,
    validation_fraction=0.15,
    test_fraction=0.15,
    prompt_suffix="\n",
    response_prefix=" ",
)
# What the collection's own account says: rows; responses a row, from least to
# most; rows with a tie; and whether some rows are nothing but a tie.
COMPARISONS = {
    "hh_harmless_base": (1708, 2, 2, 0, False),
    "hh_helpful_base": (1760, 2, 2, 0, False),
    "hh_helpful_online": (852, 2, 2, 0, False),
    "hh_helpful_rejection_sampled": (2012, 2, 2, 0, False),
    "oasst_sample_ranked": (162, 2, 9, 0, False),
    "qa_feedback": (343, 4, 4, 120, True),
    "pandalm_testset": (2066, 2, 2, 197, True),
    "autoj_testdata": (1046, 2, 2, 275, True),
    "llmbar": (665, 2, 2, 0, False),
    "summeval_ranked": (75, 13, 16, 75, False),
    "summary_factuality_rank19": (281, 2, 2, 0, False),
    "squality_human_eval": (240, 3, 3, 10, False),
    "topical_chat_usr": (44, 6, 6, 32, False),
    "e2e_nlg_quality": (2299, 2, 5, 2065, True),
    "news_summary_writer_vs_model": (437, 2, 2, 86, True),
    "hhh_438": (333, 2, 2, 0, False),
    "lfqa_experts": (187, 2, 2, 0, False),
}
NUM_ROWS = {name: facts[0] for name, facts in COMPARISONS.items()} | {
    "oasst_sample": 189, "qa_feedback_corrected": 352,
    "news_summaries_by_writers": 220, "self_instruct_seed": 134,
    "nlp_tasks_t0_templates": 2020, "gsm8k_train": 5641, "mbpp": 745,
    "dolly_small": 123, "writing_prompts_hanna": 73,
    "nlp_tasks_t0_prompts": 501, "oasst_prompt_lottery": 256,
    "koala_test": 125, "vicuna_mt_bench": 126, "awesome_chatgpt_prompts": 127,
    "tldr_and_toxicity_contexts": 147,
    "gutenberg_books": 1009, "squality_stories": 146, "wikitext2": 119,
    "tinyshakespeare": 86, "us_presidents": 228,
}


@dataclasses.dataclass(frozen=True)
class File:
  kind: str
  path: pathlib.Path

  @property
  def name(self) -> str:
    return self.path.name.partition(".")[0]


def files(folder: pathlib.Path, names) -> list[File]:
  """All below the folders that are named like kinds."""
  return [File(name, path) for name in names
          for path in sorted((folder / name).glob("*.jsonl*"))]


def all_files(*names):
  """One parameter a file: the fixtures, and what DIR has."""
  found = files(pathlib.Path(FOLDER), names) if FOLDER else []
  assert found or not FOLDER or names == ("evals",), (
      f"RLHF_JAX_DATA={FOLDER} has no {names}/*.jsonl*")
  found += [File(kind, FIXTURES / f"{kind}.jsonl") for kind in records.KINDS
            if names != ("evals",) or kind == "prompts"]
  return pytest.mark.parametrize(
      "file", found, ids=[f"{f.path.parent.name}-{f.name}" for f in found])


@functools.cache
def made_tokenizer() -> tokenizer.Tokenizer:
  """GPT-2's where it is at hand."""
  folder = pathlib.Path(FOLDER) / "gpt2_bpe"
  if FOLDER and folder.is_dir():
    return tokenizer.load(f"{folder}/encoder.json,{folder}/vocab.bpe")
  texts = [row["text"] for row in raw(FIXTURES / "pretrain.jsonl")]
  return tokenizer.train(texts, 400)


def raw(path: pathlib.Path) -> list[dict]:
  """The rows of a file, read without any code of ours."""
  opener = gzip.open if path.suffix == ".gz" else open
  with opener(path, "rt", encoding="utf-8") as f:
    return [json.loads(line) for line in f]


def settings_for(file: File) -> cleaning.Settings:
  """Short windows for short texts."""
  return dataclasses.replace(
      SETTINGS, window=16 if file.path.parent == FIXTURES else SETTINGS.window)


def prepared(file: File, folder: pathlib.Path):
  """(report, split -> rows) of one file."""
  source = f"jsonl:{file.path.name}"
  root = str(file.path.parent)
  report = prepare.prepare(
      file.kind,
      source_rows=sources.read(source, file.kind, root=root),
      source=sources.fingerprint(source, root=root), out_dir=str(folder),
      tokenizer=made_tokenizer(), settings=settings_for(file), root=root)
  return report, {
      split: list(prepare.open_split(str(folder), file.kind, split))
      for split in splits.SPLITS}


def dropped(report, *rules) -> int:
  return sum(entry["count"] for rule, entry in report["dropped"].items()
             if not rules or rule in rules)


@all_files(*records.KINDS)
def test_a_file_goes_through_whole(file, tmp_path):
  rows = raw(file.path)
  report, by_split = prepared(file, tmp_path)
  print(f"\n{file.path.name}\n{prepare.format_report(report)}")
  assert report["rows_in"] == len(rows)
  assert len(rows) == dropped(report) + sum(report["rows_out"].values())
  assert not dropped(report, "long_prompt", "long_response", "empty")
  if file.path.parent != FIXTURES:
    assert len(rows) == NUM_ROWS.get(file.name, len(rows))
  if file.kind == "pretrain":
    check_windows(rows, by_split, report, settings_for(file))
    return
  check_splits(by_split)
  check_texts(file.kind, rows, by_split)
  if file.kind == "comparisons":
    check_facts(file, rows)
    check_ties(rows, by_split, report)
    # several people's rows of a prompt, or several answers', all stay
    assert not dropped(report, "duplicate_row", "duplicate_prompt")
    check_blocks([row for of in by_split.values() for row in of])


def check_splits(by_split):
  """No prompt and no user is in two splits."""
  for a, b in itertools.combinations(by_split.values(), 2):
    for name in ("prompt", "user_id"):
      values = {row.get(name) for row in a} & {row.get(name) for row in b}
      assert values <= {"", None}


def check_texts(kind, rows, by_split):
  """What is kept is what was there, byte for byte, and so are its tokens."""
  left = collections.Counter(content(kind, row) for row in rows)
  decode = made_tokenizer().decode
  for row in itertools.chain(*by_split.values()):
    key = content(kind, row)
    left[key] -= 1
    assert left[key] >= 0, f"more often than in the file: {key}"
    assert decode(row["prompt_tokens"]) == row["prompt"] + "\n"
    texts, tokens = row.get("responses"), row.get("response_tokens")
    if kind == "demonstrations":
      texts, tokens = [row["response"]], [tokens]
    for text, ids in zip(texts or (), tokens or (), strict=True):
      assert ids[-1] == made_tokenizer().eos_id
      assert decode(ids) == " " + text


def content(kind, row):
  """All that a row of the file or of a split says, names made the same."""
  fields = {
      "prompt": row["prompt"],
      "response": row.get("response"),
      "responses": row.get("responses"),
      "ranks": [int(rank) for rank in row.get("ranks", ())],
      "source": row.get("source"),
      "category": (row.get("category") or row.get("scenario")
                   or row.get("domain")),
  }
  if kind != "prompts":
    fields["labeler"] = row.get("labeler_id") or row.get("labeler")
  return json.dumps({k: v or None for k, v in fields.items()})


def check_facts(file, rows):
  """The file is what its collection says."""
  for row in rows:
    assert set(row["ranks"]) == set(range(1, max(row["ranks"]) + 1))
    assert len(row["ranks"]) == len(row["responses"])
  if file.name not in COMPARISONS or file.path.parent == FIXTURES:
    return
  _, fewest, most, with_tie, some_all_tied = COMPARISONS[file.name]
  sizes = [len(row["ranks"]) for row in rows]
  assert (min(sizes), max(sizes)) == (fewest, most)
  assert with_tie == sum(
      len(set(row["ranks"])) < len(row["ranks"]) for row in rows)
  assert some_all_tied == any(map(is_tied, rows))


def is_tied(row) -> bool:
  return len(set(row["ranks"])) == 1


def check_ties(rows, by_split, report):
  """Only rows without any order go for it, and each of them does."""
  kept = list(itertools.chain(*by_split.values()))
  assert not any(is_tied({"ranks": row["ranks"].tolist()}) for row in kept)
  tied = sum(map(is_tied, rows))
  others = dropped(report) - dropped(report, "all_tied")
  assert tied - others <= dropped(report, "all_tied") <= tied
  assert report["long_responses"] == 0


def check_blocks(rows):
  """Blocks of whole prompts hold every untied pair, and no other, once."""
  lengths = [len(row["prompt_tokens"]) + max(map(len, row["response_tokens"]))
             for row in rows]
  most = max(len(row["ranks"]) for row in rows)
  assert most <= 16
  examples = batches.comparison_examples(
      rows, None, length=max(lengths), num_rows=most, max_prompts=4,
      max_responses=most, pad_id=made_tokenizer().pad_id)
  found = collections.Counter()
  for number in range(len(examples)):
    block = examples[number]
    ends = block["tokens"].reshape(-1)[block["last_token"]]
    assert (ends[block["response_mask"]] == made_tokenizer().eos_id).all()
    found.update(
        tuple(ranks[is_real].tolist()) for ranks, is_real
        in zip(block["ranks"], block["response_mask"]) if is_real.any())
  want = collections.Counter(tuple(row["ranks"].tolist()) for row in rows)
  assert found == want
  num_pairs = sum(map(untied, want.elements()))
  assert len(batches.untied_pairs(rows, 0)) == num_pairs > 0
  print(f"\n{len(rows)} prompts, {num_pairs} untied pairs, K up to {most}, "
        f"{len(examples)} blocks of {most} x {max(lengths)} tokens")


def untied(ranks) -> int:
  return sum(a != b for a, b in itertools.combinations(ranks, 2))


def check_windows(rows, by_split, report, settings):
  """The texts of the windows are those of the file, whole and in a line."""
  texts = collections.Counter(row["text"] for row in rows)
  end = made_tokenizer().eos_id
  assert sum(report["rows_out"].values()) == len(texts)  # each text once
  for split, windows in by_split.items():
    assert len(windows) == report["windows"][split]
    if not windows:
      continue
    stream = np.concatenate([window["tokens"] for window in windows])
    assert len(stream) == len(windows) * settings.window
    whole = np.split(stream, np.flatnonzero(stream == end) + 1)[:-1]
    num_out = report["rows_out"][split]
    assert len(whole) <= num_out
    if report["tokens_left"][split] == 0:
      assert len(whole) == num_out
    for ids in whole:
      text = made_tokenizer().decode(ids)
      texts[text] -= 1
      assert texts[text] >= 0


@all_files("evals")
def test_a_file_of_an_evaluation_is_lines_of_objects(file):
  rows = [row for row, _ in sources.json_lines(str(file.path))]
  assert rows == raw(file.path)
  assert all(isinstance(row, dict) and row for row in rows)
