"""What the documentation names is there, and what it shows runs."""

import functools
import gzip
import importlib
import json
import pathlib
import re
import shlex
import sys
import types
from unittest import mock

from absl import flags
import jax
from ml_collections import config_flags
import numpy as np
import pytest

from experiments import ppo_ptx
from rlhf_jax import command, handoff
from rlhf_jax.data.smallworld import Smallworld
from rlhf_jax.evals import registry, suite
from rlhf_jax.hf import families, importing
from tests import shared, tiny
from tests.evals import models
from tests.hf import folders

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("*/README.md")])
# [text](place), not of an image of another site
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(page):
  return str(page.relative_to(ROOT))


def prose(page):
  """A page without its blocks of code."""
  return _FENCE.sub("", page.read_text())


def fences(page):
  """(language, text) of its blocks of code, from top to bottom."""
  return _FENCE.findall(page.read_text())


def blocks(page, language):
  return [text for kind, text in fences(page) if kind == language]


@functools.cache
def anchors(page):
  """What a "#..." of the page may be, as code hosts and the site make it."""
  titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
  plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
  return {title.strip().replace(" ", "-") for title in plain}


# --------------------------------------------------------------- what is named


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
  for link in _LINK.findall(prose(page)):
    if re.match(r"\w+://|mailto:", link):
      continue
    place, _, anchor = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_sources_that_are_named_are_there(page):
  for code in _CODE.findall(prose(page)):
    if re.fullmatch(r"(rlhf_jax|experiments|tests|launch|docs)/[\w/.]+", code):
      assert (ROOT / code).exists(), code


def functions_of(page):
  """Names of this package in a page, as `losses.ranking_loss`."""
  for code in _CODE.findall(prose(page)):
    first = code.partition(".")[0]
    if re.fullmatch(r"\w+(\.\w+)+", code) and not code.endswith(
        (".py", ".json", ".jsonl", ".html", ".md")) and (
            (ROOT / "rlhf_jax" / f"{first}.py").exists()
            or (ROOT / "rlhf_jax" / first / "__init__.py").exists()):
      yield code


def resolved(name):
  """The object of a name such as "models.scalar.Scalar"."""
  parts = name.split(".")
  for length in range(len(parts), 0, -1):
    try:
      found = importlib.import_module(".".join(["rlhf_jax", *parts[:length]]))
    except ModuleNotFoundError:
      continue
    for attribute in parts[length:]:
      found = getattr(found, attribute)
    return found
  raise AttributeError(name)


def test_functions_of_the_method_are_there():
  names = list(functions_of(DOCS / "method.md"))
  assert len(names) > 50
  for name in names:
    assert resolved(name) is not None, name


@pytest.mark.parametrize(
    "page", sorted([DOCS / "library.md", *(DOCS / "extend").iterdir()]),
    ids=named)
def test_functions_of_the_other_pages_are_there(page):
  # settings of an experiment look alike: `data.prompts`, `collect.labeler`
  for name in functions_of(page):
    if not is_setting(name):
      assert resolved(name) is not None, name


def test_every_evaluator_is_on_its_page():
  """Those too that a suite lists and nothing here can measure."""
  said = set(_CODE.findall(prose(DOCS / "evaluations.md")))
  assert not {*registry.EVALUATORS, *registry.UNMEASURED,
              *registry.FAMILIES, *registry.SUITES} - said


def is_setting(name):
  found = ppo_ptx.get_config()
  for part in name.split("."):
    if not hasattr(found, "keys") or part not in found:
      return False
    found = found[part]
  return True


def commands():
  """(page, words) of every command on an experiment in the documentation."""
  for page in PAGES:
    for block in blocks(page, "bash"):
      for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("python -m rlhf_jax.main"):
          yield page, shlex.split(line, comments=True)[3:]


@pytest.mark.parametrize("words", [words for _, words in commands()],
                         ids=lambda words: " ".join(words)[:70])
def test_commands_set_what_an_experiment_has(words, monkeypatch):
  argv = ["main", *map(command.quote_round, words)]
  monkeypatch.setattr(sys, "argv", argv)  # the library reads both
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  values(argv)
  assert values.config.name and values.workdir


# ----------------------------------------------------------- what is generated


def test_the_configuration_page_is_up_to_date():
  maker = shared.module_at(DOCS / "make_configuration.py")
  assert (DOCS / "configuration.md").read_text() == maker.page(), (
      "write it anew: python docs/make_configuration.py")


# --------------------------------------------------------------- what is shown


@pytest.fixture(autouse=True, scope="module")
def _compiled_in_a_hurry():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(name="show")
def _show(tmp_path, monkeypatch):
  """`show(page)` runs its Python in an empty folder, block after block; one
  that begins with the name of a file of the package is that module."""
  monkeypatch.chdir(tmp_path)

  def run(page, start=0, end=None):
    space = space_of.setdefault(page, {"__name__": "shown"})
    for text in blocks(DOCS / page, "python")[start:end]:
      file = re.match(r"# rlhf_jax/([\w/]+)\.py\n", text)
      if not file:
        exec(compile(text, page, "exec"), space)
        continue
      name = "rlhf_jax." + file[1].replace("/", ".")
      module = types.ModuleType(name)
      exec(compile(text, page, "exec"), module.__dict__)
      monkeypatch.setitem(sys.modules, name, module)
      parent, _, last = name.rpartition(".")
      monkeypatch.setattr(
          importlib.import_module(parent), last, module, raising=False)
    return types.SimpleNamespace(**space)

  space_of = {}
  return run


@pytest.mark.parametrize("page", [
    "library.md", "extend/dataset.md", "extend/reward.md",
    "extend/algorithm.md"])
def test_what_a_page_shows_runs(show, page):
  show(page)  # with its own assertions


def test_an_evaluator_of_the_page_measures(show, tmp_path):
  shown = show("evaluations.md", 0, 1)
  (tmp_path / "evals").mkdir()
  with gzip.open(tmp_path / shown.known_answers.file, "wt") as file:
    for row in (dict(question="Who?", answer=" Ben"),
                dict(question="Where?", answer=" a long way"),
                dict(question="Why not?", answer=" too long")):
      file.write(json.dumps(row) + "\n")
  with mock.patch.dict(
      registry.EVALUATORS, {"known_answers": shown.known_answers}):
    tasks, _ = suite.prepare(["known_answers"], str(tmp_path), None)
  task = tasks["known_answers"]
  found = models.by_name(task.measure(models.ByRote(
      {("Who?", " Ben"): -1.0, ("Where?", " a long way"): -4.0},
      cut=["Where?"], left_out=[" too long"])))
  assert task.num_texts == found["cut"].n == 3
  assert found["nats"].mean == 2.5
  assert found["cut"].mean == found["left_out"].mean == pytest.approx(1 / 3)


@pytest.mark.parametrize("page", sorted((DOCS / "extend").iterdir()), ids=named)
def test_a_worked_example_is_short(page):
  lines = [line for text in blocks(page, "python")
           for line in text.splitlines() if line.strip()]
  assert 5 < len(lines) < 60


def test_a_labeler_of_the_page_is_taken_in(show, tmp_path):
  prompt = "What pet does Kate have?"
  answers = [{"prompt": prompt, "responses": responses} for responses in (
      Smallworld().responses(prompt, 4, seed) for seed in range(3))]
  groups = ("train", "train", "heldout", "heldout")
  asked = handoff.make_tasks("collect", [
      types.SimpleNamespace(number=number, groups=groups[:1 + 3 * number])
      for number in range(3)], answers)
  folder = tmp_path / "runs/brief/collect"
  folder.mkdir(parents=True)
  (folder / "tasks.jsonl").write_text(
      "".join(json.dumps(task) + "\n" for task in asked))

  show("extend/labeler.md")
  roster = handoff.read_roster("roster.jsonl")
  taken = handoff.read_ranked("ranked.jsonl", asked, roster)
  assert set(taken) == {task["task_id"] for task in asked}
  assert len(set(roster)) == 4 and set(roster.values()) == {"train", "heldout"}


def test_a_family_of_the_page_is_read_as_it_is(show, tmp_path):
  """Against numbers of GPT-Neo's equations, written out."""
  config = dict(
      model_type="gpt_neo", vocab_size=50, max_position_embeddings=24,
      hidden_size=16, num_layers=2, num_heads=2, window_size=3,
      attention_types=[[["global", "local"], 1]])
  known = show("extend/model_family.md").FAMILIES
  assert known.keys() - {"gpt_neo"} == families.FAMILIES.keys()
  with mock.patch.object(families, "FAMILIES", known):
    tensors = folders.tensors(config)
    spec = folders.write(tmp_path / "neo", config, tensors)
    model = tiny.policy(**{k: getattr(folders.sizes(config), k) for k in (
        "vocab_size", "context_length", "d_model", "num_layers", "num_heads",
        "attention_pattern", "band_width", "mlp_size")})
    mesh = tiny.make_mesh("one_device")
    _, shardings = tiny.shard(tiny.params(model), mesh)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        tiny.params(model), shardings)
    params = importing.policy_params(spec, model.config, abstract)
  tokens = np.arange(8)[None] * 5 % 50
  logits = model.apply({"params": params}, tokens, tokens >= 0)
  np.testing.assert_allclose(
      logits[0, :, :50], neo(tensors, tokens[0], window=3), atol=2e-4)


def neo(tensors, tokens, window):
  """GPT-Neo's logits, [L, V], of two heads."""
  t = lambda name: tensors[f"transformer.{name}"].astype(np.float64)

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-5)
    return x * t(f"{name}.weight") + t(f"{name}.bias")

  def linear(x, name):
    bias = tensors.get(f"transformer.{name}.bias", 0.0)
    return x @ t(f"{name}.weight").T + bias

  length = len(tokens)
  x = t("wte.weight")[tokens] + t("wpe.weight")[:length]
  for number in range(2):
    at = f"h.{number}."
    h = norm(x, f"{at}ln_1")
    query, key, value = (
        linear(h, f"{at}attn.attention.{part}_proj")
        .reshape(length, 2, -1).swapaxes(0, 1) for part in "qkv")
    seen = np.tril(np.ones((length, length), bool))
    if number % 2:
      seen &= ~np.tril(seen, -window)
    weights = np.where(seen, np.einsum("hlk,hsk->hls", query, key), -1e9)
    weights = np.exp(weights - weights.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    heads = np.einsum("hls,hsk->lhk", weights, value).reshape(length, -1)
    x = x + linear(heads, f"{at}attn.attention.out_proj")
    h = linear(norm(x, f"{at}ln_2"), f"{at}mlp.c_fc")
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    x = x + linear(h, f"{at}mlp.c_proj")
  return norm(x, "ln_f") @ t("wte.weight").T
