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
#   --max-restarts=N   start again, and resume, so often after a failure (0)
#   --python=PATH      the interpreter (python)
#   --dry-run          print the commands only
#
# Logs are WORKDIR/logs/process-I.log; that of process 0 is shown as well. When
# one process fails, all are ended and it is named; the status is its own.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes="" config="" workdir="" devices=1 gpus="" port=8476 max_restarts=0
python=python
parse "processes config workdir devices gpus port max-restarts python" "$@"
need processes "how many processes"
need config "an experiment, as experiments/ppo_ptx.py"
need workdir "where everything is written"
need_numbers processes devices gpus port max-restarts
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
    # NPROC: threads enough for collectives that wait for each other
    echo "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices NPROC=64"
  fi
}

command_of() {
  read -ra settings <<< "$(devices_of "$1")"
  command=(env "${settings[@]}" "$python" -m rlhf_jax.main
           "--config=$config" "--workdir=$workdir"
           "--coordinator=localhost:$port" "--num_processes=$processes"
           "--process_id=$1" ${extra[@]+"${extra[@]}"})
}

pids=()
watcher=""
end_all() {
  kill ${pids[@]+"${pids[@]}"} $watcher 2> /dev/null || true
}
trap end_all EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Starts all, waits for all, names the first that fails; its status.
attempt() {
  local i pid status=0
  pids=()
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    "${command[@]}" >> "$workdir/logs/process-$i.log" 2>&1 &
    pids+=($!)
  done
  tail -n 0 -F "$workdir/logs/process-0.log" 2> /dev/null &
  watcher=$!
  for ((i = 0; i < processes; i++)); do
    wait -n -p pid "${pids[@]}" || { status=$?; break; }
  done
  if ((status)); then
    for ((i = 0; i < processes; i++)); do
      [[ ${pids[i]} != "$pid" ]] || break
    done
    sleep 5 # the others hear of it and say so in their logs
    echo "error: process $i ended first, with status $status; see" \
      "$workdir/logs/process-$i.log:" >&2
    grep -a '^error: ' "$workdir/logs/process-$i.log" | tail -n 1 >&2 || true
  else
    sleep 1 # the rest of the log is shown
  fi
  end_all
  wait
  pids=() watcher="" # numbers that others may get
  return "$status"
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
for ((restart = 0; ; restart++)); do
  status=0
  attempt || status=$?
  # 2: a setting or data to be corrected, which no restart does
  if ((status == 0 || status == 2 || restart >= max_restarts)); then
    exit "$status"
  fi
  echo "restart $((restart + 1)) of $max_restarts" >&2
done
