"""A run killed at any moment ends as one that never was, bit for bit."""

import collections

import pytest

from tests import results
from tests.reliability import kills, undisturbed

AT_LEAST = 3  # kills that fall in saves, and in collection
SECONDS = 1.5  # a process: a tenth of a run that finds all compiled
NOTHING = {"bits": 0, "rows": 0, "values": 0, "files": 0}


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("num_kills", [
    20, pytest.param(200, marks=pytest.mark.long)])
def test_a_killed_run_ends_as_an_undisturbed_one(
    tmp_path, account, num_processes, num_kills):
  expected = undisturbed.run(num_processes)
  killer = kills.Killer(undisturbed.command(), num_processes, seed=num_kills,
                        at_least=AT_LEAST, seconds=SECONDS * num_processes,
                        most=-(-num_kills // 6))
  number, total = 0, collections.Counter()
  while len(killer.kills) < num_kills:  # several runs, if one is too short
    workdir = tmp_path / f"killed_{number}"
    killer.finish(workdir, num_kills)
    total.update(results.differences(workdir, expected))
    number += 1
  moments = collections.Counter(kill.moment for kill in killer.kills)
  stages = collections.Counter(kill.stage for kill in killer.kills)
  account("kills", processes=num_processes, tried=len(killer.kills),
          runs=number, moments=dict(moments), stages=dict(stages),
          different=dict(total))
  assert {name: total[name] for name in NOTHING} == NOTHING, killer.kills
  assert moments[kills.SAVE] >= AT_LEAST
  assert moments[kills.COLLECT] >= AT_LEAST
