"""TRL's trainers as shipped, in the last release that has a PPO trainer.

PPO's and the rollout's functions are `trl.experimental.ppo`'s own, SFT and the
reward model are `SFTTrainer` and `RewardTrainer`. Settings other than TRL's
own: benchmarks/README.md.
"""

import contextlib
import os
import sys
import tempfile
from unittest import mock

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
from trl.experimental import ppo
from trl.experimental import utils
from trl.experimental.ppo import ppo_trainer

from benchmarks import timing
from benchmarks import work
from benchmarks.systems import products

NAME = "trl"
PACKAGES = ("trl", "torch", "transformers")
make_gemm = products.in_torch
SKIPPED = {}
_MANY = 10_000  # steps; the recorder ends training
_COPIES = 16  # of the rows, or each step were an epoch


def load(job: timing.Job, name: str):
  has_head = name in ("value", "reward")
  kind = (transformers.GPT2ForSequenceClassification if has_head
          else transformers.GPT2LMHeadModel)
  model = kind.from_pretrained(job.weights / name, dtype=torch.float32)
  model.config.pad_token_id = job.size.no_id
  return model.eval()


def tokenizer(size: work.Size):
  """Ids as words; one more than the model knows ends and pads."""
  words = {str(i): i for i in range(size.vocab + 1)}
  found = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(words, unk_token="0"))
  found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  last = str(size.no_id)
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=found, eos_token=last, pad_token=last)


def _ids(array) -> torch.Tensor:
  return torch.from_numpy(np.asarray(array)).long()


def _arguments(folder: str) -> dict:
  """What all three trainers are told."""
  return dict(
      output_dir=folder, learning_rate=work.LEARNING_RATE,
      adam_beta1=work.BETAS[0], adam_beta2=work.BETAS[1],
      adam_epsilon=work.EPS, weight_decay=0.0, bf16=False, fp16=False,
      use_cpu=True, gradient_checkpointing=False, report_to="none",
      save_strategy="no", disable_tqdm=True, logging_steps=1,
      lr_scheduler_type="constant", warmup_steps=0)


def _dataset(num_steps: int, **columns):
  """A batch, or copies of it where there are several steps."""
  copies = _COPIES if num_steps > 1 else 1
  return datasets.Dataset.from_dict(
      {name: x.tolist() * copies for name, x in columns.items()})


class _Steps(transformers.TrainerCallback):
  """Times steps: from the end of one to that of the next, so that loading a
  batch and logging are in it."""

  def __init__(self, recorder: timing.Recorder):
    self._recorder = recorder

  def on_train_begin(self, args, state, control, **kwargs):
    self._recorder.start()

  def on_step_end(self, args, state, control, **kwargs):
    self._recorder.stop_or_end()
    self._recorder.start()


# --------------------------------------------------------------------- PPO


def _generation(size: work.Size, **changes):
  """As its PPO trainer sets it."""
  return transformers.GenerationConfig(**dict(
      max_new_tokens=size.response, temperature=1.0 + 1e-7, top_k=0.0,
      top_p=1.0, do_sample=True) | changes)


def _sample(model, job, prompts, **changes):
  """(queries with responses, logits of every step)."""
  return ppo_trainer.batch_generation(
      model, prompts, 64, job.size.no_id, _generation(job.size, **changes))


def rollout(job):
  model, prompts = load(job, "policy"), _ids(job.inputs["prompts"])

  def call():
    found, _ = _sample(model, job, prompts)
    timing.check_rollout(found[:, job.size.prompt:].numpy(), job.size)

  return call


def _logprobs(model, job, tokens):
  """As its PPO trainer computes the reference's."""
  cut = job.size.prompt
  logits = ppo_trainer.forward(
      model, tokens, job.size.no_id).logits[:, cut - 1:-1]
  logits /= 1.0 + 1e-7
  return ppo_trainer.selective_log_softmax(logits, tokens[:, cut:])


def _rewards(model, job, tokens):
  """(values [B, R], scores [B])."""
  cut = job.size.prompt
  values, scores, _ = utils.get_reward(model, tokens, job.size.no_id, cut)
  return values[:, cut - 1:-1].squeeze(-1), scores


def score(job):
  policy, reference, reward = (
      load(job, name) for name in ("policy", "reference", "reward"))
  tokens = _ids(job.inputs["tokens"])

  @torch.no_grad()
  def call():
    _logprobs(policy, job, tokens)
    _logprobs(reference, job, tokens)
    _rewards(reward, job, tokens)

  return call


def value_fwd(job):
  model, tokens = load(job, "value"), _ids(job.inputs["tokens"])

  @torch.no_grad()
  def call():
    _rewards(model, job, tokens)

  return call


def _trainer(job, folder: str, callbacks, num_iterations: int, **changes):
  size = job.size
  args = ppo.PPOConfig(**_arguments(folder) | dict(
      per_device_train_batch_size=size.batch, gradient_accumulation_steps=1,
      num_mini_batches=size.minibatches, num_ppo_epochs=size.epochs,
      total_episodes=size.batch * num_iterations, num_sample_generations=0,
      response_length=size.response, temperature=1.0, kl_coef=work.KL_COEF,
      gamma=work.DISCOUNT, lam=work.GAE_LAMBDA, cliprange=work.CLIP_EPS,
      cliprange_value=work.VALUE_CLIP_EPS, vf_coef=work.VALUE_COEF) | changes)
  rows = _dataset(num_iterations, input_ids=job.inputs["prompts"])
  return ppo.PPOTrainer(
      args=args, processing_class=tokenizer(size), model=load(job, "policy"),
      ref_model=load(job, "reference"), reward_model=load(job, "reward"),
      value_model=load(job, "value"), train_dataset=rows, callbacks=callbacks)


def _forced(job):
  """A rollout that is not sampled: the prompts' responses are the inputs'."""
  tokens = _ids(job.inputs["tokens"])
  cut = job.size.prompt
  responses = {tuple(row[:cut].tolist()): row for row in tokens}

  @torch.no_grad()
  def batch_generation(model, queries, rows, pad_token_id, config):
    del rows, config
    found = torch.stack([responses[tuple(q.tolist())] for q in queries])
    logits = ppo_trainer.forward(model, found, pad_token_id).logits
    return found, logits[:, cut - 1:-1] / (1.0 + 1e-7)

  return batch_generation


def ppo_iteration(job):
  folder = tempfile.mkdtemp()
  trainer = _trainer(job, folder, [_Steps(job.recorder)], _MANY)
  return timing.times_itself(trainer.train)


def ppo_update(job):
  """Within its training loop: from the whitened advantages to the logged
  figures; the rollout before is forced and outside the clock."""
  whiten = ppo_trainer.masked_whiten

  def whiten_and_start(*args, **options):
    found = whiten(*args, **options)
    job.recorder.start()
    return found

  class Log(transformers.TrainerCallback):

    def on_log(self, args, state, control, **kwargs):
      job.recorder.stop_or_end()

  ppo_trainer.masked_whiten = whiten_and_start
  ppo_trainer.batch_generation = _forced(job)
  trainer = _trainer(job, tempfile.mkdtemp(), [Log()], _MANY)
  return timing.times_itself(trainer.train)


# ---------------------------------------------------- SFT and reward model


def _sft_trainer(job, callbacks, num_steps: int):
  size = job.size
  args = trl.SFTConfig(**_arguments(tempfile.mkdtemp()) | dict(
      per_device_train_batch_size=size.batch, max_steps=num_steps,
      max_grad_norm=work.CLIP_NORM, max_length=size.length, packing=False))
  rows = _dataset(num_steps, input_ids=job.inputs["tokens"])
  return trl.SFTTrainer(
      model=load(job, "policy"), args=args, train_dataset=rows,
      processing_class=tokenizer(size), callbacks=callbacks)


def _rm_trainer(job, callbacks, num_steps: int):
  size = job.size
  args = trl.RewardConfig(**_arguments(tempfile.mkdtemp()) | dict(
      per_device_train_batch_size=size.batch // 2, max_steps=num_steps,
      max_grad_norm=work.CLIP_NORM, max_length=size.length))
  tokens = job.inputs["tokens"].reshape(-1, 2, size.length)
  rows = _dataset(
      num_steps, chosen_ids=tokens[:, 0], rejected_ids=tokens[:, 1])
  return trl.RewardTrainer(
      model=load(job, "reward"), args=args, train_dataset=rows,
      processing_class=tokenizer(size), callbacks=callbacks)


def _step_phase(make):
  def phase(job):
    trainer = make(job, [_Steps(job.recorder)], _MANY)
    return timing.times_itself(trainer.train)
  return phase


PHASES = {
    "rollout": rollout,
    "score": score,
    "value_fwd": value_fwd,
    "ppo_update": ppo_update,
    "ppo_iteration": ppo_iteration,
    "sft_step": _step_phase(_sft_trainer),
    "rm_step": _step_phase(_rm_trainer),
}


# ----------------------------------------------------------------- outputs


@torch.no_grad()
def outputs(job: timing.Job) -> dict[str, np.ndarray]:
  """What must agree with the other systems' (benchmarks/README.md).

  Its trainer's own log of one iteration on a forced rollout and without
  learning stands for the losses of PPO.
  """
  tokens, prompts = _ids(job.inputs["tokens"]), _ids(job.inputs["prompts"])
  cut = job.size.prompt
  policy = load(job, "policy")
  values, _ = _rewards(load(job, "value"), job, tokens)
  _, scores = _rewards(load(job, "reward"), job, tokens)
  greedy, _ = _sample(
      policy, job, prompts, do_sample=False, temperature=None, top_k=None,
      top_p=None)
  sampled, _ = _sample(policy, job, prompts)
  found = dict(
      logprobs=_logprobs(policy, job, tokens), values=values, scores=scores,
      ref_logprobs=_logprobs(load(job, "reference"), job, tokens),
      greedy_ids=greedy[:, cut:cut + work.GREEDY],
      sampled_logprobs=_logprobs(policy, job, sampled))
  with torch.enable_grad():
    found |= _losses(job)
  return {name: np.asarray(x) for name, x in found.items()}


@contextlib.contextmanager
def _norms_in_float64():
  """What is logged of a gradient's norm is exact; the clipping is its own."""
  clip = torch.nn.utils.clip_grad_norm_

  def clip_and_measure(parameters, *args, **options):
    parameters = list(parameters)
    norm = products.torch_norm(
        p.grad for p in parameters if p.grad is not None)
    clip(parameters, *args, **options)
    return torch.tensor(norm, dtype=torch.float64)

  with mock.patch.object(torch.nn.utils, "clip_grad_norm_", clip_and_measure):
    yield


def _losses(job) -> dict[str, float]:
  sampling = ppo_trainer.batch_generation
  ppo_trainer.batch_generation = _forced(job)
  trainer = _trainer(job, tempfile.mkdtemp(), [], 1, learning_rate=0.0)
  trainer.train()
  ppo_trainer.batch_generation = sampling
  log = trainer.state.log_history[0]
  found = {"iteration_kl": log["objective/kl"],
           "iteration_value_loss": log["loss/value_avg"]}
  for name, make in (("sft", _sft_trainer), ("rm", _rm_trainer)):
    trainer = make(job, [], 1)
    with _norms_in_float64():
      trainer.train()
    log = trainer.state.log_history[0]
    # its mean counts a sequence's first token too, which nothing predicts
    counted = job.size.length / (job.size.length - 1) if name == "sft" else 1
    found |= {f"{name}_loss": log["loss"] * counted,
              f"{name}_grad_norm": log["grad_norm"] * counted}
  return found


if __name__ == "__main__":
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  timing.main(sys.modules[__name__])
