"""Writes docs/configuration.md: `python docs/make_configuration.py`.

Keys and ranges are those that `rlhf_jax/config` checks, values those of the
experiments, explanations the comments of `experiments/common.py`.
"""

import ast
import io
import pathlib
import sys
import tokenize

ROOT = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))

# pylint: disable=wrong-import-position
from experiments import common, ppo_ptx
from rlhf_jax.config import keys, types

COMMON = ROOT / "experiments" / "common.py"
SIZES = ("mini", "1.3b")
_SHORT = {
    "a whole number of at most 2**53": "whole number",
    "None or a whole number of at most 2**53": "whole number or None",
    "a whole number from 0 to 2**32 - 1": "whole number from 0",
    "a finite number": "number",
    "text, without null characters and half surrogate pairs": "text",
    "a table of settings": "table",
    "anything": "",
}
# What no line of common.py has for itself.
_UNSAID = {
    "data": "copies of the parameters, each of its own part of the batch",
    "fsdp": "parts of parameters, optimizer and batch",
    "tensor": "parts of heads, MLPs and vocabulary",
    "learning_rate": "the peak",
    "final_fraction": "of the peak, at the end of the cosine",
    "warmup_steps": "to the peak, on a line",
}
_HEAD = """# Configuration

Every setting of an experiment, with its value in `experiments/ppo_ptx.py` (at
`mini` and `1.3b`) and what it may be. This page is written by
`docs/make_configuration.py` from [the presets](../experiments/common.py), whose
comments it repeats, and from the rules that check an experiment before anything
starts; do not edit it.

Any of them is set on the command line, as
`--config.ppo.method.kl_coef=0.05`, or in an experiment's file. Stages of later
rounds (`ppo@2`) have the keys of the first. An unknown key, a wrong value and a
combination that cannot be are refused with the way out, all at once.
"""


def page() -> str:
  """The Markdown of the page."""
  configs = [ppo_ptx.get_config(size) for size in SIZES]
  for size, config in zip(SIZES, configs):
    config.sft_select = common.sft_select(size)
  parts = [_HEAD, *_top(configs)]
  for title, names, path, functions, text in _SECTIONS:
    if title == "collect":
      parts.append(_language_models(configs))
    parts.append(f"## {title}\n\n{text}\n")
    parts.append(_table(names, path, functions, configs))
  return "\n".join(parts).rstrip() + "\n"


# Title, sub-trees of KEYS, path in the config, functions of common.py whose
# comments count (the first that has one), and what to say beforehand.
_SECTIONS = (
    ("model", ("model",), "model", ("model", ""),
     "The policy; `rm_model`, with the same keys, is the reward model and "
     "critic. [Import](interop.md#import) says what a checkpoint decides."),
    ("mesh", ("mesh",), "mesh", ("mesh",),
     "Devices along each axis; one may be -1, the rest. [Plans](plans.md) has "
     "which to take, and `axis_rules`."),
    ("decode", ("decode",), "decode", ("base",),
     "How responses are sampled: precision and places."),
    ("data", ("data",), "data", ("data",),
     "Sources and cleaning; [Data](data.md)."),
    ("smallworld", ("smallworld",), "smallworld", ("smallworld",),
     "How much of the built-in world; where no source is `smallworld` it plays "
     "no part."),
    ("labelers", ("labelers",), "labelers", ("labelers",),
     "Smallworld's labelers; standard deviations in gold-score units."),
    ("init", ("init",), "init", ("base",),
     "Checkpoints in Hugging Face's form to start from."),
    ("guards", ("guards.actions", "guards.limits"), "guards", ("guards",),
     "What each guard means: [Reliability](reliability.md#guards)."),
    ("collect", ("collect",), "collect", ("collect",),
     "Comparisons; [Labelers and rounds](labeling.md)."),
    ("rm", ("rm", "rm.optimizer"), "rm",
     ("rm", "language_model", "adam"),
     "The reward model; `judge` has the same keys."),
    ("sft_select", ("select",), "sft_select", ("sft_select",),
     "The SFT checkpoint of the best reward-model score."),
    ("ppo", ("ppo", "ppo.method", "ppo.optimizer", "ppo.critic_optimizer"),
     "ppo", ("ppo", "language_model", "adam"),
     "[The method](method.md#equation-2-the-objective-of-ppo-ptx)."),
    ("evaluate", ("evaluate",), "evaluate", ("evaluate",),
     "The stage at the end of a run; [Evaluations](evaluations.md) measures "
     "finished runs by more."),
)


def _top(configs):
  yield ("## The run\n")
  rows = []
  for key in ("name", "seed", "stages", "inputs", "axis_rules", "profile"):
    values = [config[key] for config in configs]
    if key == "inputs":
      values = ["`''` for each stage"] * 2
    rows.append((key, _comment(key, ("base",)), *map(_shown, values),
                 _may_be("", key)))
  yield _markdown(("setting", "what", *SIZES, "may be"), rows)


def _table(names, path, functions, configs) -> str:
  rows = []
  for name in names:
    inner = name.partition(".")[2]
    at = ".".join(filter(None, (path, inner)))
    for key in keys.keys_of(name):
      tables = [_at(config, at) for config in configs]
      if any(isinstance(table[key], dict) or hasattr(table[key], "to_dict")
             for table in tables):
        continue  # its own rows follow
      said = "" if name == "guards.actions" else _comment(key, functions)
      rows.append((f"{at}.{key}", said,
                   *(_shown(table[key]) for table in tables),
                   _may_be(name, key)))
  return _markdown(("setting", "what", *SIZES, "may be"), rows)


def _language_models(configs) -> str:
  """The three stages of trainers/lm.py, side by side."""
  stages = ("pretrain", "sft", "rl_init")
  rows = []
  for name in ("lm", "lm.optimizer"):
    inner = name.partition(".")[2]
    for key in keys.keys_of(name):
      if (name, key) == ("lm", "optimizer"):
        continue
      found = [[_shown(_at(config, ".".join(filter(None, (stage, inner))))[key])
                for config in configs] for stage in stages]
      rows.append((".".join(filter(None, (inner, key))),
                   _comment(key, ("sft", "language_model", "pretrain", "adam")),
                   *(a if a == b else f"{a}; {b}" for a, b in found),
                   _may_be(name, key)))
  return ("## pretrain, sft, rl_init\n\nThe stages that train language models; "
          "a setting is `STAGE.` and this name. Where sizes differ: `mini`; "
          "`1.3b`.\n\n"
          + _markdown(("setting", "what", *stages, "may be"), rows))


def _at(config, path):
  for part in path.split("."):
    config = config[part]
  return config


def _may_be(name: str, key: str) -> str:
  """Its sort and range."""
  found = types.sort_of(f"{name}.{key}", key)
  sort = _SHORT.get(found, found)
  limit = keys.range_of(name, key) if name else ""
  if limit.startswith(("one of", "None", "0 or 1", "(")):
    return limit  # says what sort it is
  return ", ".join(filter(None, (sort, limit)))


def _shown(value) -> str:
  if isinstance(value, str) and value.startswith("`"):
    return value
  if isinstance(value, float) and value != 0:
    value = float(f"{value:.4g}")
  return f"`{value!r}`"


def _markdown(head, rows) -> str:
  lines = [head, ["---"] * len(head),
           *([f"`{first}`", *rest] for first, *rest in rows)]
  return "".join(
      f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
      for line in lines)


def _comment(key: str, functions) -> str:
  """What common.py says beside a key or above it, in the first function that
  does; "" stands for what is outside of all."""
  for function in functions:
    if text := _COMMENTS.get((function, key)):
      return text
  return _UNSAID.get(key, "")


def _read_comments() -> dict[tuple[str, str], str]:
  source = COMMON.read_text()
  lines = source.splitlines()
  comments = {
      token.start[0]: token.string.lstrip("# ") for token in
      tokenize.generate_tokens(io.StringIO(source).readline)
      if token.type == tokenize.COMMENT}
  alone = {n for n in comments if lines[n - 1].lstrip().startswith("#")}
  found = {}
  for part in ast.parse(source).body:
    function = getattr(part, "name", "")
    for call in ast.walk(part):
      for keyword in getattr(call, "keywords", ()):
        is_table = isinstance(keyword.value, ast.Call)
        last = keyword.lineno if is_table else keyword.value.end_lineno
        text = [comments[n] for n in range(keyword.lineno, last + 1)
                if n in comments and n not in alone]
        above = keyword.lineno - 1
        while above in alone:
          text.insert(0, comments[above])
          above -= 1
        if text:
          found.setdefault((function, keyword.arg), " ".join(text))
  return found


_COMMENTS = _read_comments()


if __name__ == "__main__":
  (ROOT / "docs" / "configuration.md").write_text(page())
