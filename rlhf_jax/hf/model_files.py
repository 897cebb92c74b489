"""config.json and generation_config.json of a model of ours."""

import json
import pathlib
from typing import Any

from rlhf_jax.hf.exporting import Tensors
from rlhf_jax.hf.folder import CONFIG
from rlhf_jax.hf.vocabulary import Vocabulary

_REWARD = "reward"


def write(
    tensors: Tensors, vocabulary: Vocabulary, folder: pathlib.Path, *,
    temperature: float, max_new_tokens: int) -> None:
  """Writes both; only policies generate."""
  _write_json(folder / CONFIG, config(tensors, vocabulary))
  if tensors.last == "policy":
    _write_json(folder / "generation_config.json", generation_config(
        vocabulary, temperature=temperature, max_new_tokens=max_new_tokens))


def config(tensors: Tensors, vocabulary: Vocabulary) -> dict[str, Any]:
  """What a program needs to build the model that the tensors fill."""
  family = tensors.family
  fields = family.fields_of(tensors.c) | {
      "vocab_size": tensors.vocab_size,
      "model_type": family.MODEL_TYPE,
      "architectures": [family.ARCHITECTURES[tensors.last]],
      "dtype": tensors.dtype,
      **vocabulary.ids,
  }
  if tensors.last == "reward_model":
    fields |= {
        "num_labels": 1,
        "id2label": {"0": _REWARD},
        "label2id": {_REWARD: 0},
        # or programs would put the score through a sigmoid
        "problem_type": "regression",
    }
  return fields


def generation_config(
    vocabulary: Vocabulary, *, temperature: float, max_new_tokens: int
) -> dict[str, Any]:
  """How the run samples: from the whole distribution, or greedily."""
  if temperature == 0:
    return {"do_sample": False, "max_new_tokens": max_new_tokens,
            **vocabulary.ids}
  return {
      "do_sample": True,
      "temperature": temperature,
      "top_k": 0,  # theirs is 50 where nothing is said
      "top_p": 1.0,
      "max_new_tokens": max_new_tokens,
      **vocabulary.ids,
  }


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
