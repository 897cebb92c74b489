"""The model card, README.md of an exported folder, from the run's own files."""

from collections.abc import Iterable, Iterator, Sequence
import json
import pathlib
import re
from typing import Any

import tabulate

from rlhf_jax import config as config_lib, recipe
from rlhf_jax.hf.exporting import Tensors
from rlhf_jax.hf.folder import SPEC
from rlhf_jax.hf.vocabulary import Vocabulary
from rlhf_jax.recipe import Source
from rlhf_jax.run import Run

_WHAT = {
    "pretrain": "A language model, pretrained",
    "sft": "A policy, fine-tuned on demonstrations (SFT)",
    "sft_select": "The SFT checkpoint whose samples a reward model prefers",
    "rl_init": "The policy that PPO starts from: fine-tuned on demonstrations "
               "with pretraining text among them",
    "ppo": "A policy trained by PPO against a reward model",
    "rm": "A reward model, trained on ranked responses",
    "judge": "A reward model, trained on ranked responses, to judge by",
}
# A name on the hub, and not a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def card(
    run: Run, source: Source, tensors: Tensors, vocabulary: Vocabulary
) -> str:
  """The whole text."""
  parts = [
      front_matter(run, source), introduction(run, source, tensors),
      *prompt_format(run, source, vocabulary), *measured(run, source),
      *how_it_was_made(run, source), *limits(run, source, tensors, vocabulary)]
  return "\n\n".join(parts) + "\n"


def front_matter(run: Run, source: Source) -> str:
  """What the hub reads. Values are JSON, which is YAML."""
  name = config_lib.name_of(source.stage)
  fields = {
      "library_name": "transformers",
      "pipeline_tag":
          "text-generation" if source.is_policy else "text-classification",
      "tags": ["rlhf", "instructgpt", "rlhf_jax",
               name if source.is_policy else "reward-model"],
  }
  if origin := hub_name(recipe.imported(run, source.stage)):
    fields["base_model"] = origin
  lines = (f"{key}: {json.dumps(value)}" for key, value in fields.items())
  return "\n".join(("---", *lines, "---"))


def hub_name(spec: str) -> str:
  """The name on the hub that config.init has, "" for a folder here."""
  name = spec.removeprefix(SPEC).partition("@")[0]
  if not _HUB_NAME.fullmatch(name) or pathlib.Path(name).is_dir():
    return ""
  return name


def introduction(run: Run, source: Source, tensors: Tensors) -> str:
  c, stage = tensors.c, source.stage
  which = "the trained parameters"
  if source.item == "ema":
    decay = recipe.settings_of(run, stage).get("method.ema_decay")
    which = "the average of the trained parameters (EMA" + (
        f", decay {recipe.shown(decay)})" if decay is not None else ")")
  return (
      f"# {run.config.name}: `{stage}`\n\n"
      f"{_WHAT[config_lib.name_of(stage)]}: {which} of the stage `{stage}` at "
      f"step {source.step:,}. Made with rlhf_jax, InstructGPT "
      "([Ouyang et al. 2022](https://arxiv.org/abs/2203.02155)) in JAX, as the "
      f"run `{run.config.name}`, seed {run.config.seed}.\n\n"
      f"{tensors.num_params:,} parameters in {tensors.dtype}: "
      f"{c.num_layers} layers of width {c.d_model}, {c.num_heads} heads, "
      f"{c.context_length:,} positions, {tensors.vocab_size:,} tokens; "
      f"`{tensors.family.ARCHITECTURES[tensors.last]}`.")


def prompt_format(
    run: Run, source: Source, vocabulary: Vocabulary) -> Sequence[str]:
  """How prompts and responses are written, and a program that does so."""
  data, quoted = run.config.data, lambda text: f"`{json.dumps(text)}`"
  prompt = [quoted(vocabulary.start)] * bool(vocabulary.start)
  prompt += ["the user's text"]
  prompt += [quoted(data.prompt_suffix)] * bool(data.prompt_suffix)
  response = [quoted(data.response_prefix)] * bool(data.response_prefix)
  response += ["its text", quoted(vocabulary.end)]
  text = (
      f"A prompt is {' + '.join(prompt)}; a response is "
      f"{' + '.join(response)}. The chat template writes one user message so"
      f"{'' if source.is_policy else ', and the response after it'}.")
  return "## Prompt format", text, _POLICY if source.is_policy else _SCORE


_POLICY = """```python
from transformers import pipeline

respond = pipeline("text-generation", model=".")  # this folder
messages = [{"role": "user", "content": "What is the weather like?"}]
print(respond(messages)[0]["generated_text"][-1]["content"])
```

`generation_config.json` samples as the run did."""

_SCORE = """```python
from transformers import pipeline

score = pipeline("text-classification", model=".")  # this folder
text = score.tokenizer.apply_chat_template([
    {"role": "user", "content": "What is the weather like?"},
    {"role": "assistant", "content": "It rains."},
], tokenize=False)
print(score(text, add_special_tokens=False)[0]["score"])
```

The score is a number of any size, read at the end token: higher is better.
Only differences between responses to one prompt were trained."""


def measured(run: Run, source: Source) -> Iterator[str]:
  """Figures of the run's files, and of which parameters they are."""
  yield "## What was measured"
  parts = list(_figures(run, source))
  yield from parts or ["Nothing of these parameters is on record."]


def _figures(run: Run, source: Source) -> Iterator[str]:
  if not source.is_result:
    yield ("What the run measured is of another checkpoint than that of step "
           f"{source.step:,}, and is not repeated here.")
    return
  if not source.is_policy:
    if rows := recipe.accuracies(run, source.stage):
      yield ("On the run's validation comparisons. Intervals are of 95 %, over "
             "n prompts.")
      yield table(rows)
    return
  for what, rows in recipe.evaluations(run, source):
    yield what + ("" if source.is_measured else (
        " **These figures are of the average of the parameters "
        f"(`{source.stage}:ema`), which is another model than this one.**"))
    yield table(rows)
  if rows := recipe.of_training(run, source.stage):
    yield "From `done.json` of the stage itself" + (
        ", of the parameters before they were averaged:"
        if source.item == "ema" else ":")
    yield table(rows)


def how_it_was_made(run: Run, source: Source) -> Iterator[str]:
  yield "## How it was made"
  yield "Stages:\n\n" + bullets(recipe.stages(run, source.stage))
  if spec := recipe.imported(run, source.stage):
    origin = hub_name(spec) or pathlib.Path(spec.removeprefix(SPEC)).name
    yield f"The weights started as those of `{origin}`."
  yield "Data:\n\n" + bullets(recipe.data(run, source.stage))


def limits(
    run: Run, source: Source, tensors: Tensors, vocabulary: Vocabulary
) -> Iterator[str]:
  yield "## Limits"
  yield bullets(_limits(run, source, tensors, vocabulary))


def _limits(run, source, tensors, vocabulary) -> Iterator[str]:
  data = run.config.data
  yield (f"Prompts had at most {data.max_prompt_tokens:,} tokens, responses "
         f"{data.max_response_tokens:,}; beyond that nothing was trained. "
         f"There are {tensors.c.context_length:,} positions.")
  yield ("One prompt and one response: no system message and no further turns "
         "but what a prompt itself contains.")
  yield (f"`{vocabulary.end}` inside a message is the end token to most "
         "programs, where the run took it for the characters it is.")
  if kinds := recipe.made_up(run, source.stage):
    yield (f"Smallworld, where {', '.join(kinds)} come from, is a made-up "
           "world, and its labelers are simulated.")
  if not source.is_policy:
    yield ("Padding is on the right: these classes count positions from the "
           "first column.")
  if tensors.dtype != "float32":
    yield (f"Trained in float32 and rounded to {tensors.dtype}; figures are "
           "of the parameters before.")


def bullets(lines: Iterable[str]) -> str:
  return "\n".join(f"- {line}" for line in lines)


def table(rows: Sequence[dict[str, Any]]) -> str:
  return tabulate.tabulate(
      rows, headers="keys", tablefmt="github", disable_numparse=True)
