"""The work that is measured: sizes, floating-point operations and inputs.

One definition for all systems (benchmarks/README.md). NumPy only, as each
system has an environment of its own.
"""

import dataclasses

import numpy as np

PHASES = ("rollout", "score", "value_fwd", "ppo_update", "ppo_iteration",
          "sft_step", "rm_step")
# Nobody else has these.
OWN_PHASES = ("ppo_ptx_iteration", "ppo_ptx_8_iteration", "refill",
              "no_refill")
# The method's constants.
CLIP_EPS = 0.2
VALUE_CLIP_EPS = 0.2
VALUE_COEF = 0.1
KL_COEF = 0.05
DISCOUNT = 1.0
GAE_LAMBDA = 0.95
BETAS = (0.9, 0.95)
EPS = 1e-8
CLIP_NORM = 1.0  # of SFT and the reward model; PPO clips nothing
LEARNING_RATE = 1e-6
GREEDY = 16  # tokens of greedy responses that are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """A model and its batches; letters as in benchmarks/README.md."""

  layers: int
  width: int  # d
  heads: int
  vocab: int  # V
  context: int
  batch: int  # B
  prompt: int  # P
  response: int  # R
  minibatches: int  # M
  epochs: int = 1  # E

  @property
  def length(self) -> int:
    """T = P + R."""
    return self.prompt + self.response

  @property
  def num_params(self) -> int:
    d = self.width
    return (self.vocab + self.context) * d + self.layers * (
        12 * d * d + 13 * d) + 2 * d

  @property
  def no_id(self) -> int:
    """An id past the vocabulary, for the end and for padding: it is never
    sampled, so that nothing stops early and no mask cuts anything."""
    return self.vocab


SIZES = {
    "tiny": Size(layers=4, width=256, heads=4, vocab=512, context=256,
                 batch=64, prompt=64, response=64, minibatches=4),
    "small": Size(layers=12, width=768, heads=12, vocab=50257, context=1024,
                  batch=8, prompt=64, response=64, minibatches=2),
    # No figure of it means anything: it shows that the programs run.
    "test": Size(layers=2, width=32, heads=2, vocab=48, context=32,
                 batch=8, prompt=4, response=6, minibatches=2),
}
# Slot refill: prompts of P, responses of at most R tokens.
REFILL_PROMPTS, REFILL_SLOTS = 512, 64
REFILL_PROMPT, REFILL_RESPONSE = 16, 128
REFILL_MEAN = REFILL_RESPONSE / 4  # of the geometric lengths


# ------------------------------------------------------------------- FLOPs


def body(size: Size, tokens: int) -> int:
  """FLOPs of the blocks over one sequence, forward; causal attention is
  counted exactly, the square's lower half."""
  d = size.width
  return size.layers * (
      24 * d * d * tokens + 2 * d * tokens * (tokens + 1))


def lm(size: Size, positions: int) -> int:
  """FLOPs of the LM head at so many positions."""
  return 2 * size.width * size.vocab * positions


def scalar(size: Size, positions: int) -> int:
  """FLOPs of the scalar head at so many positions."""
  return 2 * size.width * positions


def flops(size: Size, phase: str) -> int:
  """FLOPs that one call of a phase cannot do without.

  Multiply-adds of matrix products count 2, all else 0; so a system that
  computes what nobody reads, or anything twice, gets no credit for it.

  Raises:
    ValueError: the work of `phase` depends on what is sampled, or there is
      no such phase.
  """
  length, batch = size.length, size.batch
  policy = body(size, length) + lm(size, size.response)
  value = body(size, length) + scalar(size, size.response)
  reward = body(size, length) + scalar(size, 1)
  language = body(size, length) + lm(size, length)
  rollout = batch * (body(size, length - 1) + lm(size, size.response))
  update = batch * size.epochs * 3 * (policy + value)
  iteration = rollout + batch * (policy + value + reward) + update
  found = {
      "rollout": rollout,
      "score": batch * (2 * policy + reward),
      "value_fwd": batch * value,
      "ppo_update": update,
      "ppo_iteration": iteration,
      "sft_step": batch * 3 * language,
      "rm_step": batch * 3 * reward,
      "ppo_ptx_iteration": iteration + batch * 3 * language,
      "ppo_ptx_8_iteration": iteration + 8 * batch * 3 * language,
  }
  if phase not in found:
    raise ValueError(f"{phase=}: FLOPs are known of {sorted(found)}")
  return found[phase]


def rollout_flops(size: Size, prompt: int, lengths) -> int:
  """FLOPs of sampling responses of these lengths."""
  return sum(body(size, prompt + int(n) - 1) + lm(size, int(n))
             for n in lengths)


def tokens(size: Size, phase: str) -> int:
  """Tokens that are counted in a call: responses' where responses are
  sampled, else of whole sequences."""
  if phase == "rollout" or phase.endswith("_iteration"):
    return size.batch * size.response
  return size.batch * size.length * (
      size.epochs if phase == "ppo_update" else 1)


def floor_bytes(size: Size, phase: str) -> int:
  """Bytes that memory must move whatever the program, in float32: weights
  read in each decode step; what AdamW reads and writes, 28 a parameter."""
  num_steps = 0
  if phase.startswith("ppo"):
    num_steps = 2 * size.minibatches * size.epochs  # two models
  elif phase.endswith("_step"):
    num_steps = 1
  moved = 28 * size.num_params * num_steps
  if phase == "rollout" or phase.endswith("_iteration"):
    moved += 4 * size.num_params * size.response
  return moved


def gemm_shapes(size: Size, phase: str) -> list[tuple[int, int, int]]:
  """(m, k, n) of the products of a phase's forward pass, without attention's.

  Decoding has B rows, an update those of a minibatch.
  """
  d, rows = size.width, size.batch * size.length
  if phase == "rollout":
    rows = size.batch
  elif phase.startswith("ppo"):
    rows //= size.minibatches
  shapes = [(rows, d, 3 * d), (rows, d, d), (rows, d, 4 * d),
            (rows, 4 * d, d)] * size.layers
  if phase not in ("value_fwd", "rm_step"):
    head_rows = rows
    if phase not in ("rollout", "sft_step"):  # at response tokens alone
      head_rows = rows * size.response // size.length
    shapes.append((head_rows, d, size.vocab))
  return shapes


# ------------------------------------------------------------------ inputs


def inputs(size: Size) -> dict[str, np.ndarray]:
  """Uniform random ids, and the numbers of a made-up scored rollout.

  Returns:
    `prompts` int32 [B, P]; `tokens` int32 [B, T], that begin with them;
    float32 [B, R] each of `old_logprobs`, `old_values`, `advantages` and
    `returns`, near enough for some ratios and values to be clipped.
  """
  rng = np.random.default_rng(0)
  shape = (size.batch, size.response)
  ids = rng.integers(0, size.vocab, (size.batch, size.length))
  ids = ids.astype(np.int32)
  noise = lambda scale: rng.normal(0, scale, shape).astype(np.float32)
  old_values = noise(0.5)
  return {
      "prompts": ids[:, :size.prompt],
      "tokens": ids,
      "old_logprobs": noise(0.2) - np.float32(np.log(size.vocab)),
      "old_values": old_values,
      "advantages": noise(1.0),
      "returns": old_values + noise(0.5),
  }


def model_names() -> tuple[str, ...]:
  """The four models; in the folder of weights each has one of its own."""
  return ("policy", "reference", "value", "reward")
