"""Executes notebooks, and makes pages of them with what they have shown.

  pip install -e '.[notebooks]'
  python notebooks/render.py [NAME ...]

writes docs/notebooks/NAME.md and its pictures. The notebooks themselves are
kept without outputs.
"""

import ast
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import nbclient
import nbconvert
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "notebooks"
NAMES = sorted(path.stem for path in HERE.glob("*.ipynb"))
_PARAMETERS = "parameters"  # the tag of the cell with the settings
_CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> nbformat.NotebookNode:
  """The notebook of a name, as it is kept."""
  return nbformat.read(HERE / f"{name}.ipynb", as_version=4)


def execute(
    name: str, folder: os.PathLike, **settings: Any
) -> nbformat.NotebookNode:
  """Runs a notebook from start to end.

  Args:
    name: of the notebook.
    folder: where it runs; what it writes lies below.
    **settings: in the place of those of its parameters cell.

  Returns:
    The notebook with its outputs.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell failed.
    KeyError: the parameters cell has no such setting.
  """
  book = read(name)
  if settings:
    book.cells.insert(*replacement(book, settings))
  nbclient.NotebookClient(
      book, timeout=None, kernel_name="python3",
      resources={"metadata": {"path": str(folder)}}).execute()
  return book


def replacement(
    book: nbformat.NotebookNode, settings: dict[str, Any]
) -> tuple[int, nbformat.NotebookNode]:
  """(place, a cell that sets `settings` anew after the parameters cell)."""
  [place] = [number for number, cell in enumerate(book.cells)
             if _PARAMETERS in cell.metadata.get("tags", ())]
  known = {node.id for node in ast.walk(ast.parse(book.cells[place].source))
           if isinstance(node, ast.Name)}
  if unknown := sorted(settings.keys() - known):
    raise KeyError(f"no such settings: {unknown}; there are {sorted(known)}")
  source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
  return place + 1, nbformat.v4.new_code_cell(source)


def write_page(
    book: nbformat.NotebookNode, name: str, folder: os.PathLike) -> None:
  """Writes a notebook that was executed in a folder, which the page does not
  name, as Markdown with its pictures beside it."""
  for cell in book.cells:
    if cell.cell_type == "code":
      cell.outputs = [output for output in cell.outputs if is_shown(output)]
      for output in cell.outputs:
        if "text" in output:
          output.text = output.text.replace(f"{folder}/", "")
    else:
      cell.source = relinked(cell.source)
  text, resources = nbconvert.MarkdownExporter().from_notebook_node(
      book, resources={"output_files_dir": name, "unique_key": name})
  (PAGES / name).mkdir(parents=True, exist_ok=True)
  for file, content in resources["outputs"].items():
    (PAGES / file).write_bytes(content)
  (PAGES / f"{name}.md").write_text(
      _CODE.sub(lambda cell: fenced(cell[1]), text))


def fenced(code: str) -> str:
  """A cell's code as Markdown; !commands and %magics are no Python."""
  language = "ipython3" if re.search(r"^\s*[!%]", code, re.MULTILINE) else (
      "python")
  return f"```{language}\n{code}```"


def is_shown(output: nbformat.NotebookNode) -> bool:
  """Not progress bars, which a page cannot show."""
  return output.get("name") != "stderr" and (
      "application/vnd.jupyter.widget-view+json" not in output.get("data", {}))


def relinked(text: str) -> str:
  """Links of notebooks/ as docs/notebooks/ has them."""
  text = text.replace("](../docs/", "](../").replace("](../rlhf_jax/",
                                                    "](../../rlhf_jax/")
  return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text)


def main() -> None:
  for name in sys.argv[1:] or NAMES:
    with tempfile.TemporaryDirectory() as folder:
      write_page(execute(name, folder), name, folder)


if __name__ == "__main__":
  main()
