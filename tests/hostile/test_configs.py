"""Any value of any key: an experiment is valid or says which key is not."""

import functools
import importlib
import math
import pathlib
import time

from hypothesis import strategies as st
import ml_collections
import pytest

from rlhf_jax import config as config_lib
from rlhf_jax.config import ConfigError
from rlhf_jax.hf.fields import FolderError
from tests import shared
from tests.hostile.conftest import ACCEPTED, ANSWERED

# Those that need no data but Smallworld's, so that they are valid as they are.
_EXPERIMENTS = sorted(
    path.stem for path in
    (pathlib.Path(__file__).parents[2] / "experiments").glob("*.py")
    if path.stem not in ("__init__", "common")
    and not path.stem.startswith("hh"))
_SECONDS = 5.0  # for one config on a busy machine; it takes a hundredth

_numbers = st.one_of(
    st.sampled_from((
        0, -1, 1, 2, -0.0, 0.5, 1.0, 1e-320, 1e308, -1e308, math.nan, math.inf,
        -math.inf, 2**31, 2**53, 2**53 + 1, 2**64, -2**63, 10**400, 10**4000)),
    st.integers(), st.floats())
_texts = st.one_of(
    st.sampled_from((
        "", " ", "\0", "\ud800", "../../x", "/etc", "x" * 300, "x" * 5000,
        "jsonl:", "jsonl:,", "jsonl:a=nan", "jsonl:a=1,b", "jsonl:[", "tfds:",
        "tfds:/", "jsonl:\x00", "jsonl:" + "x" * 5000, "a,b", "train", "sft",
        "ppo@2", "ppo@", "@", "rm", "collect", "labelers", "smallworld",
        "export", "jsonl:~nobody/x", "{", "%s", "hf:", "hf:/etc", "hf:\0",
        "init")),
    st.text(max_size=8))
_scalars = st.one_of(_numbers, _texts, st.booleans(), st.none())
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.tuples(inner), st.tuples(inner, inner),
        st.lists(inner, max_size=3).map(tuple), st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(("a", "data", "sft")), inner,
                        max_size=2)),
    max_leaves=5)


@functools.cache
def _base(experiment: str) -> ml_collections.ConfigDict:
  config = importlib.import_module(f"experiments.{experiment}").get_config()
  if config.init.policy:  # of the hub
    folder = shared.folder() / "imported"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    config.init.policy = f"hf:{folder}"
    config, _ = config_lib.with_imported(config)
  return config


@functools.cache
def _paths(experiment: str) -> tuple[str, ...]:
  """All keys of an experiment, sub-trees among them."""
  def walk(tree, prefix):
    for key, value in tree.items():
      yield prefix + key
      if isinstance(value, dict):
        yield from walk(value, f"{prefix}{key}.")
  return tuple(walk(_base(experiment).to_dict(), ""))


def _alike(value):
  """Values of the sort that a key has: what the command line can give."""
  if isinstance(value, bool):
    return st.booleans()
  if isinstance(value, (int, float)):
    return _numbers
  if isinstance(value, str):
    return _texts
  if isinstance(value, (tuple, list)):
    return st.lists(_values, max_size=4).map(tuple)
  return _values


@st.composite
def _changes(draw):
  """(experiment, the key and the value of one to three changes)."""
  experiment = draw(st.sampled_from(_EXPERIMENTS))
  changes = {}
  for path in draw(st.lists(st.sampled_from(_paths(experiment)),
                            min_size=1, max_size=3)):
    old = _base(experiment)
    for key in path.split("."):
      old = old[key]
    changes[path] = draw(st.one_of(_alike(old), _alike(old), _values))
  return experiment, changes


def _changed(experiment, changes):
  tree = _base(experiment).to_dict()
  for path, value in changes.items():
    *parents, last = path.split(".")
    inner = tree
    for name in parents:
      inner = inner.get(name) if isinstance(inner, dict) else None
    if isinstance(inner, dict):  # else an earlier change took its place
      inner[last] = value
  return ml_collections.ConfigDict(tree)


@pytest.mark.parametrize("check_inputs", [True, False])
def test_it_is_valid_or_the_message_names_a_changed_key(attempt, check_inputs):
  def law(drawn):
    experiment, changes = drawn
    config = _changed(experiment, changes)
    began = time.monotonic()
    try:
      config, _ = config_lib.with_imported(config)
      config_lib.validate(config, 1, check_inputs=check_inputs)
    except (ConfigError, FolderError) as error:
      names = {part for path in changes for part in path.split(".")}
      assert any(name in str(error) for name in names), str(error)
      str(error).encode()  # can be printed anywhere
      return ANSWERED
    finally:
      assert time.monotonic() - began < _SECONDS
    return ACCEPTED

  attempt(_changes(), law, 200)


@pytest.mark.parametrize("experiment", ["ppo_ptx", "rounds"])
def test_no_value_of_a_key_breaks_it(attempt, experiment):
  """Each key with each of a few values that break careless rules."""
  worst = (0, -1, 10**400, math.nan, math.inf, "", "\0", "\ud800", (), ((),),
           ("a",), None, {}, True)

  def law(drawn):
    path, value = drawn
    try:
      config, _ = config_lib.with_imported(
          _changed(experiment, {path: value}))
      config_lib.validate(config, 1)
    except (ConfigError, FolderError) as error:
      assert path.split(".")[-1] in str(error), str(error)
      return ANSWERED
    return ACCEPTED

  attempt(st.tuples(st.sampled_from(_paths(experiment)),
                    st.sampled_from(worst)), law, 200)


_DEEP = functools.reduce(lambda inner, _: (inner,), range(5000), ())


@pytest.mark.parametrize("changes,named", [
    ({"seed": 10**5000}, "config.seed"),  # too long for repr
    ({"stages": (10**5000,)}, "config.stages"),
    ({"rm.fold": (0, 10**5000)}, "config.rm.fold"),
    ({"model.dtype": 10**5000}, "config.model.dtype"),
    ({"axis_rules": _DEEP}, "config.axis_rules"),
    ({"mesh.data": -1, "mesh.fsdp": 2**32, "mesh.tensor": 2**32},
     "18446744073709551616 devices"),  # 0 in 64 bits
    ({"rm.num_row_parts": 0}, "config.rm.num_row_parts"),
])
def test_what_hypothesis_cannot_draw_or_seldom_does(changes, named):
  with pytest.raises(ConfigError) as error:
    config_lib.validate(_changed("ppo_ptx", changes), 1)
  assert named in str(error.value)
