"""The launch scripts: clean, what they would run, what they do at the end of a
program (tests/reliability/test_local.py runs one for real)."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rlhf_jax import exits
from tests import processes

LAUNCH = processes.ROOT / "launch"
SCRIPTS = ("tpu_pod.sh", "gke_xpk.sh", "slurm.sh", "local.sh")
SETTINGS = {
    "tpu_pod.sh": ("--project=p", "--zone=z", "--name=mine",
                   "--accelerator-type=v5litepod-16", "--config=c.py:1.3b",
                   "--workdir=gs://b/runs/mine"),
    "gke_xpk.sh": ("--project=p", "--zone=z", "--cluster=c", "--name=mine",
                   "--tpu-type=v5litepod-16", "--docker-image=gcr.io/p/i",
                   "--config=c.py:1.3b", "--workdir=gs://b/runs/mine"),
    "slurm.sh": ("--nodes=2", "--gpus-per-node=8", "--name=mine",
                 "--config=c.py:1.3b", "--workdir=/shared/mine"),
    "local.sh": ("--processes=2", "--config=c.py", "--workdir=/w/mine"),
}
PROGRAM = (r"rlhf_jax\.main --distributed --config=c\.py:1\.3b "
           r"--workdir=\S*/mine --config\.seed=3")


def call(script, *args, path=None):
  """Runs a script; nothing but the usual tools is to be found in `path`."""
  return subprocess.run(
      [shutil.which("bash"), str(LAUNCH / script), *args], text=True,
      capture_output=True, check=False, cwd=processes.ROOT,
      env=None if path is None else {"PATH": path})


@pytest.fixture(name="tools", scope="module")
def _tools(tmp_path_factory):
  """A folder with the tools that a dry run may use, and no other."""
  folder = tmp_path_factory.mktemp("tools")
  for name in ("sed", "seq", "dirname"):
    (folder / name).symlink_to(shutil.which(name))
  return str(folder)


def test_shellcheck_finds_nothing():
  checked = subprocess.run(
      [pathlib.Path(sys.executable).with_name("shellcheck"), "-x",
       *[str(path) for path in sorted(LAUNCH.glob("*.sh"))]],
      cwd=processes.ROOT, capture_output=True, text=True, check=False)
  assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_setting(script, tools):
  done = call(script, "--help", path=tools)
  assert done.returncode == 0
  source = (LAUNCH / script).read_text()
  known = re.search(r'^parse "([^"]*)"', source, re.MULTILINE)[1].split()
  assert known and not [n for n in known if f"--{n}" not in done.stdout]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_required_setting_is_asked_for(script, tools):
  for left_out in SETTINGS[script]:
    given = [s for s in SETTINGS[script] if s != left_out]
    done = call(script, "--dry-run", *given, path=tools)
    name = left_out.partition("=")[0]
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(f"error: {name}=... is missing: .*\n", done.stderr)


@pytest.mark.parametrize("script, args, message", [
    ("tpu_pod.sh", ["--workdir=/home/me"], r"--workdir=/home/me is no bucket"),
    ("gke_xpk.sh", ["--workdir=gs://"], r"--workdir=gs:// is no bucket"),
    ("tpu_pod.sh", ["--provisioning=cheap"], r"--provisioning=cheap is none"),
    ("tpu_pod.sh", ["--action=dance"], r"--action=dance is none of up, create"),
    ("gke_xpk.sh", ["--action=dance"], r"--action=dance is none of create-"),
    ("slurm.sh", ["--nodes=two"], r"--nodes=two is no whole number"),
    ("local.sh", ["--gpus=3"], r"--gpus=3 is not a multiple of --processes=2"),
    ("local.sh", ["--proceses=2"], r"there is no setting --proceses; see"),
    ("local.sh", ["fast"], r"'fast' is no --name=value; see --help"),
])
def test_wrong_settings(script, args, message, tools):
  done = call(script, "--dry-run", *SETTINGS[script], *args, path=tools)
  assert done.returncode == 2 and done.stdout == ""
  assert re.match(f"error: {message}", done.stderr), done.stderr


@pytest.mark.parametrize("script, args, expected", [
    ("tpu_pod.sh", [], [
        r"queued-resources create mine .*--node-id=mine-node "
        r"--accelerator-type=v5litepod-16 .*--spot",
        r"queued-resources list --project=p --zone=z",
        r"git archive .*HEAD",
        r"tpu-vm scp .* --worker=all",
        r"tpu-vm ssh mine-node .*--worker=all .*pip install .*\[tpu,gcs\]",
        rf"tpu-vm ssh mine-node .*--worker=all .*{PROGRAM} .*"
        r"gs://b/runs/mine/logs/\$\(hostname\).log"]),
    ("tpu_pod.sh", ["--accelerator-type=v5p-128"], [
        r"--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 "]),
    ("tpu_pod.sh", ["--action=delete"], [
        r"queued-resources delete mine .*--force"]),
    ("tpu_pod.sh", ["--action=logs"], [r"cat .*gs://b/runs/mine/logs/\*"]),
    ("gke_xpk.sh", [], [
        r"xpk workload create .*--cluster=c --workload=mine "
        r"--tpu-type=v5litepod-16 .*--max-restarts=100 "
        r"--restart-on-exit-codes=1,75 --termination-grace-period-seconds=120 "
        rf".*cd /rlhf_jax && exec .*{PROGRAM}"]),
    ("gke_xpk.sh", ["--action=image"], [
        r"docker build --tag=gcr.io/p/i", r"FROM python:3.11",
        r"WORKDIR /rlhf_jax", r"COPY", r"RUN pip install .*\[tpu,gcs\]",
        r"docker push gcr.io/p/i"]),
    ("slurm.sh", ["--time=1:00:00"], [
        r"mkdir -p /shared/mine/logs",
        r"sbatch --requeue .*--signal=TERM@120 .*--nodes=2 "
        r"--ntasks-per-node=8 --gpus-per-node=8 .*--time=1:00:00",
        r"#!/bin/bash", r"failures=/shared/mine/logs/slurm-\$SLURM_JOB_ID",
        r"trap '.*' TERM", r"true",
        r"srun --kill-on-bad-exit=0 --wait=60 .*" + PROGRAM.replace(
            r" --config\.seed", r" --grace_seconds=100 --config\.seed")
        + " &"]),
    ("local.sh", [], [
        r"mkdir -p /w/mine/logs",
        *[r"env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 .*--config=c.py "
          r"--workdir=/w/mine --coordinator=localhost:8476 --num_processes=2 "
          rf"--process_id={i} --config.seed=3" for i in range(2)]]),
    ("local.sh", ["--gpus=8"], [
        r"mkdir", r"env CUDA_VISIBLE_DEVICES=0,1,2,3 .*--process_id=0",
        r"env CUDA_VISIBLE_DEVICES=4,5,6,7 .*--process_id=1"]),
])
def test_a_dry_run_prints_what_would_be_run(script, args, expected, tools):
  done = call(script, *SETTINGS[script], *args, "--dry-run", "--",
              "--config.seed=3", path=tools)
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  for line, pattern in zip(lines, expected):
    assert re.search(pattern, line), (pattern, line)
  assert len(lines) >= len(expected)


# -------- exit statuses, of stand-ins for the program, for SLURM and gcloud

ONCE = "([[ ! -e $HOME/once ]] || exit 0; touch $HOME/once; exit {})"


def script(path, body):
  path.write_text(f"#!/bin/bash\n{body}\n")
  path.chmod(0o755)
  return path


@contextlib.contextmanager
def start(command, folder, **environment):
  """Starts it where commands in `folder` come before all others, and where
  Ctrl-C is heeded."""
  process = subprocess.Popen(
      [shutil.which("bash"), *command], text=True, cwd=processes.ROOT,
      env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}",
                        "HOME": str(folder)} | environment,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      preexec_fn=lambda: signal.signal(  # noqa: PLW1509, no thread here
          signal.SIGINT, signal.SIG_DFL))
  try:
    yield process
  finally:
    process.kill()
    process.wait()


def finished(command, folder, **environment):
  """(status, the standard output, the standard error)."""
  with start(command, folder, **environment) as process:
    out, err = process.communicate(timeout=60)
  return process.returncode, out, err


def stand_in(folder, body):
  """local.sh with two processes that do what `body` says; `i` is the number."""
  number = 'all="$*"; i=${all##*--process_id=}; i=${i%% *}'
  program = script(folder / "program", f"{number}\n{body}")
  return [str(LAUNCH / "local.sh"), "--processes=2", "--config=c.py",
          f"--workdir={folder / 'run'}", f"--python={program}"]


def test_scripts_know_the_programs_statuses():
  done = subprocess.run(
      [shutil.which("bash"), "-c", f"source {LAUNCH / 'common.sh'}; "
       "echo $REFUSED $STOPPED $PREEMPTED $INTERRUPTED"],
      capture_output=True, text=True, check=True)
  assert [int(word) for word in done.stdout.split()] == [
      exits.REFUSED, exits.STOPPED, exits.PREEMPTED, exits.INTERRUPTED]


@pytest.mark.parametrize("body, status, restarts", [
    ("exit 2", exits.REFUSED, 0),
    ("exit 3", exits.STOPPED, 0),
    ("exit 130", exits.INTERRUPTED, 0),
    ("exit 7", 7, 1),
    (ONCE.format(1), 0, 1),
    # what one knows counts more than what follows of it
    ("((i == 1)) || exit 1; sleep 0.5; exit 3", exits.STOPPED, 0),
])
def test_local_starts_again_where_that_helps(body, status, restarts, tmp_path):
  found, _, err = finished(
      stand_in(tmp_path, body) + ["--max-restarts=1"], tmp_path)
  assert (found, err.count("restart 1 of 1")) == (status, restarts), err


def test_local_does_not_count_preemptions(tmp_path):
  status, _, err = finished(stand_in(tmp_path, ONCE.format(75)), tmp_path)
  assert status == 0 and "preempted: again" in err and "error" not in err


def test_local_ends_all_and_says_which_failed(tmp_path):
  """Process 0 is not left waiting for one that never comes."""
  status, _, err = finished(
      stand_in(tmp_path, "((i == 0)) || exit 7; exec sleep 60")
      + ["--grace=1"], tmp_path)
  assert status == 7
  assert len(re.findall("error: process 1 ended first, with status 7; see "
                        ".*process-1.log", err)) == 1, err


def told(tmp_path, body, *signals, grace=60):
  """(status, the log of process 1) of local.sh once it had these signals."""
  body = (f"{body}; touch $HOME/ready-$i; "
          "for ((n = 0; n < 600; n++)); do sleep 0.1; done")
  with start(stand_in(tmp_path, body) + [f"--grace={grace}",
                                         "--max-restarts=9"],
             tmp_path) as process:
    until = time.monotonic() + 30
    while len(list(tmp_path.glob("ready-*"))) < 2:
      assert time.monotonic() < until
      time.sleep(0.05)
    for number in signals:
      process.send_signal(number)
      time.sleep(0.5)
    process.communicate(timeout=30)
  return (process.returncode,
          (tmp_path / "run/logs/process-1.log").read_text())


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_local_passes_a_signal_on_and_waits(name, tmp_path):
  number = getattr(signal, f"SIG{name}")
  body = f"trap 'echo told; sleep 1; echo saved; exit 75' {name}"
  assert told(tmp_path, body, number) == (exits.PREEMPTED, "told\nsaved\n")


def test_local_kills_at_the_second_ctrl_c(tmp_path):
  body = "trap 'echo told; sleep 60' INT"
  status, said = told(tmp_path, body, signal.SIGINT, signal.SIGINT)
  assert (status, said) == (128 + signal.SIGKILL, "told\n")


def test_local_kills_who_does_not_end_in_time(tmp_path):
  status, _ = told(tmp_path, "trap '' TERM", signal.SIGTERM, grace=1)
  assert status == 128 + signal.SIGKILL


@pytest.fixture(name="job", scope="module")
def _job(tmp_path_factory):
  """The file that slurm.sh submits; three failures are allowed."""
  folder = tmp_path_factory.mktemp("job")
  script(folder / "sbatch", "cat > $HOME/job")
  status, _, err = finished(
      [str(LAUNCH / "slurm.sh"), *SETTINGS["slurm.sh"], "--max-restarts=3",
       f"--workdir={folder}"], folder)
  assert status == 0, err
  return folder / "job"


def requeues(job, folder, srun, times=1):
  """How often it asked to be requeued, of so many times that it ran."""
  script(folder / "srun", srun)
  script(folder / "scontrol", "echo \"$@\"")
  return sum(
      finished([str(job)], folder, SLURM_JOB_ID=folder.name)[1]
      .count(f"requeue {folder.name}") for _ in range(times))


@pytest.mark.parametrize("status, times, expected", [
    (0, 1, 0), (exits.REFUSED, 1, 0), (exits.STOPPED, 1, 0),
    (exits.INTERRUPTED, 1, 0), (exits.PREEMPTED, 5, 5), (1, 5, 3)])
def test_slurm_requeues_where_that_helps(job, status, times, expected,
                                         tmp_path):
  assert requeues(job, tmp_path, f"exit {status}", times) == expected


def test_slurm_waits_for_a_preempted_job_and_leaves_it_to_slurm(job, tmp_path):
  script(tmp_path / "srun",
         "kill -TERM $PPID; sleep 0.5; echo saved; exit 75")
  status, out, _ = finished([str(job)], tmp_path, SLURM_JOB_ID="1")
  assert (status, out) == (exits.PREEMPTED, "saved\n")


@pytest.mark.parametrize("statuses, status, runs", [
    ((0,), 0, 1),
    ((exits.REFUSED,), exits.REFUSED, 1),
    ((exits.STOPPED,), exits.STOPPED, 1),
    ((exits.PREEMPTED, exits.PREEMPTED, exits.PREEMPTED, 0), 0, 4),
    ((1, 0), 0, 2),
    ((1, 1, 1), 1, 2),
])
def test_a_slice_runs_again_where_that_helps(statuses, status, runs, tmp_path):
  """gcloud itself always says 0 of several workers."""
  script(tmp_path / "git", "true")
  ended = "the program of this worker ended with status"
  script(tmp_path / "gcloud", f"""
[[ $* != *list* ]] || echo ACTIVE
[[ $* == *rlhf_jax.main* ]] || exit 0
echo >> $HOME/runs
all=({' '.join(map(str, statuses))})
status=${{all[$(wc -l < $HOME/runs) - 1]}}
echo "{ended} $((status && 1))"
echo "{ended} $status"
""")
  found, _, err = finished(
      [str(LAUNCH / "tpu_pod.sh"), *SETTINGS["tpu_pod.sh"],
       "--max-restarts=1", "--poll=1"], tmp_path)
  assert (found, len((tmp_path / "runs").read_text())) == (status, runs), err
