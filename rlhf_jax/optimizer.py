"""Learning-rate schedules and the Adam of InstructGPT (appendix C)."""

import chex
import jax
import jax.numpy as jnp
import optax

# Layer-norm scales and biases have two axes when layers are stacked, but are
# still no matrices.
_NEVER_DECAYED = ("bias", "scale")


def cosine_to_fraction(
    peak: float,
    num_steps: int,
    final_fraction: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
  """Cosine from `peak` to `final_fraction * peak`, for SFT and reward model.

  InstructGPT C.1 and C.2: to 10 %, without warm-up.

  Args:
    peak: largest learning rate.
    num_steps: optimizer steps in all, warm-up included.
    final_fraction: of the peak, reached at step `num_steps`.
    warmup_steps: steps on a line that starts at `peak / (warmup_steps + 1)`,
      so that no step is taken with learning rate 0.

  Raises:
    ValueError: if the warm-up leaves no step for the cosine.
  """
  if not 0 <= warmup_steps < num_steps:
    raise ValueError(
        f"{warmup_steps=} must lie in [0, {num_steps=}); train for longer or "
        "warm up for less.")
  cosine = optax.cosine_decay_schedule(
      peak, num_steps - warmup_steps, alpha=final_fraction)
  if warmup_steps == 0:
    return cosine
  warmup = optax.linear_schedule(
      peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([warmup, cosine], [warmup_steps])


def ppo_warmup(
    peak: float,
    *,
    steps_per_iter: int,
    warmup_iters: int = 10,
    start_fraction: float = 0.1,
) -> optax.Schedule:
  """Linear warm-up over rollout iterations, then constant (InstructGPT C.4).

  The paper's fractions of the peak are .10, .19, ..., .91 over iterations 0 to
  9 and 1 from iteration 10 on; all steps of an iteration share one.

  Args:
    peak: learning rate after the warm-up.
    steps_per_iter: optimizer steps an iteration, minibatches times epochs.
    warmup_iters: first iteration at the peak.
    start_fraction: of the peak, at iteration 0.

  Raises:
    ValueError: if `steps_per_iter` is below 1 or `warmup_iters` below 0.
  """
  if steps_per_iter < 1 or warmup_iters < 0:
    raise ValueError(
        f"{steps_per_iter=} must be at least 1 and {warmup_iters=} at least 0.")

  def schedule(step: chex.Numeric) -> jax.Array:
    iteration = jnp.asarray(step) // steps_per_iter
    # With no warm-up, iteration 0 is past its end already.
    progress = jnp.where(
        iteration < warmup_iters, iteration / max(warmup_iters, 1), 1.0)
    return peak * (start_fraction + (1.0 - start_fraction) * progress)

  return schedule


def make_adam(
    learning_rate: float | optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
  """Clips by the global norm, then applies Adam with decoupled weight decay.

  Args:
    learning_rate: constant or schedule over optimizer steps.
    b1: decay of the first moment (the paper: .9).
    b2: decay of the second moment (the paper: .95).
    eps: added to the root after bias correction, as in PyTorch. TensorFlow 1
      adds it before, which makes the first steps smaller.
    weight_decay: times the learning rate, on matrices only (`is_decayed`).
    clip_norm: largest global gradient norm; infinity for no clipping.
  """
  return optax.chain(
      optax.clip_by_global_norm(clip_norm),
      optax.adamw(
          learning_rate,
          b1=b1,
          b2=b2,
          eps=eps,
          weight_decay=weight_decay,
          mask=is_decayed,
      ),
  )


def cosine_adam(
    num_steps: int,
    *,
    learning_rate: float,
    final_fraction: float,
    warmup_steps: int,
    **adam: float,
) -> optax.GradientTransformation:
  """`make_adam` on `cosine_to_fraction`: SFT and the reward model."""
  schedule = cosine_to_fraction(
      learning_rate, num_steps, final_fraction=final_fraction,
      warmup_steps=min(warmup_steps, num_steps - 1))
  return make_adam(schedule, **adam)


def is_decayed(params: chex.ArrayTree) -> chex.ArrayTree:
  """Maps each leaf to whether weight decay applies: true for matrices."""

  def one_leaf(path: tuple, leaf: jax.Array) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return leaf.ndim >= 2 and not name.endswith(_NEVER_DECAYED)

  return jax.tree_util.tree_map_with_path(one_leaf, params)
