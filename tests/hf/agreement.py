"""How far our numbers are from those that somebody else's program gives.

Folders are loaded as a run loads them. No other program is needed here.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import rollout, run, sharding
from rlhf_jax.hf import families, importing
from rlhf_jax.hf.folder import Folder
from rlhf_jax.models.policy import Policy
from rlhf_jax.models.scalar import Scalar, at_last_token
from tests import tiny

# Of logits, log-probabilities and scores, all in float32.
TOLERANCE = 1e-4

Loaded = collections.namedtuple("Loaded", "model params mesh")


def sizes(folder, **changes):
  """What a folder's config.json makes of our sizes."""
  with Folder(f"hf:{folder}") as opened:
    return tiny.config(**families.settings_of(opened.fields) | changes)


def policy(folder, mesh="one_device", **changes) -> Loaded:
  """A folder's language model."""
  return _loaded(Policy, importing.policy_params, folder, mesh, changes)


def scalar(folder, mesh="one_device", **changes) -> Loaded:
  """A folder's reward model."""
  def read(spec, c, abstract):
    return importing.scalar_params(spec, c, abstract, fresh_head=None)
  return _loaded(Scalar, read, folder, mesh, changes)


def _loaded(network, read, folder, mesh, changes) -> Loaded:
  model = network(sizes(folder, **changes))
  mesh = tiny.make_mesh(mesh)
  with sharding.use(mesh, tiny.AXIS_RULES):
    abstract = sharding.abstract_of(
        lambda: run.init_params(model, jax.random.key(0)), mesh,
        tiny.AXIS_RULES)
    return Loaded(model, read(f"hf:{folder}", model.config, abstract), mesh)


def logits(loaded: Loaded, tokens, mask) -> np.ndarray:
  """[B, L, V], padding filled with our own id for it."""
  vocab_size = loaded.model.config.vocab_size
  return _forward(loaded, tokens, mask)[..., :vocab_size]


def scores(loaded: Loaded, tokens, mask) -> np.ndarray:
  """[B]: each row's score at its last real token."""
  return np.asarray(at_last_token(
      jnp.asarray(_forward(loaded, tokens, mask)), jnp.asarray(mask)))


def _forward(loaded, tokens, mask):
  tokens = np.where(mask, tokens, loaded.model.config.vocab_size)
  with sharding.use(loaded.mesh, tiny.AXIS_RULES):
    return np.asarray(tiny.jit(loaded.model.apply)(
        {"params": loaded.params}, tokens, mask))


def greedy(loaded: Loaded, prompts, mask, *, length, eos_id):
  """(tokens, mask) [B, length]: what the sampler gives at temperature 0."""
  generate = rollout.make_generate(
      loaded.model, response_length=length, temperature=0.0, eos_id=eos_id)
  prompts = np.where(mask, prompts, loaded.model.config.vocab_size)
  with sharding.use(loaded.mesh, tiny.AXIS_RULES):
    out = tiny.jit(generate)(
        loaded.params, jax.random.key(0), prompts, mask,
        np.arange(len(prompts), dtype=np.int32))
  return np.asarray(out.response_tokens), np.asarray(out.response_mask)


def differences(folder, expected, **changes) -> dict[str, float]:
  """The largest ones, by name.

  Args:
    folder: in Hugging Face's form.
    expected: what another program gives of it, as in tests/interop/cases.py.
    **changes: of our sizes, and `mesh`.

  Raises:
    AssertionError: greedy continuations are not the same.
  """
  if "scores" in expected:
    got = scores(scalar(folder, **changes), expected["tokens"],
                 expected["mask"])
    return {"scores": _largest(got, expected["scores"])}
  loaded = policy(folder, **changes)
  real = expected["mask"]
  whole = _forward(loaded, expected["tokens"], real)[real]
  want = expected["logits"][real]
  num_rows = want.shape[-1]
  check_greedy(loaded, expected)
  # of whole rows of ours: what is past the vocabulary must take no probability
  logprobs = np.asarray(jax.nn.log_softmax(whole))[:, :num_rows]
  return {"logits": _largest(whole[:, :num_rows], want),
          "logprobs": _largest(logprobs, np.asarray(jax.nn.log_softmax(want)))}


def check_greedy(loaded: Loaded, expected) -> None:
  """Continuations are equal, up to and with the end."""
  tokens, mask = greedy(
      loaded, expected["prompts"], expected["prompt_mask"],
      length=expected["greedy"].shape[1], eos_id=int(expected["eos_id"]))
  np.testing.assert_array_equal(mask, expected["greedy_mask"])
  np.testing.assert_array_equal(tokens[mask], expected["greedy"][mask])


def _largest(got, want) -> float:
  assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
  return float(np.abs(got - want).max())
