"""How long it takes, and how much memory, to clean and prepare prompts.

  python -m benchmarks.prepare_prompts --sizes=10000,100000,1000000

writes made-up prompts with user ids to JSON lines: some nearly equal, some
with private data, some too long. A tokenizer is trained on more of the kind.
Each size is then read, cleaned and stored in a process of its own, as a run
does it. Prints a table, and appends one line a size to `--out` as JSON.
"""

from collections.abc import Iterator
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import tabulate

from benchmarks import timing
from rlhf_jax.data import cleaning
from rlhf_jax.data import prepare
from rlhf_jax.data import sources
from rlhf_jax.data import tokenizer as tokenizer_lib

_SIZES = flags.DEFINE_list(
    "sizes", ["10000", "100000", "1000000"], "numbers of prompts")
_FOLDER = flags.DEFINE_string("folder", "", "scratch; '' for a temporary one")
_OUT = flags.DEFINE_string("out", "", "file for JSON lines; '' for none")

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_VOCAB_SIZE = 50_257  # GPT-2's, if the made-up words have that many pairs.
_NUM_TOKENIZER_ROWS = 20_000
_SETTINGS = cleaning.Settings(  # The paper's limits.
    window=2048,
    max_prompt_tokens=1024,
    max_response_tokens=1024,
    dedup_prefix_tokens=48,
    max_prompts_per_user=200,
    validation_fraction=0.1,
    test_fraction=0.1,
    prompt_suffix="",
    response_prefix="",
)

_WORDS = (
    "the of and to a in is that for it as with on be was are this by from you"
    " have not they or an at which one their what can all we there if more"
    " about when who will would some so these into time them has her other"
    " than up out people like only new its over could after also made way many"
    " then first any my now such our even most write story explain summarize"
    " translate list give short long example question answer following text"
    " sentence paragraph email letter poem product review company customer"
    " describe difference between reasons idea ideas name names title article"
    " children school teacher science history water energy market price city"
    " country language computer program function code python table number"
    " classify positive negative sentiment rewrite formal friendly topic key"
    " points step recipe dinner garden travel plan week morning music film"
).split()
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PRIVATE = (
    "Write to {0}.{1}@example.org.",
    "Call me at 555-{2:03d}-{3:04d}.",
    "I live at {2} {0} Street.",
    "My card is 4{2:03d} {3:04d} 1111 1111.",
)


def prompts(num_rows: int, seed: int = 0) -> Iterator[dict[str, str]]:
  """Rows of about 50 tokens (300 bytes) each, some of which every rule drops.

  Of a hundred prompts about eight begin like an earlier one, three hold
  something private and one in five hundred is too long. Users send from one
  to several hundred.
  """
  rng = random.Random(seed)
  num_users = max(1, num_rows // 20)
  earlier = ["the"]
  for index in range(num_rows):
    length = min(400, int(rng.lognormvariate(3.3, 0.8)) + 3)
    if rng.random() < 0.002:
      length = 1500
    words = rng.choices(_WORDS, k=length)
    for place in range(rng.randrange(4), length, 4):  # Rare words and names.
      words[place] = "".join(rng.choices(_LETTERS, k=5))
    text = " ".join(words).capitalize() + "."
    if rng.random() < 0.03:
      text += " " + rng.choice(_PRIVATE).format(
          words[0].capitalize(), words[-1], rng.randrange(1000),
          rng.randrange(10_000))
    if rng.random() < 0.08:
      text = rng.choice(earlier) + rng.choice(["", " " + words[0]])
    elif len(earlier) < 1000:
      earlier.append(text)
    else:
      earlier[index % 1000] = text
    user = int(num_users * rng.random() ** 2)  # Some send far more.
    yield {"prompt": text, "user_id": f"user-{user:06d}",
           "category": rng.choice(["generation", "open_qa", "chat", "rewrite"])}


def write_prompts(path: str, num_rows: int) -> None:
  with open(path, "w", encoding="utf-8") as f:
    for row in prompts(num_rows):
      f.write(json.dumps(row) + "\n")


def measure(path: str, tokenizer_path: str, out_dir: str) -> dict[str, Any]:
  """Prepares the file's prompts in a fresh process; what that took.

  Returns:
    Seconds of wall time and of processor time, peak memory in MB, and the
    numbers of rows in and out.
  """
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  start = time.perf_counter()
  finished = subprocess.run(
      [sys.executable, "-m", "benchmarks.prepare_prompts", "--",
       path, tokenizer_path, out_dir],
      check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return json.loads(finished.stdout) | {
      "seconds": round(seconds, 2),
      "cpu_seconds": round(
          after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
          2),
  }


def _prepare(path: str, tokenizer_path: str, out_dir: str) -> dict[str, Any]:
  """What the fresh process does."""
  source = f"jsonl:{path}"
  report = prepare.prepare(
      "prompts",
      source_rows=sources.read(source, "prompts"),
      source=sources.fingerprint(source),
      out_dir=out_dir,
      tokenizer=tokenizer_lib.load(tokenizer_path),
      settings=_SETTINGS,
  )
  return {
      "rows": report["rows_in"],
      "rows_out": sum(report["rows_out"].values()),
      "peak_mb": round(timing.peak_bytes() / 1e6),
  }


def run(sizes: list[int], folder: str) -> list[dict[str, Any]]:
  """Measures each size, with files in `folder`; prints each as it comes."""
  folder = os.path.abspath(folder)
  tokenizer_path = os.path.join(folder, "tokenizer.json")
  sample = (row["prompt"] for row in prompts(_NUM_TOKENIZER_ROWS, seed=1))
  tokenizer_lib.train(sample, _VOCAB_SIZE).save(tokenizer_path)
  results = []
  for size in sizes:
    path = os.path.join(folder, f"prompts_{size}.jsonl")
    write_prompts(path, size)
    with tempfile.TemporaryDirectory(dir=folder) as out_dir:
      found = measure(path, tokenizer_path, out_dir)
    found["file_mb"] = round(os.path.getsize(path) / 1e6, 1)
    os.remove(path)
    print(json.dumps(found), flush=True)
    results.append(found)
  return results


def format_results(results: list[dict[str, Any]]) -> str:
  table = [
      {
          "rows": r["rows"],
          "file MB": r["file_mb"],
          "rows out": r["rows_out"],
          "seconds": r["seconds"],
          "CPU seconds": r["cpu_seconds"],
          "rows/s": round(r["rows"] / r["seconds"]),
          "peak MB": r["peak_mb"],
      }
      for r in results
  ]
  return tabulate.tabulate(table, headers="keys")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    print(json.dumps(_prepare(*argv[1:])))
    return
  with tempfile.TemporaryDirectory(dir=_FOLDER.value or None) as folder:
    results = run([int(size) for size in _SIZES.value], folder)
  print(format_results(results))
  if _OUT.value:
    with open(_OUT.value, "a", encoding="utf-8") as f:
      f.writelines(json.dumps(r) + "\n" for r in results)


if __name__ == "__main__":
  app.run(main)
