"""The prompts that labelers write themselves (InstructGPT, section 3.2).

Plain ones are any task; user-based ones have an application in mind that
somebody once applied with; few-shot ones are an instruction and pairs for it.
"""

from rlhf_jax.data import splits
from rlhf_jax.data.smallworld import prompts as prompts_lib

USER_BASED_SHARE = 1 / 3
# Category -> what people on the waiting list want to build.
APPLICATIONS = {
    "generation": (
        "The school wants stories for children before they sleep.",
        "A singer needs new songs for the market day.",
        "The post of the village writes letters for people in a hurry.",
    ),
    "open_qa": (
        "A bell at the bridge tells strangers who lives where.",
        "The farmer wants to ask what each animal eats.",
    ),
    "brainstorming": (
        "A shop helps people to find gifts for their friends.",
        "The baker looks for new foods to sell at the lake.",
    ),
    "chat": (
        "The doctor wants somebody kind to talk to people who wait.",
        "The lost and found of the park answers by letter.",
    ),
    "rewrite": (
        "The painter changes the colors in old stories.",
        "A teacher turns sentences into questions for the class.",
    ),
    "summarization": (
        "The sailor wants long letters from home in one line.",
    ),
    "classification": (
        "The market sorts what is brought to it into four halls.",
        "A newspaper marks good and bad news with a face.",
    ),
    "other": (
        "The school has a game in which one word does not belong.",
    ),
    "closed_qa": (
        "The miller reads notes and is asked where things are.",
    ),
    "extract": (
        "The gardener collects the names of guests from letters.",
    ),
}

# (instruction, names of the kinds it suits), of one category each.
INSTRUCTIONS = (
    ("What kind of thing is it?", ("type",)),
    ("Is it happy or sad?", ("mood",)),
    ("Find the word.", ("find_animal", "find_color")),
    ("Find the names.", ("find_names",)),
    ("Change the color.", ("recolor",)),
    ("Make it a question.", ("ask",)),
    ("Read and answer.", ("where", "who", "ate")),
    ("Answer the question.",
     ("home", "pet", "food", "job", "color", "friend", "diet")),
    ("Find what is not an animal.", ("odd",)),
    ("Write a letter.", ("letter",)),
    ("Write one sentence.", ("describe",)),
)
# Pairs of a set, drawn from these. A prompt of 2 has some 55 tokens, of 3 some
# 80, of 4 some 110.
NUM_PAIRS = (2, 2, 3, 3, 4)
# What stands in the prompts of others is kept short even in a hurry.
NEVER_IN_EXAMPLES = frozenset({"off_topic", "long"})


def provenance(seed: int, row: dict) -> dict[str, str]:
  """`prompt_kind`, and `use_case` if it is user-based, of a labeler's row.

  A function of the prompt alone: it takes no draw from any random stream.
  """
  draw = splits.unit_hash(f"{seed}/prompt_kind/{row['prompt']}")
  if draw >= USER_BASED_SHARE:
    return {"prompt_kind": "plain"}
  applications = APPLICATIONS[row["category"]]
  index = int(draw / USER_BASED_SHARE * len(applications))
  return {"prompt_kind": "user_based", "use_case": applications[index]}


def kinds_of(names: tuple[str, ...]) -> tuple[prompts_lib.Kind, ...]:
  return tuple(kind for kind in prompts_lib.KINDS if kind.name in names)
