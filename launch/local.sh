#!/usr/bin/env bash
# Runs the program in several processes of this machine (bash 5.1 or newer).
#
#   launch/local.sh --processes=2 --config=experiments/ppo_ptx.py \
#     --workdir=runs/two [--devices=4] [--gpus=8] [-- FLAGS OF THE PROGRAM]
#
#   --processes=N      how many
#   --config, --workdir  as of rlhf_jax.main
#   --devices=N        virtual CPU devices of each process (1)
#   --gpus=N           use the machine's N GPUs instead, N / processes each
#   --port=N           at which they meet (8476)
#   --max-restarts=N   start again, and resume, so often after a failure (0);
#                      preemptions are not counted
#   --grace=SECONDS    for the processes to save when they are told to end (60)
#   --python=PATH      the interpreter (python)
#   --dry-run          print the commands only
#
# Logs are WORKDIR/logs/process-I.log; that of process 0 is shown as well. When
# one process fails, all are ended and it is named; the status is its own.
# SIGTERM, and Ctrl-C once, are passed on: the processes save and end, and their
# status is that of this script. A second Ctrl-C kills them.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes="" config="" workdir="" devices=1 gpus="" port=8476 max_restarts=0
grace=60 python=python
parse "processes config workdir devices gpus port max-restarts grace
 python" "$@"
need processes "how many processes"
need config "an experiment, as experiments/ppo_ptx.py"
need workdir "where everything is written"
need_numbers processes devices gpus port max-restarts grace
all_given
if [[ -n $gpus ]] && ((gpus % processes)); then
  fail "--gpus=$gpus is not a multiple of --processes=$processes"
fi

# The environment of process $1: which devices are its own.
devices_of() {
  if [[ -n $gpus ]]; then
    local each=$((gpus / processes))
    local first=$(($1 * each))
    echo "CUDA_VISIBLE_DEVICES=$(seq -s, $first $((first + each - 1)))"
  else
    echo "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices"
  fi
}

command_of() {
  read -ra settings <<< "$(devices_of "$1")"
  command=(env "${settings[@]}" "$python" -m rlhf_jax.main
           "--config=$config" "--workdir=$workdir"
           "--coordinator=localhost:$port" "--num_processes=$processes"
           "--process_id=$1" ${extra[@]+"${extra[@]}"})
}

# Each process has a group of its own: Ctrl-C reaches this script alone, which
# passes it on once.
set -m
running=() # number -> process id
told=""    # the signal by which this script is to end
until=""   # the second ($SECONDS) at which who still runs is killed
watcher=""

signal_all() {
  kill "-$1" ${running[@]+"${running[@]}"} 2> /dev/null || true
}

end_all() {
  signal_all KILL
  [[ -z $watcher ]] || kill "$watcher" 2> /dev/null || true
}
trap end_all EXIT

tell() {
  if [[ -z $told ]]; then
    told=$1
    until=$((SECONDS + grace))
    signal_all "$1"
  elif [[ $1 == INT ]]; then
    signal_all KILL
  fi
}
trap 'tell TERM' TERM
trap 'tell INT' INT

start_all() {
  local i
  for ((i = 0; i < processes; i++)); do
    [[ -z $told ]] || break
    command_of "$i"
    "${command[@]}" >> "$workdir/logs/process-$i.log" 2>&1 &
    running[i]=$!
  done
  tail -n 0 -F "$workdir/logs/process-0.log" 2> /dev/null &
  watcher=$!
  disown # bash would tell of its end
}

name_the_first() {
  echo "error: process $1 ended first, with status $2; see" \
    "$workdir/logs/process-$1.log:" >&2
  grep -a '^error: ' "$workdir/logs/process-$1.log" | tail -n 1 >&2 || true
}

# Adds the statuses of those that have ended to $statuses; names the first
# that failed, and leaves the others ten seconds to hear of it.
look() {
  local i now
  for i in "${!running[@]}"; do
    ! kill -0 "${running[i]}" 2> /dev/null || continue
    now=0
    wait "${running[i]}" || now=$?
    unset "running[i]"
    statuses+=("$now")
    if ((now)) && [[ -z $until ]]; then
      ((now == PREEMPTED)) || name_the_first "$i" "$now"
      until=$((SECONDS + (grace < 10 ? grace : 10)))
    fi
  done
}

# Runs all until all have ended; sets $status.
attempt() {
  local statuses=()
  until=""
  start_all
  while look; ((${#running[@]})); do
    sleep 0.2 || true # a Ctrl-C may end it
    [[ -z $until ]] || ((SECONDS <= until)) || signal_all KILL
  done
  status=$(telling ${statuses[@]+"${statuses[@]}"})
  ((status)) || sleep 1 # the rest of the log is shown
  end_all
  watcher="" # a number that another process may get
}

if [[ -n $dry_run ]]; then
  run mkdir -p "$workdir/logs"
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    run "${command[@]}"
  done
  exit
fi
mkdir -p "$workdir/logs"
failures=0
while true; do
  attempt
  if [[ -n $told ]] || is_final "$status"; then
    exit "$status"
  elif ((status == PREEMPTED)); then
    echo "preempted: again" >&2
  elif ((failures++ < max_restarts)); then
    echo "restart $failures of $max_restarts" >&2
  else
    exit "$status"
  fi
done
