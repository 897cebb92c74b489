#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice, by a queued resource.
#
#   launch/tpu_pod.sh --action=up --project=P --zone=us-west4-a --name=ppo \
#     --accelerator-type=v5litepod-16 --config=experiments/gpt2.py:1.5b \
#     --workdir=gs://BUCKET/runs/ppo [-- FLAGS OF THE PROGRAM]
#
#   --action=up        all of it: create, wait, install, run; when the slice is
#                      preempted it is made anew and the run resumes (default)
#            create    ask for the slice         wait     until it is there
#            install   the code on all workers   run      on all workers, once
#            logs      show the last ones        delete   give the slice back
#   --project, --zone  Google Cloud's
#   --name=NAME        of the queued resource; its node is NAME-node
#   --accelerator-type as v5litepod-16, v5p-128 (64 chips), v6e-64
#   --config, --workdir  as of rlhf_jax.main; the workdir is in a bucket
#   --runtime-version  the machines' image (that of the accelerator type)
#   --provisioning     spot, reserved or guaranteed, and on demand (spot)
#   --python=NAME      installed there by apt (python3.11)
#   --poll=SECONDS     between looks at the queue (30)
#   --max-restarts=N   runs again after a failure on a healthy slice (10), but
#                      not after one that no restart mends; preemptions are not
#                      counted
#   --dry-run          print the commands only
#
# Every worker's log goes to WORKDIR/logs once a minute. `up` leaves the slice
# when the run has finished: delete it with --action=delete.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=up project="" zone="" name="" accelerator_type="" config="" workdir=""
runtime_version="" provisioning=spot python=python3.11
poll=30 max_restarts=10
parse "action project zone name accelerator-type config workdir runtime-version
 provisioning python poll max-restarts" "$@"
need project "the Google Cloud project"
need zone "the zone, as us-west4-a"
need name "a name for the slice"
if [[ $action == up || $action == create ]]; then
  need accelerator-type "the slice, as v5litepod-16"
fi
if [[ $action == up || $action == run || $action == logs ]]; then
  need workdir "gs://BUCKET/RUN, which all workers see"
  need_bucket
fi
if [[ $action == up || $action == run ]]; then
  need config "an experiment, as experiments/gpt2.py:1.5b"
fi
if [[ -n $accelerator_type && -z $runtime_version ]]; then
  case $accelerator_type in
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v4-*) runtime_version=tpu-ubuntu2204-base ;;
    *) missing+=("--runtime-version=... is missing: the image for \
--accelerator-type=$accelerator_type is not known here") ;;
  esac
fi
need_numbers poll max-restarts
case $provisioning in
  spot | reserved | guaranteed) tier=("--$provisioning") ;;
  on-demand) tier=() ;;
  *) missing+=("--provisioning=$provisioning is none of spot, reserved, \
guaranteed, on-demand") ;;
esac
all_given

here=(--project="$project" --zone="$zone")
queue=(gcloud compute tpus queued-resources)
node="$name-node"
code=/tmp/rlhf_jax.tar.gz
ENDED="the program of this worker ended with status "

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$node" "${here[@]}" --worker=all \
    "--command=$1"
}

create() {
  run "${queue[@]}" create "$name" "${here[@]}" --node-id="$node" \
    --accelerator-type="$accelerator_type" \
    --runtime-version="$runtime_version" ${tier[@]+"${tier[@]}"}
}

delete() {
  run "${queue[@]}" delete "$name" "${here[@]}" --force --quiet
}

# The queued resource's state; NONE where there is no such resource, nothing
# where the cloud does not answer.
state() {
  local found
  found=$("${queue[@]}" list "${here[@]}" --filter="name~/$name\$" \
    --format="value(state.state)") && echo "${found:-NONE}"
}

wait_until_active() {
  if [[ -n $dry_run ]]; then
    quoted "${queue[@]}" list "${here[@]}" --filter="name~/$name\$" \
      --format="value(state.state)"
    return
  fi
  local now before=""
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | SUSPENDING | NONE) return 1 ;;
    esac
    [[ $now == "$before" ]] || echo "$name: $now" >&2
    before=$now
    sleep "$poll"
  done
}

install() {
  run git archive --format=tar.gz --output="$code" HEAD \
    && run gcloud compute tpus tpu-vm scp "$code" "$node:$code" "${here[@]}" \
      --worker=all \
    && on_all_workers "mkdir -p rlhf_jax && tar -xzf $code -C rlhf_jax && \
sudo apt-get update -q && sudo apt-get install -q -y $python-venv && \
$python -m venv venv && venv/bin/pip install -q -e 'rlhf_jax[tpu,gcs]'"
}

# What a former run left holds the chips, so it is ended first; the pattern
# begins the command line, as that of the shell which runs this does not. When
# the machine goes, `tee` outlives SIGTERM and the lost terminal: the program
# writes to it while it saves.
run_once() {
  local program log
  program=$(quoted ../venv/bin/python -u -m rlhf_jax.main --distributed \
    "--config=$config" "--workdir=$workdir" ${extra[@]+"${extra[@]}"})
  log="$(quoted "$workdir/logs/")\$(hostname).log"
  on_all_workers "cd rlhf_jax; pattern='^[^ ]*/python -u -m rlhf_jax.main'; \
pkill -f \"\$pattern\"; for i in {1..60}; do \
pgrep -f \"\$pattern\" > /dev/null || break; sleep 1; done; \
pkill -KILL -f \"\$pattern\"; \
(while sleep 60; do gcloud storage cp -q ../run.log $log; done) \
> /dev/null 2>&1 & \
uploads=\$!; $program 2>&1 | (trap '' TERM HUP; exec tee -p -a ../run.log); \
status=\${PIPESTATUS[0]}; kill \$uploads; \
gcloud storage cp -q ../run.log $log; echo \"$ENDED\$status\"; exit \$status"
}

# Runs on all workers; sets $status. That of gcloud is not the program's: with
# several workers it says nothing of theirs, so each prints its own.
attempt() {
  local said all
  said=$(mktemp)
  status=0
  run_once | tee "$said" || status=$?
  read -ra all <<< "$(sed -n "s/^.*$ENDED\([0-9]*\).*/\1/p" "$said" \
    | tr '\n' ' ')"
  rm "$said"
  status=$(telling "${all[@]}" "$status")
}

logs() {
  run gcloud storage cat "$workdir/logs/*.log"
}

# Creates the slice unless it is there, once more when it was taken away.
ensure() {
  if [[ -n $dry_run ]]; then
    create
    wait_until_active
    return
  fi
  until [[ $(state) == ACTIVE ]]; do
    case $(state) in
      NONE) create ;;
      FAILED | SUSPENDED) delete; create ;;
      *) ;;
    esac
    wait_until_active || sleep "$poll"
  done
}

up() {
  local failures=0 status
  if [[ -n $dry_run ]]; then
    ensure && install && run_once
    return
  fi
  while true; do
    ensure
    if install; then attempt; else status=1; fi
    if ((status == 0)); then
      echo "finished: $workdir" >&2
      return
    elif is_final "$status"; then
      echo "error: status $status, which no restart mends; see" \
        "--action=logs" >&2
      exit "$status"
    elif ((status == PREEMPTED)) || [[ $(state) != ACTIVE ]]; then
      echo "$name was preempted: the run resumes" >&2
    elif ((failures++ < max_restarts)); then
      echo "failure $failures of at most $max_restarts: again" >&2
    else
      echo "error: $failures failures on a healthy slice; see --action=logs" >&2
      exit "$status"
    fi
  done
}

case $action in
  up | create | install | logs | delete) "$action" ;;
  wait) wait_until_active || fail "$name is not to be had: $(state)" ;;
  run) run_once ;;
  *) fail "--action=$action is none of up, create, wait, install, run, logs," \
          "delete" ;;
esac
