"""A run that is killed at any moment ends as one that never was, bit for bit."""

import collections
import json

import pytest

from tests import processes, results
from tests.reliability import kills

AT_LEAST = 3  # kills that fall in saves, and in collection
NOTHING = {"bits": 0, "rows": 0, "values": 0, "files": 0}


@pytest.fixture(name="experiment", scope="module")
def _experiment(tmp_path_factory):
  return processes.write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("num_kills", [
    20, pytest.param(200, marks=pytest.mark.long)])
def test_a_killed_run_ends_as_an_undisturbed_one(
    tmp_path, experiment, account, num_processes, num_kills):
  # who is killed before they meet is not waited for
  command = (f"--config={experiment}", "--start_timeout=15")
  undisturbed = tmp_path / "undisturbed"
  for ended in processes.run(num_processes, *command,
                             f"--workdir={undisturbed}", num_devices=2):
    assert ended.status == 0, ended.printed
  in_stages = json.loads((undisturbed / "summary.json").read_text())["seconds"]
  killer = kills.Killer(command, num_processes, seed=num_kills,
                        at_least=AT_LEAST, seconds=in_stages / 5)
  number, total = 0, collections.Counter()
  while len(killer.kills) < num_kills:  # several runs, if one is too short
    workdir = tmp_path / f"killed_{number}"
    killer.finish(workdir, num_kills)
    total.update(results.differences(workdir, undisturbed))
    number += 1
  moments = collections.Counter(kill.moment for kill in killer.kills)
  stages = collections.Counter(kill.stage for kill in killer.kills)
  account("kills", processes=num_processes, tried=len(killer.kills),
          runs=number, moments=dict(moments), stages=dict(stages),
          different=dict(total))
  assert {name: total[name] for name in NOTHING} == NOTHING, killer.kills
  assert moments[kills.SAVE] >= AT_LEAST
  assert moments[kills.COLLECT] >= AT_LEAST
