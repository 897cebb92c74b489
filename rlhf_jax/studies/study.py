"""What a study is: what it measures on a seed's runs, shows and draws."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run

# A line of the CSV: seed, run, policy, task, name, mean, low, high, n.
Row = Mapping[str, Any]
COLUMNS = ("seed", "run", "policy", "task", "name", "mean", "low", "high", "n")


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells of a table; numbers are shown as they are."""

  title: str
  headers: Sequence[str]
  rows: Sequence[Sequence[str | float]]


@dataclasses.dataclass(frozen=True)
class Study:
  """A question to several runs.

  Attributes:
    about: the question, in a line.
    measure: one seed's finished runs by name -> its figures.
    tables: the rows of all seeds -> what they show.
    draw: (those rows, an empty matplotlib figure), drawn onto.
    settings: what it measures by, such as numbers of prompts; seeds of other
      settings are measured anew, and not joined.
  """

  about: str
  measure: Callable[[Mapping[str, Run]], Iterator[Result]]
  tables: Callable[[Sequence[Row]], list[Table]]
  draw: Callable[[Sequence[Row], Any], None]
  settings: Mapping[str, Any]
