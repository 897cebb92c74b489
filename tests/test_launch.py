"""The launch scripts: clean, what they would run, and one run of local.sh."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

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
        rf"--restart-on-user-code-failure .*{PROGRAM}"]),
    ("gke_xpk.sh", ["--action=image"], [
        r"docker build --tag=gcr.io/p/i", r"FROM python:3.11",
        r"WORKDIR /rlhf_jax", r"COPY", r"RUN pip install .*\[tpu,gcs\]",
        r"docker push gcr.io/p/i"]),
    ("slurm.sh", ["--time=1:00:00"], [
        r"mkdir -p /shared/mine/logs",
        r"sbatch --requeue .*--signal=B:USR1@120 .*--nodes=2 "
        r"--ntasks-per-node=8 --gpus-per-node=8 .*--time=1:00:00",
        r"#!/bin/bash", r"trap 'scontrol requeue \$SLURM_JOB_ID.* USR1",
        r"true", rf"srun --kill-on-bad-exit=1 .*{PROGRAM} &"]),
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


def local(tmp_path, *args):
  """local.sh for two processes of two devices, up to `pretrain`."""
  return subprocess.run(
      [shutil.which("bash"), str(LAUNCH / "local.sh"), "--processes=2",
       "--devices=2", f"--port={processes.free_port()}",
       f"--python={sys.executable}", f"--workdir={tmp_path / 'run'}",
       f"--config={processes.write_experiment(tmp_path)}",
       *args, "--", "--config.stages=('pretrain',)"],
      cwd=processes.ROOT, capture_output=True, text=True, check=False,
      timeout=processes.LIMIT, env=processes.environment(2))


def test_local_runs_all_to_the_end(tmp_path):
  done = local(tmp_path)
  assert done.returncode == 0, done.stderr
  assert "pretrain" in done.stdout  # the log of process 0 is shown
  done_json = json.loads((tmp_path / "run/pretrain/done.json").read_text())
  assert done_json["stage"] == "pretrain"
  logs = tmp_path / "run" / "logs"
  assert {p.name for p in logs.iterdir()} == {"process-0.log", "process-1.log"}


def test_local_ends_all_and_says_which_failed(tmp_path):
  """Process 1 never comes: process 0 is not left waiting for it."""
  broken = tmp_path / "python"
  broken.write_text(
      f"#!/bin/bash\n[[ $* == *--process_id=1* ]] && exit 3\n"
      f"exec {sys.executable} \"$@\"\n")
  broken.chmod(0o755)
  done = local(tmp_path, f"--python={broken}", "--max-restarts=1")
  assert done.returncode == 3
  said = "error: process 1 ended first, with status 3; see .*process-1.log"
  assert len(re.findall(said, done.stderr)) == 2, done.stderr
  assert "restart 1 of 1" in done.stderr
