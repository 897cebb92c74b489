"""A run's tokenizer in the files that other programs read.

They make of a text what `Tokenizer` makes of a prompt: the start first, where
the model has one, and nothing else added.
"""

import dataclasses
import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import models
from tokenizers import processors

from rlhf_jax.data.tokenizer import Tokenizer

# What others call padding.
_PADS = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>")
NEW_PAD = "<|pad|>"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokens and the special ones among them.

  Attributes:
    bpe: as saved; a text's ids are those of the run, the start included.
    end, start, pad: tokens; no start is "".
    padding_side: "left" or "right".
  """

  bpe: tokenizers.Tokenizer
  end: str
  start: str
  pad: str
  padding_side: str

  def id_of(self, token: str) -> int:
    return self.bpe.token_to_id(token)

  @property
  def ids(self) -> dict[str, int]:
    """As every config names them. Without a start, the end stands for it, as
    in GPT-2: for programs that ask for one, and never put before a text."""
    return {"bos_token_id": self.id_of(self.start or self.end),
            "eos_token_id": self.id_of(self.end),
            "pad_token_id": self.id_of(self.pad)}


def of_policy(tokenizer: Tokenizer) -> Vocabulary:
  """Padding is the tokenizer's own or the end: one more row would change what
  the policy predicts. It is on the left, for responses follow."""
  bpe = _as_in_the_run(tokenizer)
  return Vocabulary(bpe, tokenizer.end, tokenizer.start,
                    _own_pad(tokenizer) or tokenizer.end, "left")


def of_reward_model(tokenizer: Tokenizer) -> Vocabulary:
  """Padding is no end: scores are read at the last token that is no padding.
  It is on the right, for classifiers count positions from the first column."""
  bpe = _as_in_the_run(tokenizer)
  pad = _own_pad(tokenizer)
  if pad is None:
    pad = NEW_PAD
    bpe.add_special_tokens([pad])
  return Vocabulary(bpe, tokenizer.end, tokenizer.start, pad, "right")


def _own_pad(tokenizer: Tokenizer) -> str | None:
  """A special token of the tokenizer's that is padding and not the end."""
  special = {token.content
             for token in tokenizer.bpe.get_added_tokens_decoder().values()
             if token.special}
  return next((pad for pad in _PADS if pad in special
               and pad not in (tokenizer.end, tokenizer.start)), None)


def _as_in_the_run(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
  """A copy whose own template adds what the run adds."""
  bpe = tokenizers.Tokenizer.from_str(tokenizer.bpe.to_str())
  start = [bpe.token_to_id(tokenizer.start)] if tokenizer.start else []
  plain = bpe.encode("a", add_special_tokens=False).ids
  if bpe.encode("a").ids != start + plain:
    template = f"{tokenizer.start} $A" if start else "$A"
    bpe.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B",
        special_tokens=[(tokenizer.start, start[0])] if start else [])
  return bpe


def chat_template(
    vocabulary: Vocabulary, prompt_suffix: str, response_prefix: str) -> str:
  """A Jinja template that writes one user message as the run's prompts, and
  with the assistant's after it as the texts that it learnt from.

  The prefix is part of a response: models write it themselves.
  """
  quoted = lambda text: json.dumps(text, ensure_ascii=False)
  return (
      "{%- if messages | length > 2 or messages[0]['role'] != 'user' or "
      "messages[-1]['role'] not in ('user', 'assistant') or "
      "messages[1:] and messages[1]['role'] != 'assistant' -%}"
      "{{- raise_exception('This model knows one user message, or one with "
      "the response to it: no system message, no further turns.') -}}"
      "{%- endif -%}"
      f"{{{{- {quoted(vocabulary.start)} + messages[0]['content'] + "
      f"{quoted(prompt_suffix)} -}}}}"
      "{%- for message in messages[1:] -%}"
      f"{{{{- {quoted(response_prefix)} + message['content'] + "
      f"{quoted(vocabulary.end)} -}}}}"
      "{%- endfor -%}")


def write(
    vocabulary: Vocabulary, folder: pathlib.Path, *, context_length: int,
    template: str) -> None:
  """Writes all files of the tokenizer."""
  (folder / "tokenizer.json").write_text(
      vocabulary.bpe.to_str(), encoding="utf-8")
  special = special_tokens(vocabulary)
  _write_json(folder / "special_tokens_map.json", special)
  settings = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "model_max_length": context_length,
      "padding_side": vocabulary.padding_side,
      "clean_up_tokenization_spaces": False,
      **special,
      "add_bos_token": bool(vocabulary.start),
      "chat_template": template,
  }
  _write_json(folder / "tokenizer_config.json", settings)
  if is_gpt2s(vocabulary.bpe):
    _write_pair(vocabulary.bpe, folder)


def special_tokens(vocabulary: Vocabulary) -> dict[str, str]:
  found = {"bos_token": vocabulary.start or vocabulary.end,
           "eos_token": vocabulary.end, "pad_token": vocabulary.pad}
  if unknown := getattr(vocabulary.bpe.model, "unk_token", None):
    found["unk_token"] = unknown
  return found


def is_gpt2s(bpe: tokenizers.Tokenizer) -> bool:
  """Whether vocab.json and merges.txt say all: GPT-2's way of cutting texts
  into words is not written there."""
  parts = json.loads(bpe.to_str())
  words = parts["pre_tokenizer"] or {}
  return (
      isinstance(bpe.model, models.BPE) and parts["normalizer"] is None
      and words.get("type") == "ByteLevel"
      and not words.get("add_prefix_space")
      and words.get("use_regex", True))


def _write_pair(bpe: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
  bpe.model.save(str(folder))  # merges.txt, and a vocab.json
  tokens = bpe.get_vocab(with_added_tokens=True)
  _write_json(folder / "vocab.json",
              dict(sorted(tokens.items(), key=lambda pair: pair[1])))


def _write_json(path: pathlib.Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n",
                  encoding="utf-8")
