"""What stages there are, what each reads, and whom."""

from collections.abc import Iterator
from typing import Any

from rlhf_jax.config.values import is_real, is_text

Tree = dict[str, Any]
# Stage -> which rules its sub-tree follows.
STAGES = {
    "pretrain": "lm", "sft": "lm", "rl_init": "lm", "collect": "collect",
    "rm": "rm", "judge": "rm", "sft_select": "select", "ppo": "ppo",
    "evaluate": "evaluate",
}
READS = {  # the sources of each; those of "collect" when a stage needs them
    "pretrain": "pretrain", "sft": "pretrain demonstrations",
    "rl_init": "pretrain demonstrations", "collect": "prompts",
    "rm": "demonstrations comparisons", "judge": "demonstrations comparisons",
    "sft_select": "prompts",
    "ppo": "prompts pretrain",
    "evaluate": "prompts pretrain demonstrations comparisons",
}
# leave a `config.model`
POLICIES = ("pretrain", "sft", "sft_select", "rl_init", "ppo")
REWARD_MODELS = ("rm", "judge")  # leave a `config.rm_model`
# In a stage's place: what config.init names, the reward model in a reward
# model's init_from, the policy everywhere else; as data.tokenizer, that of the
# policy.
INIT = "init"
LABELERS = "labelers"  # as evaluate.judge: no model
SMALLWORLD, EXPORT, RANKED = "smallworld", "export", "jsonl:"  # collect.labeler
MAX_RESPONSES = 16


def name_of(stage: str) -> str:
  """"ppo@2", a later round, and "rm@pairs", a variant, are "ppo" and "rm"."""
  return stage.partition("@")[0]


def kind_of(stage: str) -> str | None:
  """What STAGES says of a stage, a later round or a variant; else None."""
  _, at, which = stage.partition("@")
  return STAGES.get(name_of(stage)) if which.isalnum() or not at else None


def active(tree: Tree) -> list[str]:
  """The stages that run here; another run's result stands in for the rest."""
  return [s for s in tree["stages"] if not tree["inputs"].get(s)]


def sources_of(tree: Tree, stage: str) -> set[str]:
  """The kinds of records (`config.data`) that a stage's result comes from."""
  learnt = {"pretrain"} if tree["data"]["tokenizer"] == "train" else set()
  return learnt | set(READS[name_of(stage)].split())


def uses_smallworld(tree: Tree) -> bool:
  return any(tree["data"][kind] == "smallworld"
             for stage in tree["stages"] for kind in sources_of(tree, stage))


def readings(tree: Tree, stage: str) -> Iterator[tuple[str, str, tuple]]:
  """(key, stage named there, the stages that would fit)."""
  settings, kind = tree[stage], kind_of(stage)
  name = lambda key: f"config.{stage}.{key}"
  if kind in ("lm", "rm", "ppo") and settings["init_from"]:
    yield name("init_from"), settings["init_from"], POLICIES
  if kind == "collect":
    if is_weighted(settings["policies"]):  # else its range is wrong
      for policy, _ in settings["policies"]:
        yield name("policies"), policy, POLICIES
    if is_reward_labeler(tree, stage):
      yield name("labeler"), settings["labeler"], REWARD_MODELS
  if "comparisons" in sources_of(tree, stage) and (
      tree["data"]["comparisons"] == "collect"):
    for source in settings["collected"]:
      yield name("collected"), source, ("collect",)
  if kind == "select":
    yield name("candidates"), settings["candidates"], ("sft", "rl_init")
  if kind in ("ppo", "select", "evaluate"):
    yield name("reward_model"), settings["reward_model"], REWARD_MODELS
  if kind == "evaluate":
    for policy in settings["policies"]:
      yield name("policies"), policy, POLICIES
      if name_of(policy) == "ppo" and policy in tree["stages"]:
        yield (f"config.{policy}.reward_model", tree[policy]["reward_model"],
               REWARD_MODELS)
    yield name("reference"), settings["reference"], POLICIES
    if settings["judge"] != LABELERS:
      yield name("judge"), settings["judge"], REWARD_MODELS


def init_readings(tree: Tree, stage: str) -> dict[str, str]:
  """Key of `stage` that names INIT -> which of config.init it means."""
  kind = "reward_model" if kind_of(stage) == "rm" else "policy"
  return {key: kind for key, source, _ in readings(tree, stage)
          if source == INIT}


def teachers(tree: Tree, policy: str) -> Iterator[tuple[str, str]]:
  """(stage, its reward model) wherever a policy was optimised for one or chosen
  by one: itself, or a policy that it began as."""
  seen = set()  # nothing of a stage that is not listed has been checked
  while is_text(policy) and kind_of(policy) and policy not in seen:
    seen.add(policy)
    settings = tree.get(policy, {})
    name = settings.get("reward_model")
    if kind_of(policy) in ("ppo", "select") and is_text(name):
      yield policy, name
    policy = settings.get("candidates") or settings.get("init_from")


def lm_streams(settings: Tree) -> dict[str, str]:
  """Stream -> the key of its batch size, for streams with weight."""
  weight = settings["pretrain_weight"]
  streams = {}
  if weight < 1:
    streams["demonstrations"] = "batch_size"
  if weight > 0:
    streams["pretrain"] = "pretrain_batch_size"
  return streams


def asks_people(labeler: str) -> bool:
  """Whether people rank, by config.collect.labeler."""
  return labeler == EXPORT or labeler.startswith(RANKED)


def is_reward_labeler(tree: Tree, stage: str) -> bool:
  labeler = tree[stage]["labeler"]
  return labeler != SMALLWORLD and not asks_people(labeler)


def is_weighted(value: Any) -> bool:
  """Whether it is ((stage, weight), ...), each stage once, weights above 0."""
  if not isinstance(value, (tuple, list)) or not value or not all(
      isinstance(pair, (tuple, list)) and len(pair) == 2
      and is_text(pair[0]) and is_real(pair[1]) and pair[1] > 0
      for pair in value):
    return False
  return len({name for name, _ in value}) == len(value)


def pair_length(tree: Tree) -> int:
  data = tree["data"]
  return data["max_prompt_tokens"] + data["max_response_tokens"]


def at(tree: Tree, path: str) -> Any:
  for key in path.split("."):
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def nearest(number: int, unit: int) -> int:
  """The positive multiple of `unit` nearest to `number`."""
  return max(round(number / unit), 1) * unit
