"""PPO with pretraining gradients (InstructGPT 3.5, eq. 2, appendix C.4).

One call, `ppo_step`, goes from a rollout to the new state: `score` turns the
rollout into Experience (old and reference log-probs, values, scores, rewards,
advantages), `update` scans over inner epochs and minibatches. With
`ptx_coef` > 0 the pretraining gradients join the clipped-surrogate gradients
before the one optimizer update of a minibatch.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlhf_jax import advantages, losses, masked, train_state, tree
from rlhf_jax.models import scalar
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar
from rlhf_jax.rollout import Rollout
from rlhf_jax.sharding import constrain

Metrics = dict[str, jax.Array]
ScoresOf = Callable[["Frozen", Rollout], jax.Array]


@flax.struct.dataclass
class PPOState:
  """All that changes from iteration to iteration."""

  step: jax.Array  # int32 scalar: iterations done
  skipped: jax.Array  # int32 scalar: updates not applied so far
  skipped_in_a_row: jax.Array  # int32 scalar: up to the newest
  params: Any  # policy
  opt_state: Any
  critic: Any
  critic_opt_state: Any
  ema: Any  # average of the policy; evaluated, never sampled from
  kl_coef: jax.Array  # float32 scalar; constant unless a KL target is set


@flax.struct.dataclass
class Frozen:
  """Parameters that PPO reads and never changes."""

  reference: Any  # the policy PPO starts from
  reward_model: Any  # its bias is in the head


@flax.struct.dataclass
class Experience:
  """A scored rollout: all that crosses from `score` to `update`."""

  tokens: jax.Array  # int32 [B, P + T]
  mask: jax.Array  # bool [B, P + T]
  response_mask: jax.Array  # bool [B, T]
  logprobs: jax.Array  # float32 [B, T], of the policy that sampled
  values: jax.Array  # float32 [B, T], V before each token
  advantages: jax.Array  # float32 [B, T]
  returns: jax.Array  # float32 [B, T]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOSettings:
  """The method's constants; scores are in the unit of the reward model given.

  What is not given is the paper's, where it says, without pretraining
  gradients; an experiment gives everything.

  Attributes:
    temperature: of sampling, and therefore of every log-prob.
    kl_coef: the paper's beta.
    ptx_coef: the paper's gamma, 27.8 there; 0 is PPO without pretraining
      gradients.
    discount, gae_lambda: of generalized advantage estimation.
    clip_eps: of the probability ratio.
    value_clip_eps: of the critic, in score units.
    missing_eos_penalty: subtracted from scores of unended responses.
    whiten_advantages: to mean 0, variance 1 over the rollout's tokens.
    num_epochs, num_minibatches: optimizer steps a rollout = their product.
    num_microbatches: parts of a minibatch; memory only.
    num_ptx_microbatches: parts of its pretraining rows; memory only.
    ema_decay: a rollout iteration.
    kl_target, kl_horizon: of the adaptive controller; target 0 turns it off.
    eos_id: ends a response.
  """

  temperature: float = 1.0
  kl_coef: float = 0.02
  ptx_coef: float = 0.0
  discount: float = 1.0
  gae_lambda: float = 0.95
  clip_eps: float = 0.2
  value_clip_eps: float = 0.2
  missing_eos_penalty: float = 1.0
  whiten_advantages: bool = True
  num_epochs: int = 1
  num_minibatches: int = 8
  num_microbatches: int = 1
  num_ptx_microbatches: int = 1
  ema_decay: float = 0.992
  kl_target: float = 0.0
  kl_horizon: float = 10_000.0
  eos_id: int

  @property
  def num_updates(self) -> int:
    return self.num_epochs * self.num_minibatches


def make_ppo_step(
    policy: Policy,
    critic: Scalar,
    tx: optax.GradientTransformation,
    critic_tx: optax.GradientTransformation,
    settings: PPOSettings,
    scores_of: ScoresOf | None = None,
) -> Callable[..., tuple[PPOState, Metrics]]:
  """Builds `ppo_step(state, frozen, rollout, ptx_tokens, key)`.

  `ptx_tokens` int32 [N, L] are packed pretraining windows (None when
  `ptx_coef` is 0), N a multiple of the updates of an iteration. The key
  decides the minibatches. To be jitted with the state donated.

  >>> from rlhf_jax import rollout
  >>> from rlhf_jax.models.transformer import TransformerConfig
  >>> sizes = TransformerConfig(
  ...     vocab_size=50, num_layers=1, d_model=16, num_heads=2,
  ...     context_length=16)
  >>> policy, critic = Policy(sizes), Scalar(sizes)
  >>> prompts = jnp.array([[3, 1], [4, 1], [5, 9], [2, 6]])
  >>> mask = jnp.ones_like(prompts, bool)
  >>> params, reward_model = (
  ...     jax.jit(model.init)(jax.random.key(0), prompts, mask)["params"]
  ...     for model in (policy, critic))
  >>> settings = PPOSettings(eos_id=49, num_minibatches=2)
  >>> tx = optax.adam(1e-3)
  >>> frozen = Frozen(reference=params, reward_model=reward_model)
  >>> state = init_state(params, reward_model, tx=tx, critic_tx=tx,
  ...                    kl_coef=settings.kl_coef)
  >>> generate = jax.jit(rollout.make_generate(
  ...     policy, response_length=6, temperature=1.0, eos_id=49))
  >>> sampled = generate(state.params, jax.random.key(1), prompts, mask,
  ...                    jnp.arange(4))
  >>> ppo_step = jax.jit(make_ppo_step(policy, critic, tx, tx, settings))
  >>> state, values = ppo_step(
  ...     state, frozen, sampled, None, jax.random.key(2))
  >>> int(state.step), float(values["train/ppo/kl"])
  (1, 0.0)
  >>> bool(values["train/ppo/first_ratio_deviation"] < 1e-5)
  True

  Args:
    policy: the network that is trained, and that of the reference.
    critic: that of the critic, and of the reward model.
    tx: optimizer of the policy; its steps are those of minibatches.
    critic_tx: optimizer of the critic.
    settings: the method's constants.
    scores_of: `(frozen, rollout) -> scores [B]`, of arrays alone; by default
      `make_reward_scores(critic)`.
  """
  score = make_score(policy, critic, settings, scores_of)
  update = make_update(policy, critic, tx, critic_tx, settings)

  def ppo_step(state, frozen, sampled, ptx_tokens, key):
    with jax.named_scope("score"):
      experience, score_metrics = score(state, frozen, sampled)
    with jax.named_scope("update"):
      state, update_metrics = update(state, experience, ptx_tokens, key)
    state = state.replace(
        step=state.step + 1,
        ema=tree.ema(state.ema, state.params, settings.ema_decay),
        kl_coef=next_kl_coef(
            state.kl_coef, score_metrics["train/ppo/kl"],
            sampled.response_mask.shape[0], settings))
    return state, {**score_metrics, **update_metrics,
                   **train_state.skip_values(state)}

  return ppo_step


def next_kl_coef(kl_coef, kl, num_episodes, settings: PPOSettings):
  if settings.kl_target == 0:
    return kl_coef
  adapted = advantages.adaptive_kl_coef(
      kl_coef, kl, settings.kl_target, settings.kl_horizon, num_episodes)
  return jnp.where(jnp.isfinite(adapted), adapted, kl_coef)


# ---------------------------------------------------------------- forward


def make_response_logprobs(policy: Policy, temperature: float):
  """Builds `logprobs(params, tokens, mask, T) -> float32 [B, T]`.

  Hidden states and logits are formed at the T positions that predict the
  response only.
  """

  def response_logprobs(params, tokens, mask, length):
    hidden = policy.apply(
        {"params": params}, tokens, mask, places=before(tokens, length),
        method="hidden")
    return policy.apply(
        {"params": params}, hidden, tokens[:, -length:], temperature,
        method="logprobs")

  return response_logprobs


def make_response_values(critic: Scalar):
  """Builds `values(params, tokens, mask, T) -> [B, T]`: V before each token."""

  def response_values(params, tokens, mask, length):
    return critic.apply(
        {"params": params}, tokens, mask, places=before(tokens, length))

  return response_values


def before(tokens, length: int) -> tuple[int, int]:
  """The places, (first, end), before each of the last `length` tokens."""
  total = tokens.shape[1]
  return total - length - 1, total - 1


# ------------------------------------------------------------------ score


def make_reward_scores(reward_model: Scalar) -> ScoresOf:
  """Builds `scores(frozen, rollout) -> [B]`: the reward model's."""

  def scores(frozen: Frozen, sampled: Rollout):
    length, total = sampled.response_mask.shape[1], sampled.mask.shape[1]
    # read at the last token, one of the response's
    values: jax.Array = reward_model.apply(  # type: ignore[assignment]
        {"params": frozen.reward_model}, sampled.tokens, sampled.mask,
        places=(total - length, total))
    return scalar.at_last_token(values, sampled.response_mask)

  return scores


def make_score(
    policy: Policy, critic: Scalar, settings: PPOSettings,
    scores_of: ScoresOf | None = None,
):
  """Builds `score(state, frozen, rollout) -> (Experience, metrics)`.

  Forward passes run at the shape of a training microbatch, so that the first
  ratio of an iteration is 1 to the last bits. `scores_of` is as of
  `make_ppo_step`.
  """
  scores_of = scores_of or make_reward_scores(critic)
  logprobs_of = make_response_logprobs(policy, settings.temperature)
  values_of = make_response_values(critic)
  num_parts = settings.num_minibatches * settings.num_microbatches

  def forward(state, frozen, part: Rollout):
    args = (part.tokens, part.mask, part.response_mask.shape[1])
    scores = scores_of(frozen, part)
    return {
        "logprobs": logprobs_of(state.params, *args),
        "ref_logprobs": logprobs_of(frozen.reference, *args),
        "values": values_of(state.critic, *args),
        "scores": scores,
    }

  def score(state, frozen, sampled: Rollout):
    parts = train_state.split_rows(sampled, num_parts)
    scored = train_state.merge_rows(
        jax.lax.map(lambda part: forward(state, frozen, part), parts))
    return to_experience(sampled, kl_coef=state.kl_coef,
                         settings=settings, **scored)

  return score


def to_experience(
    sampled: Rollout, *, scores, logprobs, ref_logprobs, values, kl_coef,
    settings: PPOSettings,
) -> tuple[Experience, Metrics]:
  """Scores and log-probs -> advantages and returns (arrays only)."""
  mask = sampled.response_mask
  has_eos = (sampled.response_tokens == settings.eos_id).any(-1)
  final_scores = advantages.missing_eos_penalty(
      scores, has_eos, settings.missing_eos_penalty)
  rewards = advantages.token_rewards(
      final_scores, logprobs, ref_logprobs, mask, kl_coef)
  advantage, returns = advantages.gae(
      rewards, values, mask, settings.discount, settings.gae_lambda)
  explained = advantages.explained_variance(values, returns, mask)
  raw_advantage_mean = masked.mean(advantage, mask)
  if settings.whiten_advantages:
    advantage = masked.whiten(advantage, mask)
  experience = Experience(
      tokens=sampled.tokens, mask=sampled.mask, response_mask=mask,
      logprobs=logprobs, values=values, advantages=advantage, returns=returns)
  k1, _, k3 = losses.kl_estimators(logprobs, ref_logprobs)
  row_mean = lambda per_token: masked.total(per_token, mask) / mask.shape[0]
  kl_of_rows = masked.zero_padding(k1, mask).sum(-1)
  drift = jnp.abs(logprobs - sampled.logprobs)
  values = {
      "train/ppo/score": scores.mean(),
      "train/ppo/score_sd": scores.std(),
      "train/ppo/reward": rewards.sum(-1).mean(),
      "train/ppo/kl": row_mean(k1),
      "train/ppo/kl_se": kl_of_rows.std() / jnp.sqrt(kl_of_rows.size),
      "train/ppo/kl_k3": row_mean(k3),
      "train/ppo/kl_coef": kl_coef,
      "train/ppo/ended": has_eos.mean(dtype=jnp.float32),
      "train/ppo/response_length": mask.sum(-1).mean(dtype=jnp.float32),
      "train/ppo/entropy_estimate": -masked.mean(logprobs, mask),
      "train/ppo/advantage_mean": raw_advantage_mean,
      "train/critic/explained_variance": explained,
      "train/critic/value": masked.mean(values, mask),
      "train/ppo/sampler_drift": jnp.where(mask, drift, 0.0).max(),
      "train/ppo/sampler_drift_mean": masked.mean(drift, mask),
  }
  return experience, values


# ----------------------------------------------------------------- update


def make_update(
    policy: Policy, critic: Scalar, tx, critic_tx, settings: PPOSettings
):
  """Builds `update(state, experience, ptx_tokens, key) -> (state, metrics)`:
  a scan over inner epochs x minibatches, one update each."""
  rl_gradients = make_rl_gradients(policy, settings)
  critic_gradients = make_critic_gradients(critic, settings)
  policy_gradients = rl_gradients
  if settings.ptx_coef > 0:
    policy_gradients = with_pretraining_gradients(
        rl_gradients, make_ptx_gradients(policy, settings), settings.ptx_coef)

  def minibatch_update(experience, state: PPOState, inputs):
    rows, ptx_tokens = inputs
    minibatch = jax.tree.map(lambda x: take_rows(x, rows), experience)
    grads, values = policy_gradients(state.params, minibatch, ptx_tokens)
    critic_grads, critic_values = critic_gradients(state.critic, minibatch)
    loss = values["train/ppo/policy_loss"] + values.get("train/ptx/loss", 0.0)
    own = train_state.apply_gradients(
        state.params, state.opt_state, grads, tx, loss)
    critics = train_state.apply_gradients(
        state.critic, state.critic_opt_state, critic_grads, critic_tx,
        critic_values["train/critic/loss"])
    state = state.replace(
        params=own.params, opt_state=own.opt_state,
        critic=critics.params, critic_opt_state=critics.opt_state,
        **train_state.count_skips(
            state, own.is_applied & critics.is_applied))
    return state, {**values, **critic_values,
                   "train/critic/grad_norm": critics.grad_norm}

  def update(state: PPOState, experience: Experience, ptx_tokens, key):
    rows = minibatch_rows(key, experience.mask.shape[0], settings)
    if ptx_tokens is not None:
      ptx_tokens = train_state.split_rows(ptx_tokens, settings.num_updates)
    state, values = jax.lax.scan(
        functools.partial(minibatch_update, experience), state,
        (rows, ptx_tokens))
    first_ratio = values["train/ppo/ratio_max_deviation"][0]
    summary = {name: value.mean() for name, value in values.items()}
    summary["train/ppo/first_ratio_deviation"] = first_ratio
    return state, summary

  return update


def minibatch_rows(key, batch_size: int, settings: PPOSettings):
  """Row numbers [E * M, B / M]: a fresh permutation every inner epoch."""
  keys = jax.random.split(key, settings.num_epochs)
  order = jax.vmap(lambda k: jax.random.permutation(k, batch_size))(keys)
  return order.reshape(settings.num_updates, -1)


def take_rows(x, rows):
  return constrain(x[rows], "batch", *(None,) * (x.ndim - 1))


def make_rl_gradients(policy: Policy, settings: PPOSettings):
  """Builds the clipped surrogate's gradient of one minibatch."""
  logprobs_of = make_response_logprobs(policy, settings.temperature)

  def part_gradients(params, part: Experience, count):
    def loss_fn(params):
      logprobs = logprobs_of(
          params, part.tokens, part.mask, part.response_mask.shape[1])
      loss, values = losses.clipped_policy_loss(
          logprobs, part.logprobs, part.advantages, part.response_mask,
          settings.clip_eps)
      return loss / count, values
    (loss, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    largest = values.pop("ratio_max_deviation")
    values = {name: value / count for name, value in values.items()}
    return grads, {"loss": loss, **values, "max": largest}

  def rl_gradients(params, minibatch: Experience, ptx_tokens):
    del ptx_tokens
    count = token_count(minibatch)
    grads, values = train_state.accumulate(
        lambda part, _: part_gradients(params, part, count), minibatch,
        settings.num_microbatches)
    return grads, {
        "train/ppo/policy_loss": values["loss"],
        "train/ppo/clip_frac": values["clip_frac"],
        "train/ppo/approx_kl": values["approx_kl"],
        "train/ppo/ratio": values["ratio"],
        "train/ppo/ratio_max_deviation": values["max"],
        "train/ppo/rl_grad_norm": tree.global_norm(grads),
    }

  return rl_gradients


def make_ptx_gradients(policy: Policy, settings: PPOSettings):
  """Builds the gradient of the mean token loss on pretraining windows."""

  def part_gradients(params, tokens, count):
    def loss_fn(params):
      mask = jnp.ones_like(tokens, jnp.bool_)
      hidden = policy.apply(
          {"params": params}, tokens, mask, method="hidden")
      logprobs = policy.apply(
          {"params": params}, hidden[:, :-1], tokens[:, 1:],
          method="logprobs")
      loss, _ = losses.lm_loss_sum(logprobs, mask[:, 1:])
      return loss / count
    loss, grads = jax.value_and_grad(loss_fn)(params)
    return grads, loss

  def ptx_gradients(params, tokens):  # tokens [N, L]
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    grads, loss = train_state.accumulate(
        lambda part, _: part_gradients(params, part, count), tokens,
        settings.num_ptx_microbatches)
    return grads, {
        "train/ptx/loss": loss,
        "train/ptx/grad_norm": tree.global_norm(grads),
    }

  return ptx_gradients


def with_pretraining_gradients(rl_gradients, ptx_gradients, ptx_coef: float):
  """Adds ptx_coef x the pretraining gradient (eq. 2, the last term).

  "PPO gradients and pretraining gradients in consecutive steps" go into one
  buffer before the update (C.4); both norms are taken before they meet.
  """

  def policy_gradients(params, minibatch, ptx_tokens):
    grads, values = rl_gradients(params, minibatch, ptx_tokens)
    ptx_grads, ptx_values = ptx_gradients(params, ptx_tokens)
    grads = tree.add(grads, tree.scale(ptx_grads, ptx_coef))
    return grads, {**values, **ptx_values}

  return policy_gradients


def make_critic_gradients(critic: Scalar, settings: PPOSettings):
  """Builds the clipped value loss's gradient of one minibatch."""
  values_of = make_response_values(critic)

  def part_gradients(params, part: Experience, count):
    def loss_fn(params):
      values = values_of(
          params, part.tokens, part.mask, part.response_mask.shape[1])
      loss, counts = losses.clipped_value_loss(
          values, part.values, part.returns, part.response_mask,
          settings.value_clip_eps)
      return loss / count, counts["clip_frac"] / count
    return jax.value_and_grad(loss_fn, has_aux=True)(params)

  def critic_gradients(params, minibatch: Experience):
    count = token_count(minibatch)
    (loss, clip_frac), grads = train_state.accumulate(
        lambda part, _: part_gradients(params, part, count), minibatch,
        settings.num_microbatches)
    return grads, {
        "train/critic/loss": loss,
        "train/critic/clip_frac": clip_frac,
    }

  return critic_gradients


def token_count(minibatch: Experience):
  """Response tokens of the whole minibatch, over all devices and parts."""
  return jnp.maximum(minibatch.response_mask.sum(), 1).astype(jnp.float32)


# ------------------------------------------------------------------ start


def init_state(policy_params, critic_params, *, tx, critic_tx, kl_coef):
  """The policy starts at the reference, the critic at the reward model."""
  copy = lambda t: jax.tree.map(jnp.copy, t)
  return PPOState(
      step=jnp.zeros((), jnp.int32), **train_state.no_skips(),
      params=copy(policy_params), opt_state=tx.init(policy_params),
      critic=copy(critic_params),
      critic_opt_state=critic_tx.init(critic_params),
      ema=copy(policy_params), kl_coef=jnp.float32(kl_coef))
