"""One text in every place that a stranger can fill, used as a run would."""

import json
import pathlib

from rlhf_jax import collect, handoff, metrics
from rlhf_jax.data import cleaning
from rlhf_jax.data import prepare as prepare_lib
from rlhf_jax.data import sources
from rlhf_jax.data import splits
from rlhf_jax.data import tokenizer as tokenizer_lib

# Texts that some reader of some format would run.
CODE = (
    "__import__('os').system('touch pwned')",
    "cos\nsystem\n(S'touch pwned'\ntR.",  # a pickle
    "\x80\x04\x95\x00", "!!python/object/apply:os.system ['touch pwned']",
    "{{ 7 * 7 }} ${7 * 7} $(touch pwned) `touch pwned`", "%(x)s {0.__class__}",
)
# Texts that would lead a path elsewhere.
PATHS = (
    "../../pwned", "/pwned-at-the-root", "/etc/pwned", "a/pwned", "..", ".",
    "nul\x00pwned", "x" * 5000, "..\\..\\pwned", "\u2025/\u2025/pwned",
    "\uff0e\uff0e\uff0fpwned", "%2e%2e%2fpwned", "~/pwned", "$HOME/pwned",
    "pwned\n../pwned", "gs://pwned/pwned", "file:///pwned", "-rf", "CON",
    "pwned\u202egnp",
)
_SETTINGS = cleaning.Settings(
    window=2, max_prompt_tokens=20_000, max_response_tokens=20_000,
    dedup_prefix_tokens=0, max_prompts_per_user=9, validation_fraction=0.0,
    test_fraction=0.0, prompt_suffix="", response_prefix="")


def rows(text: str) -> dict[str, list[dict]]:
  """Kind -> rows with `text` in each field that may have it."""
  ids = dict.fromkeys(
      ("user_id", "labeler_id", "category", "source", "use_case",
       "few_shot_set"), text)
  few_shot = ids | {
      "prompt_kind": "few_shot", "instruction": text, "examples": [
          {"query": text, "response": text},
          {"query": f"{text} again", "response": text}]}
  return {
      "pretrain": [{"text": text, "source": text}],
      "demonstrations": [
          ids | {"prompt": text, "response": text}, few_shot],
      "comparisons": [ids | {
          "prompt": text, "responses": [text, "b"], "ranks": [1, 2],
          "labeler_group": text, "metadata": [{text: text}, {}]}],
      "prompts": [
          ids | {"prompt": text, "prompt_kind": "user_based"}, few_shot],
  }


def use_everything(folder, text: str) -> None:
  """Prepares, opens, hands out, takes back and logs `text`, all in `folder`."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  tokenizer_lib.train([text, "a b c"] * 3, 270).save(
      str(folder / "tokenizer.json"))
  tokenizer = tokenizer_lib.load(str(folder / "tokenizer.json"))
  for kind, own in rows(text).items():
    path = folder / f"{kind}.jsonl"
    _write_lines(path, own)
    report = prepare_lib.prepare(
        kind, source_rows=sources.read(f"jsonl:{path}", kind),
        source=sources.fingerprint(f"jsonl:{path}"),
        out_dir=str(folder / "prepared"), tokenizer=tokenizer,
        settings=_SETTINGS)
    prepare_lib.format_report(report)
    assert open_all(folder, kind)
  _hand_out_and_take_back(folder, text)
  writer = metrics.Writer(folder / "log")
  writer.write("sft", 0, {"loss": 1.0})
  writer.close()
  assert metrics.read(folder / "log", "sft")


def open_all(folder, kind: str) -> list[dict]:
  """The rows of a kind as prepared."""
  return [row for split in splits.SPLITS
          for row in prepare_lib.open_split(
              str(pathlib.Path(folder) / "prepared"), kind, split)]


def _hand_out_and_take_back(folder: pathlib.Path, text: str) -> None:
  task = collect.Task(number=0, split="train", row={}, num_responses=2,
                      groups=("train",))
  asked = handoff.make_tasks(
      "collect", [task], [{"prompt": text, "responses": [text, "b"]}])
  asked[0]["task_id"] = text
  _write_lines(folder / "tasks.jsonl", asked)
  _write_lines(folder / "roster.jsonl",
               [{"labeler_id": text, "group": "train"}])
  _write_lines(folder / "ranked.jsonl",
               [asked[0] | {"labeler_id": text, "ranks": [1, 2]}])
  roster = handoff.read_roster(str(folder / "roster.jsonl"))
  assert handoff.read_ranked(
      str(folder / "ranked.jsonl"), asked, roster)[text].labeler_id == text


def _write_lines(path: pathlib.Path, own) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in own))


