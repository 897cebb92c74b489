"""The table of docs/reliability.md.

  python -m tests.reliability.report FILE

FILE is what `pytest --account=FILE` wrote, a JSON object a line, of one
session or of several. What was not measured is said to be missing.
"""

from collections.abc import Iterable, Mapping, Sequence
import collections
import json
import pathlib
import re
import sys

MISSING = "not measured"
Rows = Sequence[Mapping]
# Not inputs, though they lie in the same file.
_OTHERS = ("kills", "faults", "preemption", "soak", "save_cost")
_COUNTS = {"tried", "accepted", "answered"}


def read(path: str) -> list[dict]:
  lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines if line.strip()]


def lines(rows: Rows) -> Iterable[tuple[str, str]]:
  """(what was done, what came of it)."""
  by_name = collections.defaultdict(list)
  for row in rows:
    by_name[row["test"]].append(row)
  yield from kills(by_name["kills"])
  yield from survived("faults of storage and clock, locks", "fault",
                      by_name["faults"])
  yield from preemptions(by_name["preemption"])
  yield from inputs([row for row in rows if row["test"] not in _OTHERS
                     and _COUNTS <= row.keys()])
  yield from soak(by_name["soak"])
  yield from save_cost(by_name["save_cost"])


def kills(rows: Rows) -> Iterable[tuple[str, str]]:
  """By the number of processes; all sessions together."""
  if not rows:
    yield "SIGKILL at random moments", MISSING
  for number in sorted({row["processes"] for row in rows}):
    total, moments, different = (collections.Counter() for _ in range(3))
    for row in rows:
      if row["processes"] == number:
        total.update(tried=row["tried"], runs=row["runs"])
        moments.update(row["moments"])
        different.update(row["different"])
    lost = sum(different.values())
    yield (
        f"SIGKILL at random moments, {number} process(es)",
        f"{total['tried']} tried in {total['runs']} run(s), "
        f"{'all' if not lost else 'NOT all'} survived; "
        f"{moments['in a save']} in saves, {moments['in collection']} in "
        f"collection; {different['bits']} differing bits, "
        f"{different['rows']} lost or doubled rows, {different['values']} "
        f"other values, {different['files']} other files")


def survived(what: str, key: str, rows: Rows) -> Iterable[tuple[str, str]]:
  """Each kind once, and survived only if it always was."""
  kinds = collections.defaultdict(lambda: True)
  for row in rows:
    kinds[row[key]] &= row["survived"]
  bad = [kind for kind, is_good in kinds.items() if not is_good]
  yield what, (
      f"{len(kinds)} kinds tried, {len(kinds) - len(bad)} survived"
      + (f"; NOT: {', '.join(bad)}" if bad else "") if rows else MISSING)


def preemptions(rows: Rows) -> Iterable[tuple[str, str]]:
  """By the number of processes: how many cases ended with which statuses."""
  if not rows:
    yield "SIGTERM, Ctrl-C", MISSING
  by_number = collections.defaultdict(collections.Counter)
  for row in rows:
    found = row["status"]
    statuses = sorted(set(found if isinstance(found, list) else [found]))
    by_number[row.get("processes", 1)][", ".join(map(str, statuses))] += 1
  for number, counts in sorted(by_number.items()):
    yield f"SIGTERM, Ctrl-C, {number} process(es)", "; ".join(
        f"{count} case(s) with status {statuses}"
        for statuses, count in sorted(counts.items()))


def inputs(rows: Rows) -> Iterable[tuple[str, str]]:
  """By what reads them: the test's name without its parameters."""
  if not rows:
    yield "malformed inputs", MISSING
    return
  targets = collections.defaultdict(collections.Counter)
  for row in rows:
    name = re.sub(r"^test_|\[.*", "", row["test"]).replace("_", " ")
    targets[name].update({key: row[key] for key in _COUNTS})
  total = sum(targets.values(), collections.Counter())
  for name, counts in [*sorted(targets.items()), ("all", total)]:
    yield f"malformed inputs: {name}", _answers(counts)


def _answers(counts: Mapping[str, int]) -> str:
  rest = counts["tried"] - counts["accepted"] - counts["answered"]
  return (f"{counts['tried']:,} tried, {counts['answered']:,} answered with a "
          f"message, {counts['accepted']:,} taken"
          + (f", {rest:,} NEITHER" if rest else ""))


def soak(rows: Rows) -> Iterable[tuple[str, str]]:
  if not rows:
    yield "soak", MISSING
  for row in rows:
    yield (
        f"soak, {row['iterations']} PPO iterations, after {row['warm_up']}",
        f"host memory {row['host_percent']:+.2f} %, device memory "
        f"{row['device_percent']:+.2f} %, open files {row['files']:+d}, "
        f"threads {row['threads']:+d}")


def save_cost(rows: Rows) -> Iterable[tuple[str, str]]:
  if not rows:
    yield "save cost at `mini`", MISSING
  for row in rows:
    yield (
        f"save cost at `mini`, a save every {row['every']} iterations",
        f"{row['percent_blocking']:.2f} % of the step time in the call, "
        f"{row['percent_wall']:.2f} % with what it slows the next step down, "
        f"{row['percent_cpu']:.2f} % of the CPU's seconds "
        f"({row['percent_cpu_every_iteration']:.1f} % if saved each time); "
        f"{row['pairs']} saves of {row['saved_bytes'] / 1e6:.0f} MB")


def table(rows: Rows) -> str:
  """Markdown."""
  return "\n".join(["| what | result |", "| --- | --- |", *(
      f"| {what} | {result} |" for what, result in lines(rows))])


if __name__ == "__main__":
  print(table(read(sys.argv[1])))
