"""Who may import whom: the sources are parsed, not run."""

import ast
import functools
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# From the lowest to the highest; a module imports its own layer and those
# below. A package stands for all that is in it.
LAYERS = (
    "ahead exits usage host_memory faults patience storage lock boards "
    "compilation watch rendezvous tree masked sharding",
    "profiling fingerprints interruption item_files",
    "distributed losses advantages models data config hf",
    "optimizer train_state checkpoint metrics",
    "guards rollout refill",
    "ppo_step run datasets streams sampler scoring loop",
    "labelers handoff collect screening evals trainers",
    "summaries compare",
    "report",
    "pipeline recipe model_card",
    "studies",
    "main sample evaluate screen plan replay export command ending study "
    "__main__",
)


@functools.cache
def imports():
  """Module -> all that it imports, wherever in its source."""
  found = {}
  for folder in ("rlhf_jax", "experiments"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
      found[name] = set(imported(ast.parse(path.read_text()), name))
  return found


def imported(source, name):
  for node in ast.walk(source):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f"{name} imports by a relative name"
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        yield full if is_module(full) else node.module


def is_module(name):
  path = ROOT / name.replace(".", "/")
  return path.with_suffix(".py").exists() or path.is_dir()


def layer_of(module):
  """The number of a module's layer."""
  for number, names in enumerate(LAYERS):
    if module.split(".")[1] in names.split():
      return number
  raise AssertionError(f"{module} is in no layer: give it one")


def own(modules):
  """Those of this package, its empty root left out."""
  return {m for m in modules if m.startswith("rlhf_jax.")}


def below(*names):
  """The modules named and all in them."""
  return [m for m in imports()
          if any(m == n or m.startswith(f"{n}.") for n in names)]


def packages(module):
  """The first names of what a module imports."""
  return {name.partition(".")[0] for name in imports()[module]}


@pytest.mark.parametrize("module", sorted(own(imports())))
def test_a_module_imports_no_higher_one(module):
  higher = {m for m in own(imports()[module]) if layer_of(m) > layer_of(module)}
  assert not higher


def test_the_parser_sees_imports():
  assert "rlhf_jax.trainers.ppo" in imports()["rlhf_jax.pipeline"]
  assert "rlhf_jax.ppo_step" in imports()["rlhf_jax.trainers.ppo"]
  assert "experiments.common" in imports()["experiments.ppo_ptx"]
  assert "tensorflow_datasets" in imports()["rlhf_jax.data.sources"]


def test_every_layer_is_there():
  known = {m.split(".")[1] for m in own(imports())}
  assert known == set(" ".join(LAYERS).split())


def test_imports_have_no_circle():
  graph = {m: own(names) for m, names in imports().items()}
  graphlib.TopologicalSorter(graph).prepare()


def test_trainers_do_not_know_each_other():
  for module in below("rlhf_jax.trainers"):
    others = set(below("rlhf_jax.trainers")) - {module}
    assert not imports()[module] & others, module


def test_losses_see_arrays_only():
  for module in ("rlhf_jax.losses", "rlhf_jax.advantages", "rlhf_jax.masked"):
    assert not packages(module) & {"flax", "ml_collections", "optax"}
    assert own(imports()[module]) <= {"rlhf_jax.masked"}


def test_data_sees_no_devices():
  for module in below("rlhf_jax.data"):
    assert not packages(module) & {"jax", "flax", "jaxlib"}, module


def test_networks_are_built_in_models_alone():
  for module in set(own(imports())) - set(below("rlhf_jax.models")):
    assert not any(n.startswith("flax.linen") for n in imports()[module])


def test_the_config_stops_at_the_trainers():
  for module in own(imports()):
    if layer_of(module) <= layer_of("rlhf_jax.rollout") and (
        module != "rlhf_jax.config"):
      assert "ml_collections" not in packages(module), module


def test_experiments_are_settings_only():
  for module in below("experiments"):
    assert packages(module) <= {"experiments", "ml_collections"}, module
    assert own(imports()[module]) == set()
    if not module.startswith("experiments.studies"):  # made of experiments
      assert {n for n in imports()[module] if n.startswith("experiments")} <= {
          "experiments", "experiments.common"}


@pytest.mark.parametrize("package", [
    "tensorflow", "torch", "transformers", "pickle", "dill", "cloudpickle",
    "marshal", "shelve"])
def test_is_imported_nowhere(package):
  assert not [m for m in imports() if package in packages(m)]
