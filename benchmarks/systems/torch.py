"""PyTorch and transformers, at the best fair setting that was found.

SDPA attention, tanh-GELU as one operation, logits at response positions
alone, `torch.compile`, a static cache in the rollout, fused AdamW. A good
allocator is the caller's part (benchmarks/peers.py).
"""

import functools
import sys

import numpy as np
import torch
import transformers

from benchmarks import timing
from benchmarks import work
from benchmarks.systems import products

NAME = "torch"
PACKAGES = ("torch", "transformers")
make_gemm = products.in_torch
SKIPPED = {}


def load(job: timing.Job, name: str, **options):
  """A model with SDPA, and GELU's tanh form as one operation: transformers
  writes GPT-2's as several."""
  has_head = name in ("value", "reward")
  kind = (transformers.GPT2ForSequenceClassification if has_head
          else transformers.GPT2LMHeadModel)
  model = kind.from_pretrained(
      job.weights / name, dtype=torch.float32, attn_implementation="sdpa",
      **options)
  for block in model.transformer.h:
    block.mlp.act = torch.nn.GELU(approximate="tanh")
  return model.eval()


def _ids(array) -> torch.Tensor:
  return torch.from_numpy(np.asarray(array)).long()


def response_logprobs(model, tokens, length: int):
  """float32 [B, R]; logits at the positions that predict responses alone."""
  hidden = model.transformer(tokens, use_cache=False).last_hidden_state
  logits = model.lm_head(hidden[:, -length - 1:-1])
  return -torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), tokens[:, -length:].flatten(), reduction="none"
  ).view(tokens.shape[0], length)


def response_values(model, tokens, length: int):
  """[B, R]: the value before each response token."""
  hidden = model.transformer(tokens, use_cache=False).last_hidden_state
  return model.score(hidden[:, -length - 1:-1]).squeeze(-1)


def last_scores(model, tokens):
  hidden = model.transformer(tokens, use_cache=False).last_hidden_state
  return model.score(hidden[:, -1]).squeeze(-1)


def _adamw(*models):
  return torch.optim.AdamW(
      [p for model in models for p in model.parameters()],
      lr=work.LEARNING_RATE, betas=work.BETAS, eps=work.EPS, weight_decay=0.0,
      fused=True)


class Sampler:
  """Ancestral sampling with a static cache and a compiled decode step."""

  def __init__(self, model, size: work.Size, temperature: float = 1.0):
    self._model, self._size = model, size
    self._temperature = temperature
    self._cache = transformers.StaticCache(
        config=model.config, max_cache_len=size.length)
    self._prefill = torch.compile(self._next_logits)
    self._decode = torch.compile(self._next_logits)

  def _next_logits(self, ids, positions):
    hidden = self._model.transformer(
        ids, past_key_values=self._cache, position_ids=positions[None],
        use_cache=True).last_hidden_state
    return self._model.lm_head(hidden[:, -1])

  @torch.inference_mode()
  def __call__(self, prompts: torch.Tensor) -> torch.Tensor:
    """prompts [B, P] -> responses [B, R]."""
    self._cache.reset()
    size = self._size
    logits = self._prefill(prompts, torch.arange(size.prompt))
    found = torch.empty(
        (prompts.shape[0], size.response), dtype=torch.long)
    for number in range(size.response):
      if self._temperature == 0:
        token = logits.argmax(-1, keepdim=True)
      else:
        token = torch.multinomial(logits.softmax(-1), 1)
      found[:, number] = token[:, 0]
      if number + 1 < size.response:
        logits = self._decode(
            token, torch.tensor([size.prompt + number]))
    return found


# ------------------------------------------------------------------ phases


def rollout(job):
  sample = Sampler(load(job, "policy"), job.size)
  prompts = _ids(job.inputs["prompts"])

  def call():
    timing.check_rollout(sample(prompts).numpy(), job.size)

  return call


def _make_score(job):
  length = job.size.response
  policy, reference, reward = (
      load(job, name) for name in ("policy", "reference", "reward"))
  function = torch.compile(lambda tokens: (
      response_logprobs(policy, tokens, length),
      response_logprobs(reference, tokens, length),
      last_scores(reward, tokens)))

  def score(tokens):
    with torch.inference_mode():
      return function(tokens)

  return score


def score(job):
  function, tokens = _make_score(job), _ids(job.inputs["tokens"])

  def call():
    function(tokens)

  return call


def _values_of(job):
  model = load(job, "value")
  function = torch.compile(
      lambda tokens: response_values(model, tokens, job.size.response))

  def values(tokens):
    with torch.inference_mode():
      return function(tokens)

  return values


def value_fwd(job):
  function, tokens = _values_of(job), _ids(job.inputs["tokens"])

  def call():
    function(tokens)

  return call


def ppo_losses(policy, value, batch, length: int):
  """(policy loss, value loss), means over the minibatch's tokens."""
  tokens, old_logprobs, old_values, advantages, returns = batch
  logprobs = response_logprobs(policy, tokens, length)
  values = response_values(value, tokens, length)
  ratio = torch.exp(logprobs - old_logprobs)
  policy_loss = torch.max(
      -advantages * ratio,
      -advantages * ratio.clamp(1 - work.CLIP_EPS, 1 + work.CLIP_EPS)).mean()
  near = old_values + (values - old_values).clamp(
      -work.VALUE_CLIP_EPS, work.VALUE_CLIP_EPS)
  value_loss = 0.5 * torch.max(
      (values - returns)**2, (near - returns)**2).mean()
  return policy_loss, value_loss


def _experience(job):
  i = job.inputs
  return (_ids(i["tokens"]), *(torch.from_numpy(i[name]) for name in (
      "old_logprobs", "old_values", "advantages", "returns")))


def _make_update(job, policy, value):
  size, optimizer = job.size, _adamw(policy, value)
  losses = torch.compile(functools.partial(
      ppo_losses, policy, value, length=size.response))

  def update(experience):
    for _ in range(size.epochs):
      for rows in torch.randperm(size.batch).chunk(size.minibatches):
        policy_loss, value_loss = losses([x[rows] for x in experience])
        (policy_loss + work.VALUE_COEF * value_loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"policy_loss": policy_loss.item(),
            "value_loss": value_loss.item()}

  return update


def ppo_update(job):
  update = _make_update(job, load(job, "policy"), load(job, "value"))
  experience = _experience(job)

  def call():
    update(experience)

  return call


def gae(rewards, values):
  """(whitened advantages, returns), [B, R]."""
  advantages = torch.zeros_like(rewards)
  last = torch.zeros(rewards.shape[0])
  for t in reversed(range(rewards.shape[1])):
    following = (values[:, t + 1] if t + 1 < rewards.shape[1]
                 else torch.zeros_like(last))
    delta = rewards[:, t] + work.DISCOUNT * following - values[:, t]
    last = delta + work.DISCOUNT * work.GAE_LAMBDA * last
    advantages[:, t] = last
  variance, mean = torch.var_mean(advantages, correction=0)
  return (advantages - mean) * torch.rsqrt(variance + 1e-8), (
      advantages + values)


def shaped_rewards(scores, logprobs, ref_logprobs):
  rewards = -work.KL_COEF * (logprobs - ref_logprobs)
  rewards[:, -1] += scores
  return rewards


def ppo_iteration(job):
  """The policy's log-probabilities are computed with the reference's, at the
  cost of one more forward; what the sampler saw is not kept."""
  policy, value = load(job, "policy"), load(job, "value")
  reference, reward = load(job, "reference"), load(job, "reward")
  length = job.size.response
  sample = Sampler(policy, job.size)
  forward = torch.compile(lambda tokens: (
      response_logprobs(policy, tokens, length),
      response_logprobs(reference, tokens, length),
      response_values(value, tokens, length), last_scores(reward, tokens)))
  update = _make_update(job, policy, value)
  prompts = _ids(job.inputs["prompts"])

  def call():
    responses = sample(prompts)
    timing.check_rollout(responses.numpy(), job.size)
    tokens = torch.cat([prompts, responses], 1)
    with torch.no_grad():
      logprobs, ref_logprobs, values, scores = forward(tokens)
      rewards = shaped_rewards(scores, logprobs, ref_logprobs)
      advantages, returns = gae(rewards, values)
    figures = update((tokens, logprobs, values, advantages, returns))
    figures |= {"score": scores.mean().item(),
                "kl": (logprobs - ref_logprobs).sum(1).mean().item()}

  return call


def lm_loss(model, tokens):
  hidden = model.transformer(tokens, use_cache=False).last_hidden_state
  logits = model.lm_head(hidden[:, :-1])
  return torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), tokens[:, 1:].flatten())


def rm_loss(model, tokens):
  """Rows are chosen and rejected by turns."""
  scores = last_scores(model, tokens).view(-1, 2)
  return -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()


def _make_step(job, name: str, loss):
  """A function that does one clipped step and gives the loss."""
  model = load(job, name)
  optimizer, tokens = _adamw(model), _ids(job.inputs["tokens"])
  function = torch.compile(functools.partial(loss, model))

  def step():
    found = function(tokens)
    found.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), work.CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found.item()

  return step


def _step_phase(name, loss):
  def phase(job):
    step = _make_step(job, name, loss)

    def call():
      step()

    return call
  return phase


PHASES = {
    "rollout": rollout,
    "score": score,
    "value_fwd": value_fwd,
    "ppo_update": ppo_update,
    "ppo_iteration": ppo_iteration,
    "sft_step": _step_phase("policy", lm_loss),
    "rm_step": _step_phase("reward", rm_loss),
}


# ----------------------------------------------------------------- outputs


def outputs(job: timing.Job) -> dict[str, np.ndarray]:
  """What must agree with the other systems' (benchmarks/README.md)."""
  size = job.size
  tokens, prompts = _ids(job.inputs["tokens"]), _ids(job.inputs["prompts"])
  score_of = _make_score(job)
  logprobs, ref_logprobs, scores = score_of(tokens)
  values = _values_of(job)(tokens)
  advantages, returns = gae(
      shaped_rewards(scores, logprobs, ref_logprobs), values)
  policy, value = load(job, "policy"), load(job, "value")
  greedy = Sampler(policy, size, temperature=0.0)(prompts)
  sampled = Sampler(policy, size)(prompts)
  found = dict(
      logprobs=logprobs, ref_logprobs=ref_logprobs, scores=scores,
      values=values, advantages=advantages, returns=returns,
      iteration_kl=(logprobs - ref_logprobs).sum(1).mean(),
      iteration_value_loss=0.5 * (values - returns).square().mean(),
      greedy_ids=greedy[:, :work.GREEDY],
      sampled_logprobs=score_of(torch.cat([prompts, sampled], 1))[0])
  policy_loss, value_loss = ppo_losses(
      policy, value, _experience(job), size.response)
  (policy_loss + value_loss).backward()
  found |= {"policy_loss": policy_loss.item(), "value_loss": value_loss.item(),
            "policy_grad_norm": _norm(policy), "value_grad_norm": _norm(value)}
  for name, model, loss_of in (
      ("sft", load(job, "policy"), lm_loss),
      ("rm", load(job, "reward"), rm_loss)):
    loss = loss_of(model, tokens)
    loss.backward()
    found |= {f"{name}_loss": loss.item(), f"{name}_grad_norm": _norm(model)}
  return {name: np.asarray(x) for name, x in found.items()}


def _norm(model) -> float:
  return products.torch_norm(
      p.grad for p in model.parameters() if p.grad is not None)


if __name__ == "__main__":
  timing.main(sys.modules[__name__])
