"""The notebooks as they are kept, and executed from start to end.

  pip install -e '.[test,notebooks]' && pytest tests/notebooks
"""

import json
import re

import nbformat
import pytest

from notebooks import render
from tests import shared, test_docs

_TINY = dict(layers=2, width=32, heads=2, documents=600, pretrain_steps=16,
             sft_steps=16, rl_init_steps=8, ranked_prompts=32,
             validation_prompts=8, ppo_iters=3, episodes=16)
_TINY_WORLD = dict(demonstrations=240, customer_prompts=240)
# In the place of the settings of their parameters cells.
SMALL = {
    "rlhf_in_fifteen_minutes": dict(
        _TINY, **_TINY_WORLD, test_prompts=32, redraw_seconds=0.5),
    "inside_the_fused_step": dict(_TINY, **_TINY_WORLD, num_responses=8),
    "your_own_data_and_labelers": dict(
        _TINY, num_letters=480, test_prompts=16),
    "from_a_checkpoint_to_a_pod": dict(
        _TINY_WORLD, documents=200, sft_steps=4, batch_rows=8,
        tokens_a_side=48, pod=(
            "--config=experiments/ppo_ptx.py:125m", "--topology=h100:1x8",
            "--only=ppo/step")),
}
# Of each: words that it prints at its end, and its number of pictures.
SHOWN = {
    "rlhf_in_fifteen_minutes": ("PPO is preferred to SFT in", 6),
    "inside_the_fused_step": ("nats in this row", 6),
    "your_own_data_and_labelers": ("PPO's letter is liked better in", 1),
    "from_a_checkpoint_to_a_pod": ("ppo_ptx_125m on h100:1x8", 0),
}
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def cells(name, kind):
  return [cell for cell in render.read(name).cells if cell.cell_type == kind]


def test_all_of_them_are_here():
  assert set(render.NAMES) == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_it_is_kept_valid_and_without_outputs(name):
  book = render.read(name)
  nbformat.validate(book)
  kept = json.loads((render.HERE / f"{name}.ipynb").read_text())
  for cell in kept["cells"]:
    assert not cell.get("outputs") and cell.get("execution_count") is None
    # nor what an editor leaves behind
    assert set(cell["metadata"]) <= {"tags"}
  assert set(kept["metadata"]) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", SMALL)
def test_it_begins_as_the_others_do(name):
  first = cells("rlhf_in_fifteen_minutes", "code")[0].source
  assert cells(name, "code")[0].source == first


@pytest.mark.parametrize("name", SMALL)
def test_its_lines_are_short_and_its_links_lead_somewhere(name):
  for cell in render.read(name).cells:
    assert all(len(line) <= 80 for line in cell.source.splitlines())
  for cell in cells(name, "markdown"):
    for link in _LINK.findall(cell.source):
      if link.startswith("https://"):
        continue
      place, _, anchor = link.partition("#")
      assert (render.HERE / place).exists(), link
      assert not anchor or anchor in test_docs.anchors(
          (render.HERE / place).resolve()), link


@pytest.mark.parametrize("name", SMALL)
def test_its_page_is_of_this_notebook(name):
  """All that it says, with pictures, and nothing of where it was executed."""
  page = (render.PAGES / f"{name}.md").read_text()
  for cell in render.read(name).cells:
    is_code = cell.cell_type == "code"
    assert (cell.source if is_code else render.relinked(cell.source)) in page
  pictures = re.findall(rf"\]\(({name}/\S+\.png)\)", page)
  assert len(pictures) == SHOWN[name][1]
  assert all((render.PAGES / picture).exists() for picture in pictures)
  assert "/tmp" not in page and "/home" not in page


def test_a_setting_that_it_has_not_is_refused():
  with pytest.raises(KeyError, match="ppo_iter"):
    render.execute("rlhf_in_fifteen_minutes", ".", ppo_iter=3)


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_from_start_to_end(name, tmp_path_factory, monkeypatch):
  # what one of them has compiled the others need not
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared.compiled()))
  # mostly compiling
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
  book = render.execute(name, tmp_path_factory.mktemp(name), **SMALL[name])
  outputs = [output for cell in book.cells if cell.cell_type == "code"
             for output in cell.outputs]
  words, num_pictures = SHOWN[name]
  printed = "".join(output.text for output in outputs
                    if output.get("name") == "stdout")
  assert words in printed
  assert num_pictures == sum(
      "image/png" in output.get("data", {}) for output in outputs)
