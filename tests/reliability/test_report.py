"""The table says what was measured, what was not, and what went wrong."""

import json

from tests.reliability import report

_KILLS = {
    "test": "kills", "processes": 2, "tried": 20, "runs": 2,
    "moments": {"in a save": 3, "in collection": 4, "anywhere": 13},
    "different": {"bits": 0, "rows": 0, "values": 0, "files": 0}}
_SOAK = {"test": "soak", "iterations": 500, "warm_up": 100,
         "host_percent": 0.5, "device_percent": 0.0, "files": 0, "threads": 1}
_SAVE = {"test": "save_cost", "every": 20, "percent_blocking": 0.2,
         "percent_wall": 0.75, "percent_cpu": 0.5,
         "percent_cpu_every_iteration": 10.0, "pairs": 8, "saved_bytes": 2e7}


def _table(*rows):
  return dict(line.strip("| ").split(" | ")
              for line in report.table(rows).splitlines()[2:])


def test_nothing_measured_is_said_of_each_part():
  found = _table()
  assert len(found) == 6 and set(found.values()) == {report.MISSING}


def test_sessions_are_summed(tmp_path):
  path = tmp_path / "account.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in (
      _KILLS, _KILLS, _KILLS | {"processes": 1}, _SOAK, _SAVE)))
  found = _table(*report.read(path))
  two = found["SIGKILL at random moments, 2 process(es)"]
  assert two.startswith("40 tried in 4 run(s), all survived; 6 in saves, 8 in")
  assert "0 differing bits, 0 lost" in two
  assert found["SIGKILL at random moments, 1 process(es)"].startswith("20 ")
  assert "host memory +0.50 %" in found[
      "soak, 500 PPO iterations, after 100"]
  assert "0.75 % with" in found[
      "save cost at `mini`, a save every 20 iterations"]


def test_what_differs_is_not_survived():
  bad = _KILLS | {"different": _KILLS["different"] | {"bits": 7}}
  text = _table(bad)["SIGKILL at random moments, 2 process(es)"]
  assert "NOT all survived" in text and "7 differing bits" in text


def test_a_fault_is_survived_if_it_always_was():
  fault = {"test": "faults", "fault": "disk full", "survived": True}
  lock = fault | {"fault": "lease stolen"}
  found = _table(fault, lock, fault)["faults of storage and clock, locks"]
  assert found == "2 kinds tried, 2 survived"
  found = _table(fault, lock, fault | {"survived": False})
  assert found["faults of storage and clock, locks"] == (
      "2 kinds tried, 1 survived; NOT: disk full")


def test_inputs_are_summed_by_what_reads_them():
  row = {"test": "test_rows[short-prompts]", "tried": 80, "accepted": 10,
         "answered": 70}
  found = _table(
      row, row | {"test": "test_rows[long-comparisons]"},
      {"test": "bombs", "tried": 5, "accepted": 0, "answered": 4},
      {"test": "preemption", "case": "SIGTERM", "status": 75},
      {"test": "preemption", "case": "SIGINT", "status": 130},
      {"test": "preemption", "case": "SIGTERM", "processes": 2,
       "status": [75, 75]})
  assert found["malformed inputs: rows"] == (
      "160 tried, 140 answered with a message, 20 taken")
  assert found["malformed inputs: bombs"].endswith(", 1 NEITHER")
  assert found["malformed inputs: all"].startswith("165 tried, 144 answered")
  assert found["SIGTERM, Ctrl-C, 1 process(es)"] == (
      "1 case(s) with status 130; 1 case(s) with status 75")
  assert found["SIGTERM, Ctrl-C, 2 process(es)"] == (
      "1 case(s) with status 75")
