"""What labelers mark, by policy: the paper's Figure 4 and Table 3."""

from collections.abc import Iterator, Mapping, Sequence

from rlhf_jax.evals.suite import Result
from rlhf_jax.run import Run
from rlhf_jax.studies import charts, measuring, policies
from rlhf_jax.studies.study import Row, Study, Table

FAMILY = policies.of_main()
TASK = "metadata"
# Panel -> name of the figure.
FIGURE_4 = {
    "attempts the instruction": "attempts_instruction",
    "follows the constraint": "follows_constraint",
    "hallucinates (closed domain)": "hallucination_closed_domain",
    "appropriate for a customer\nassistant":
        "appropriate_for_customer_assistant",
}


def measure(runs: Mapping[str, Run]) -> Iterator[Result]:
  """Yields the share of every mark, and what a response's score is made of."""
  yield from policies.measure(
      runs, (FAMILY,), (TASK, "gold", "style", "rating"), {})


def tables(rows: Sequence[Row]) -> list[Table]:
  line = lambda task, name: [
      measuring.spread(rows, run=run, policy=policy, task=task, name=name)
      for run, policy in FAMILY.members.values()]
  names = lambda task: dict.fromkeys(
      row["name"] for row in rows if row["task"] == task)
  return [
      Table(title, ("", *FAMILY.members),
            [(name, *line(task, name)) for name in names(task)])
      for title, task in (
          ("Share of responses marked; mean over seeds, least and most", TASK),
          ("Gold score and its parts", "gold"), ("Style", "style"))]


def draw(rows: Sequence[Row], figure) -> None:
  """The four panels of Figure 4, a bar a policy."""
  figure.set_size_inches(10, 3.2)
  for panel, (title, name) in zip(
      figure.subplots(1, len(FIGURE_4)), FIGURE_4.items()):
    for place, (run, policy) in enumerate(FAMILY.members.values()):
      found = list(measuring.values(
          rows, run=run, policy=policy, task=TASK, name=name).values())
      panel.bar(place, sum(found) / len(found), color=charts.COLORS[place])
      charts.intervals(panel, [place], [found], color=charts.GREY)
    panel.set_title(title, fontsize=9)
    panel.set_ylim(0, 1)
    panel.set_xticks(range(len(FAMILY.members)), FAMILY.members, rotation=60,
                     fontsize=8)


STUDY = Study(
    "What do the policies do that labelers mark?",
    measure, tables, draw, measuring.SETTINGS)
