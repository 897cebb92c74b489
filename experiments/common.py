"""The paper's sizes, and presets that experiments are put together from.

Plain functions of the size name. "mini" runs on two CPU cores in a quarter of
an hour; the others are rows of GPT-3's table 2.1 with the hyper-parameters of
InstructGPT's appendix C. A run that is reported should copy what it took from
here: nothing in this file is read back by the code.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

MINI = "mini"

# name: (layers, d_model, heads), GPT-3 table 2.1. The printed 24 heads of XL
# and width 5140 of 13B contradict their head size; Stiennon et al. 2020 list
# the same family with 16 and 5120.
PAPER_SIZES = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 16),
    "1.3b": (24, 2048, 16),
    "2.7b": (32, 2560, 32),
    "6b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "175b": (96, 12288, 96),
}
# The paper trains at 1.3B, 6B and 175B; other sizes take the nearest below.
PAPER_ROW = {
    "125m": "1.3b", "350m": "1.3b", "760m": "1.3b", "1.3b": "1.3b",
    "2.7b": "1.3b", "6b": "6b", "13b": "6b", "175b": "175b",
}
# GPT-3 table 2.1: (batch in tokens, peak learning rate).
PRETRAIN_ROW = {
    "125m": (0.5e6, 6.0e-4), "350m": (0.5e6, 3.0e-4),
    "760m": (0.5e6, 2.5e-4), "1.3b": (1e6, 2.0e-4), "2.7b": (1e6, 1.6e-4),
    "6b": (2e6, 1.2e-4), "13b": (2e6, 1.0e-4), "175b": (3.2e6, 0.6e-4),
}


# Where the relatives of GPT-3 differ (rlhf_jax/models/transformer.py).
ARCHITECTURE = dict(
    mlp_size=placeholder(int),  # None: 4 x d_model
    activation="gelu_tanh",  # "gelu_tanh" | "gelu" | "relu" | "silu"
    norm_order="pre",  # "pre" | "post": before or after each half of a block
    norm_epsilon=1e-5,  # in the root of LayerNorm
    final_norm=True,  # before the unembedding
    tied_unembedding=True,  # the unembedding is the embedding
    embedding_size=placeholder(int),  # None: d_model
    position_offset=0,  # rows of the table before position 0 (OPT: 2)
    scale_by_layer=False,  # attention scores over the block's number
)


def check_size(size: str) -> None:
  if size != MINI and size not in PAPER_SIZES:
    raise ValueError(
        f"unknown size {size!r}; the sizes are {[MINI, *PAPER_SIZES]}")


def model(size: str) -> ConfigDict:
  """A GPT-3 decoder."""
  check_size(size)
  if size == MINI:
    # 0.94 M parameters; 1,016 + the padding id fill 1,024 rows exactly
    num_layers, d_model, num_heads = 4, 128, 4
    vocab_size, vocab_multiple, context_length = 1016, 128, 128
  else:
    num_layers, d_model, num_heads = PAPER_SIZES[size]
    vocab_size, vocab_multiple, context_length = 50257, 128, 2048
  return ConfigDict(dict(
      num_layers=num_layers,  # blocks
      d_model=d_model,  # width
      num_heads=num_heads,  # of d_model / num_heads each
      context_length=context_length,  # learned positions
      vocab_size=vocab_size,  # true vocabulary, <|endoftext|> included
      vocab_multiple=vocab_multiple,  # the table is padded to a multiple
      # of all computation; parameters are float32
      dtype="float32" if size == MINI else "bfloat16",
      remat="none" if size == MINI else "block",  # "none" | "block" | "dots"
      # GPT-2's .02 starts narrow models so small that attention learns late
      init_stddev=0.08 if size == MINI else 0.02,
      # blocks a step of the loop over layers: faster, and longer to compile
      scan_unroll=num_layers if size == MINI else 1,
      # of the length, whose logits are formed one after the other: less memory
      logit_parts=1,
      # of whole rows: "plain" | "cudnn" (GPU) | "flash" (TPU); "plain" is
      # always there, the others hold no scores in memory (docs/performance.md)
      attention_kernel="plain",
      attention_pattern="dense",  # "dense" | "alternating" (GPT-3; band U)
      band_width=256,  # of every second block when "alternating"
      **ARCHITECTURE,
  ))


def imported_model(size: str) -> ConfigDict:
  """A model whose sizes are those of the checkpoint in `config.init`; numerics
  and precision are those of `size`."""
  config = model(size)
  for name in ("num_layers", "d_model", "num_heads", "vocab_size",
               *ARCHITECTURE):
    sort = type(config[name]) if config[name] is not None else int
    del config[name]
    config[name] = placeholder(sort)
  del config.context_length
  config.context_length = placeholder(int)  # or another than it was made for
  return config


def reward_model_size(size: str) -> str:
  """The paper uses a 6B reward model and critic for every policy."""
  return size if size == MINI else "6b"


# Stages that another run may lend; `rm_sft` is an sft of the reward model's
# size, where it is not the policy's.
STAGES = ("pretrain", "sft", "sft_select", "collect", "rm", "judge", "rl_init",
          "ppo", "rm_sft")


def base(name: str, size: str, stages: tuple[str, ...]) -> ConfigDict:
  """What every run has: stages, models, mesh, where the data comes from."""
  return ConfigDict(dict(
      name=f"{name}_{size}",  # of the run; the default workdir is runs/NAME
      seed=0,  # of parameters, data order and noise
      stages=stages,  # what runs, in order
      # stage -> folder of another run's stage to use in its place ("": none)
      inputs=dict.fromkeys((*STAGES, *stages), ""),
      # "hf:FOLDER", or "hf:NAME" of the hub: where a stage with
      # init_from="init" starts (docs/interop.md)
      init=dict(policy="", reward_model=""),
      model=model(size),  # the policy
      rm_model=model(reward_model_size(size)),  # reward model and critic
      mesh=mesh(size),  # devices along each axis; -1 is the rest
      axis_rules=AXIS_RULES,  # logical axis -> mesh axes
      decode=dict(
          dtype="float32" if size == MINI else "bfloat16",  # of sampling
          axis_rules=decode_axis_rules(size),  # in sampling
          # rows that have ended make room for those of the next part, where
          # there are num_rollout_parts
          refill=False,
      ),
      data=data(size),
      smallworld=smallworld(),
      labelers=labelers(),
      guards=guards(size),
      profile=False,  # where the time goes: docs/performance.md; slower
  ))


# Size -> (fsdp, tensor) devices; `data` takes the rest. Decoding cuts heads
# over fsdp x tensor (175b: over tensor), so these divide the heads. The plans
# of docs/plans.md are made with them.
MESHES = {
    "125m": (4, 1), "350m": (8, 1), "760m": (8, 1), "1.3b": (16, 1),
    "2.7b": (16, 1), "6b": (16, 1), "13b": (8, 1), "175b": (64, 8),
}


def size_of_16_shards(size: str) -> bool:
  """Whether batches are cut for 16 chips of 16 GB, or for 64 of more."""
  return PAPER_ROW.get(size) == "1.3b"


def mesh(size: str) -> dict:
  """Devices along each axis; -1 takes the rest."""
  if size == MINI:
    return dict(data=1, fsdp=-1, tensor=1)
  fsdp, tensor = MESHES[size]
  return dict(data=-1, fsdp=fsdp, tensor=tensor)


# logical axis -> mesh axes (logical axes of parameters: rlhf_jax/sharding.py)
AXIS_RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
)


def decode_axis_rules(size: str) -> tuple:
  """Weights are cut by heads, mlp and vocabulary, so that no token waits for
  them to be gathered; the cache by batch and heads."""
  if size == MINI:
    return AXIS_RULES
  batch: str | tuple[str, ...] = "data"
  cut: str | tuple[str, ...] = ("fsdp", "tensor")
  if size == "175b":  # 96 heads do not divide over 512
    batch, cut = (("data", "fsdp"), "tensor")
  return (("batch", batch), ("embed", None), ("mlp", cut), ("heads", cut),
          ("vocab", cut))


def data(size: str) -> dict:
  """Sources and the cleaning rules of InstructGPT 3.2 and A.2."""
  mini = size == MINI
  return dict(
      root="",  # folder that relative jsonl paths start from
      # "smallworld" | "jsonl:PATH[,PATH...]" | "tfds:NAME/SPLIT"
      pretrain="smallworld",
      demonstrations="smallworld",  # the same
      prompts="smallworld",  # the same
      comparisons="collect",  # or a source as above
      # "train", tokenizer.json, VOCAB.json,MERGES.txt, or "init": that of
      # config.init.policy
      tokenizer="train",
      prompt_suffix="\n",  # ends a prompt; part of its tokens
      response_prefix="",  # starts a response; part of its tokens
      max_prompt_tokens=26 if mini else 1024,  # longer prompts are dropped
      max_response_tokens=30 if mini else 1024,  # the end token counted
      # fill rows of context_length with demonstrations, some 4 each at mini
      pack_demonstrations=mini,
      dedup_prefix_tokens=12 if mini else 64,  # equal so far = duplicate
      max_prompts_per_user=200,  # the rest of a user's are dropped
      validation_fraction=0.10,  # of users
      test_fraction=0.20,  # the same; their prompts are the held-out ones
  )


def smallworld() -> dict:
  """The built-in labeling project in miniature."""
  return dict(
      seed=0,  # of the world and all that is in it
      num_people=12,  # who live there
      num_documents=24_000,  # about 2 M tokens
      num_demonstrations=18_000,  # some 7,000 of them train
      num_prompts=8_500,  # before cleaning and splits
      # Few-shot sets of 2 to 4 examples each, in addition: demonstrations and
      # prompts. They need a data.max_prompt_tokens of 96 (sets of 4: 128) and
      # models of a context_length to match.
      few_shot_sets=0,
      few_shot_prompts=0,  # the same among the prompts
  )


def labelers() -> dict:
  """Smallworld's labelers; standard deviations in gold-score units."""
  return dict(
      seed=0,  # of tastes and noise
      num_train=8,  # who make training data
      num_heldout=4,  # who only evaluate
      bias_sd=0.10,  # of a labeler's own tastes
      noise_sd=0.22,  # of a training labeler's one rating
      heldout_noise_sd=0.17,  # of a held-out labeler's
      tie_margin=0.08,  # ratings closer than this are a tie
  )


def guards(size: str) -> dict:
  """What must not pass in silence in training: rlhf_jax/guards.py, and
  docs/reliability.md on what each means."""
  in_float32 = size == MINI
  return dict(
      actions=dict(  # "stop" | "warn" | "off"
          not_finite="stop",
          skipped="warn",
          negative_kl="stop",
          large_kl="stop",
          first_ratio="stop",
          clip_frac="warn",
          ended="warn",
          over_optimised="warn",
          sampler_drift="stop",
          recompiled="warn",
          repeated_batch="stop",
      ),
      limits=dict(
          skipped_updates=8,  # in a row
          max_kl=100.0,  # nats a response
          kl_standard_errors=5.0,  # below zero
          first_ratio_deviation=1e-3 if in_float32 else 0.1,
          max_clip_frac=0.3,
          unclipped_iters=50,
          min_ended=0.5,
          sampler_drift=1e-4 if in_float32 else 0.05,  # mean, nats a token
          gold_fall=0.1,
          distinct_fall=0.4,
      ),
  )


def adam(**schedule) -> dict:
  """Adam as in the paper; weight decay, eps and clip are not given there."""
  return dict(
      b1=0.9,  # decay of the first moment
      b2=0.95,  # of the second
      eps=1e-8,  # added to the root, after bias correction
      weight_decay=0.0,  # decoupled; of matrices only
      clip_norm=1.0,  # largest norm of the whole gradient
      **schedule)


def pretrain(size: str) -> dict:
  """Language modelling from scratch (GPT-3 appendix B)."""
  check_size(size)
  if size == MINI:
    batch_size, num_steps, rate, warmup = 16, 800, 3e-3, 50
  else:
    tokens, rate = PRETRAIN_ROW[size]
    batch_size = round(tokens / 2048 / 64) * 64
    num_steps = round(300e9 / 2048 / batch_size)
    warmup = round(375e6 / 2048 / batch_size)
  return language_model(
      init_from="",  # stage whose parameters it starts from, "" for none
      batch_size=0,  # rows of demonstrations a step
      pretrain_batch_size=batch_size,  # windows of pretraining text a step
      pretrain_weight=1.0,  # share of the loss
      num_steps=num_steps,  # 0: num_epochs decides
      num_epochs=0,  # of the demonstrations, without num_steps
      dropout_rate=0.0,  # of embeddings and residual branches
      # parts of a batch: of 64 rows, or at 1.3b and less of 16
      num_microbatches=1 if size == MINI else batch_size // (
          16 if size_of_16_shards(size) else 64),
      select="last",  # the checkpoint that counts: see sft
      eval_streams=("pretrain",),  # whose validation loss is measured
      optimizer=adam(learning_rate=rate, final_fraction=0.1,
                     warmup_steps=warmup)
      | dict(weight_decay=0.0 if size == MINI else 0.1),
      size=size,
  )


def sft(size: str) -> dict:
  """The paper's supervised baseline (C.1): 16 epochs, cosine to 10 %.

  At mini a fifth of the loss is pretraining text: at its learning rate the
  model would forget the facts of its world.
  """
  check_size(size)
  mini = size == MINI
  rate, batch_size = {
      MINI: (3e-3, 8), "1.3b": (9.65e-6, 32), "6b": (9.65e-6, 32),
      "175b": (5.03e-6, 8)}[PAPER_ROW.get(size, size)]
  return language_model(
      init_from="pretrain",
      batch_size=batch_size,  # rows: of some four demonstrations at mini
      pretrain_batch_size=8 if mini else 0,
      pretrain_weight=0.2 if mini else 0.0,
      num_steps=1_000 if mini else 0,  # 0: num_epochs decides
      num_epochs=0 if mini else 16,
      dropout_rate=0.0 if mini else 0.2,
      num_microbatches=1,
      # the checkpoint of the lowest validation "loss", the "last", or by the
      # stage sft_select that of the best "rm_score"
      select="loss",
      eval_streams=("pretrain", "demonstrations"),
      optimizer=adam(learning_rate=rate, final_fraction=0.1, warmup_steps=0),
      size=size,
  )


def rl_init(size: str) -> dict:
  """PPO's start and frozen reference (C.3): 2 epochs, 10 % pretraining.

  At mini it goes on from the SFT model, for copying from the prompt takes
  longer to learn than all the rest, and for a little while only.
  """
  check_size(size)
  mini = size == MINI
  rate, batch_size = {
      MINI: (1e-3, 8), "1.3b": (5e-6, 32), "6b": (1.04e-5, 32),
      "175b": (2.45e-6, 8)}[PAPER_ROW.get(size, size)]
  return language_model(
      init_from="sft" if mini else "pretrain",
      batch_size=batch_size,
      pretrain_batch_size=8 if mini else batch_size,
      pretrain_weight=0.2 if mini else 0.1,
      num_steps=150 if mini else 0,
      num_epochs=0 if mini else 2,
      dropout_rate=0.0,  # the paper does not say
      num_microbatches=1,
      select="last",
      eval_streams=("pretrain", "demonstrations"),
      optimizer=adam(learning_rate=rate, final_fraction=0.1, warmup_steps=0),
      size=size,
  )


def language_model(*, size: str, **settings) -> dict:
  """Settings of a `trainers/lm.py` stage with the cadences of its size."""
  mini = size == MINI
  return dict(
      eval_batch_size=32 if mini else 64,  # rows of validation
      max_eval_batches=16,  # of validation, each time
      every_log_steps=10,  # a row of metrics.jsonl
      every_eval_steps=250 if mini else 500,  # validation
      every_save_steps=200 if mini else 500,  # a checkpoint
      keep_checkpoints=2,  # the newest
      # ("min" or "max", metric of the steps that are saved): that one as well
      keep_best=(),
      **settings,
  )


def collect(size: str) -> dict:
  """Comparisons: K = 4..9 responses a prompt, ranked by labelers (3.4)."""
  mini = size == MINI
  return dict(
      # (stage, weight): each response is drawn from one of them
      policies=(("sft", 1.0),),
      # "smallworld" | a reward model's stage | "export": write tasks for
      # people and stop | "jsonl:FILE": take in what they ranked
      labeler="smallworld",
      roster="",  # FILE of who may label, where people do
      num_prompts=4_500 if mini else 33_207,  # of the training split
      num_validation_prompts=200 if mini else 17_887,  # of the validation split
      min_responses=4,  # K, drawn for each prompt from here
      max_responses=9,  # to here
      temperature=1.0,  # of sampling
      prompts_per_batch=32 if mini else 64,  # sampled at a time
      # sampled one after the other: less memory
      num_rollout_parts=9 if size_of_16_shards(size) else 1,
      num_train_labels=2,  # labelers of a validation prompt, of each group
      num_heldout_labels=2,  # the same of held-out labelers
  )


def sft_select(size: str) -> dict:
  """The SFT checkpoint whose samples score best (C.1)."""
  mini = size == MINI
  return dict(
      candidates="sft",  # stage whose checkpoints are compared
      reward_model="rm",  # stage that scores their samples
      num_prompts=256 if mini else 1_653,  # of the validation split
      temperature=1.0,  # of sampling; 0 takes the likeliest token
      batch_size=128 if mini else 64,  # prompts at a time
  )


def rm(size: str) -> dict:
  """The reward model (C.2): one epoch, cosine to 10 %, 64 prompts a batch.

  At mini two epochs, for there are few prompts; a step holds some 23 of them,
  with 360 pairs.
  """
  mini = size == MINI
  return dict(
      # a 6B model needs an sft of its own size: config.inputs.rm_sft
      init_from="sft" if reward_model_size(size) == size else "rm_sft",
      collected=("collect",),  # the rounds it learns from, if not given data
      half=placeholder(int),  # 0 or 1: train on every second prompt only
      # (index, count): labelers are dealt into groups, one is left out (E.2)
      fold=placeholder(tuple),
      max_prompts=placeholder(int),  # train on the first so many only
      batching="kwise",  # all pairs of a prompt at once | "pairs": each alone
      # blocks: of one prompt, or at mini of some three that share the rows
      batch_size=8 if mini else 64,
      block_rows=5 if mini else 9,  # of context_length
      block_prompts=10 if mini else 1,  # at most
      max_responses=9,  # K at most; 16 in all
      num_epochs=2 if mini else 1,  # over the comparisons
      denominator="kept",  # pairs: "kept" (ties dropped) | "all_pairs"
      # parts of a batch of blocks, and of the rows of every block
      num_microbatches=4 if size_of_16_shards(size) else 1,
      num_row_parts=1 if mini else 9,  # parts of a block's rows; memory only
      eval_batch_size=128 if mini else 64,  # responses scored at a time
      every_log_steps=5,  # a row of metrics.jsonl
      every_save_steps=50,  # a checkpoint
      keep_checkpoints=2,  # the newest
      keep_best=(),
      optimizer=adam(learning_rate=1e-3 if mini else 9e-6,
                     final_fraction=0.1, warmup_steps=0),
  )


def rm_pairs(size: str) -> dict:
  """`rm` with every pair an example of its own, all pairs shuffled together:
  what over-fits within an epoch (3.5).

  A step holds about as many pairs as one of `rm` (at mini 390 for 360, at the
  paper's sizes 1,024 for some 1,200), so that learning rate, schedule and steps
  an epoch stay comparable. Each response is read once a pair, so such a step
  costs some five times as much.
  """
  mini = size == MINI
  return rm(size) | dict(
      batching="pairs",
      # blocks: of some ten pairs at mini, else of one
      batch_size=40 if mini else 1_024,
      block_rows=5 if mini else 2,
      num_microbatches=5 if mini else 16,  # each of the size of one of `rm`
      num_row_parts=1 if mini else 2,
  )


def ppo(size: str, *, ptx_coef: float) -> dict:
  """PPO with (`ptx_coef` > 0) or without pretraining gradients (C.4)."""
  check_size(size)
  mini = size == MINI
  num_iters = 100 if mini else 500  # 500 x 512 = 256k episodes
  batch_size = 128 if mini else 512
  # The paper prints sweeps, not the final peak: 8.05e-6 is the largest that
  # did not diverge without pretraining gradients.
  rate = {MINI: 3e-4, "1.3b": 8.05e-6, "6b": 8.05e-6,
          "175b": 3.74e-6}[PAPER_ROW.get(size, size)]
  critic_rate = {MINI: 3e-4, "1.3b": 9e-6, "6b": 9e-6,
                 "175b": 5e-6}[PAPER_ROW.get(size, size)]
  warmup = dict(
      warmup_iters=10,  # to the peak, on a line
      start_fraction=0.1,  # of the peak, in the first iteration
  )
  return dict(
      init_from="rl_init",  # start of the policy and frozen reference
      reward_model="rm",  # start of the critic as well
      num_iters=num_iters,  # rollouts, each followed by its updates
      batch_size=batch_size,  # episodes an iteration
      # sampled one after the other: less memory
      num_rollout_parts=8 if size_of_16_shards(size) else 1,
      # pretraining windows an iteration: 8 an episode in the paper
      ptx_batch_size=batch_size * (1 if mini else 8),
      reward_unit="sd" if mini else "raw",  # one SD of the scores, or as is
      method=dict(
          temperature=1.0,  # of sampling, and of every log-probability
          kl_coef=0.1 if mini else 0.02,  # the paper's beta
          ptx_coef=ptx_coef,  # the paper's gamma; 0 turns it off
          discount=1.0,  # a token
          gae_lambda=0.95,  # of generalized advantage estimation
          clip_eps=0.2,  # of the probability ratio
          value_clip_eps=0.2,  # in SDs of the score
          missing_eos_penalty=1.0,  # in SDs of the score
          whiten_advantages=True,  # mean 0, variance 1 over a rollout
          num_epochs=1,  # inner epochs over a rollout
          num_minibatches=4 if mini else 8,  # optimizer steps an epoch
          # parts of a minibatch: of 64 rows, or at 1.3b and less of 16
          num_microbatches=4 if size_of_16_shards(size) else 1,
          # of its pretraining rows
          num_ptx_microbatches=(
              1 if mini else 32 if size_of_16_shards(size) else 8),
          # an average over the last eighth or so; .992 over the paper's 500
          ema_decay=0.018 ** (1 / num_iters),
          kl_target=0.0,  # 0: fixed kl_coef
          kl_horizon=10_000.0,  # episodes in which the controller acts once
      ),
      optimizer=adam(learning_rate=rate, **warmup),
      critic_optimizer=adam(learning_rate=critic_rate, **warmup),
      every_save_steps=20,  # iterations to a checkpoint
      keep_checkpoints=2,  # the newest
      keep_best=("max", "train/ppo/score"),
  )


def evaluate(size: str) -> dict:
  """Held-out prompts, held-out labelers, every policy of the run."""
  mini = size == MINI
  return dict(
      policies=("pretrain", "sft", "rl_init", "ppo"),  # stages to compare
      baseline="sft",  # win rates are against it
      reference="rl_init",  # KL is to it
      reward_model="rm",  # scores the responses
      judge="labelers",  # or a reward-model stage that was not optimised
      collected=("collect",),  # whose validation part measures reward models
      num_prompts=512 if mini else 3_196,  # of the test split
      temperature=1.0,  # of sampling; 0 takes the likeliest token
      batch_size=128 if mini else 64,  # prompts at a time
      pretrain_batch_size=32 if mini else 64,  # held-out windows at a time
      max_pretrain_batches=16,  # of them
  )


def round_stages(num_rounds: int) -> tuple[tuple[str, str, str], ...]:
  """The stages of each round of steps 2 and 3: collect, rm, ppo."""
  ends = "", *(f"@{number}" for number in range(2, num_rounds + 1))
  return tuple((f"collect{end}", f"rm{end}", f"ppo{end}") for end in ends)


def set_rounds(config: ConfigDict, size: str, num_rounds: int) -> None:
  """Settings of `round_stages` and of an evaluation of all their policies.

  The first round is that of `ppo_ptx.py`. A later one compares responses of
  SFT and the newest PPO policy, its reward model learns from all comparisons
  so far, and PPO starts from `rl_init` again.
  """
  mini = size == MINI
  collected: tuple[str, ...] = ()
  policies: tuple[str, ...] = ("sft", "rl_init")
  for collect_stage, rm_stage, ppo_stage in round_stages(num_rounds):
    config[collect_stage] = collect(size)
    if collected:
      config[collect_stage].update(
          policies=(("sft", 1.0), (policies[-1], 1.0)),
          num_prompts=2_000 if mini else 33_207)
    collected += (collect_stage,)
    config[rm_stage] = rm(size) | dict(collected=collected)
    config[ppo_stage] = ppo(size, ptx_coef=1.0 if mini else 27.8) | dict(
        reward_model=rm_stage)
    policies += (ppo_stage,)
  config.evaluate = evaluate(size) | dict(
      policies=policies, reward_model=rm_stage, collected=collected,
      # all that there are at mini: rounds differ by little
      num_prompts=1_326 if mini else 3_196)


def set_hh(config: ConfigDict, size: str) -> None:
  """Data of the hh experiments, and models of 1.1 M parameters at mini."""
  comparisons = "jsonl:comparisons/hh_*.jsonl.gz"
  config.data.update(
      root="",  # --config.data.root=DATA
      pretrain="jsonl:pretrain/*.jsonl.gz",
      # the preferred reply to a harmful request is only the less bad of two
      # and no demonstration
      demonstrations=(
          "jsonl:demonstrations/oasst_sample.jsonl.gz,"
          "demonstrations/dolly_small.jsonl.gz,"
          "demonstrations/self_instruct_seed.jsonl.gz,"
          "comparisons/hh_helpful_*.jsonl.gz"),
      prompts=comparisons,
      comparisons=comparisons,
      prompt_suffix="",  # dialogues end in "Assistant:"
      response_prefix=" ",
      max_prompt_tokens=320,
      max_response_tokens=160,
      dedup_prefix_tokens=0,  # only prompts equal in full
      validation_fraction=0.25,  # enough pairs to tell 54 % from chance
      test_fraction=0.10,
  )
  if size == MINI:
    for name in ("model", "rm_model"):
      # two heads: each writes 512 x 512 scores a row, slow on CPU
      config[name].update(vocab_size=2040, vocab_multiple=8,
                          context_length=512, num_heads=2)


def hh_pretrain(size: str) -> dict:
  """6.6 M tokens at mini."""
  smaller = dict(pretrain_batch_size=8, num_steps=1_600)
  return pretrain(size) | (smaller if size == MINI else {})


def hh_sft(size: str) -> dict:
  """Rows of 512 tokens hold one demonstration to ten."""
  smaller = dict(batch_size=8, pretrain_batch_size=4, num_steps=300)
  return sft(size) | (smaller if size == MINI else {})


def hh_rm(size: str) -> dict:
  """Two replies a prompt; at mini in blocks of some five texts."""
  return rm(size) | dict(
      max_responses=2, block_rows=2 if size == MINI else 1, num_row_parts=1)
