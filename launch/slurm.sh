#!/usr/bin/env bash
# Submits a run to SLURM: one task a GPU, requeued and resumed on preemption.
#
#   launch/slurm.sh --nodes=2 --gpus-per-node=8 --name=ppo \
#     --config=experiments/ppo_ptx.py:1.3b --workdir=/shared/runs/ppo \
#     [-- FLAGS OF THE PROGRAM]
#
#   --nodes=N, --gpus-per-node=N   the machines
#   --name=NAME        of the job
#   --config, --workdir  as of rlhf_jax.main; the workdir is seen by all nodes
#   --partition, --account, --time   as of sbatch
#   --cpus-per-task=N  (8)
#   --setup=COMMAND    run before on every node, as "source venv/bin/activate"
#   --max-restarts=N   requeues after a failure, while the job has had fewer
#                      requeues of all kinds (10)
#   --dry-run          print the commands only
#
# The program resumes by itself when it is given the same command. The log is
# WORKDIR/logs/slurm-JOB.log.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes="" gpus_per_node="" name="" config="" workdir="" partition="" account=""
time="" cpus_per_task=8 setup="" max_restarts=10
parse "nodes gpus-per-node name config workdir partition account time
 cpus-per-task setup max-restarts" "$@"
need nodes "how many machines"
need gpus-per-node "GPUs of each machine"
need name "the job's name"
need config "an experiment, as experiments/ppo_ptx.py:1.3b"
need workdir "a folder that all nodes see"
need_numbers nodes gpus-per-node cpus-per-task max-restarts
all_given

program=$(quoted srun --kill-on-bad-exit=1 --label \
  python -m rlhf_jax.main --distributed "--config=$config" \
  "--workdir=$workdir" ${extra[@]+"${extra[@]}"})

# A signal before the time limit, and failures (but 2: a setting to be
# corrected), put the job back into the queue; SLURM itself does so on
# preemption.
job="#!/bin/bash
trap 'scontrol requeue \$SLURM_JOB_ID; exit 0' USR1
${setup:-true}
$program &
wait \$!
status=\$?
restarts=\${SLURM_RESTART_COUNT:-0}
if ((status != 0 && status != 2 && restarts < $max_restarts)); then
  scontrol requeue \$SLURM_JOB_ID
fi
exit \$status"

options=(--requeue --open-mode=append --signal=B:USR1@120
         "--job-name=$name" "--nodes=$nodes"
         "--ntasks-per-node=$gpus_per_node" "--gpus-per-node=$gpus_per_node"
         "--cpus-per-task=$cpus_per_task"
         "--output=$workdir/logs/slurm-%j.log")
[[ -z $partition ]] || options+=("--partition=$partition")
[[ -z $account ]] || options+=("--account=$account")
[[ -z $time ]] || options+=("--time=$time")

run mkdir -p "$workdir/logs"
if [[ -n $dry_run ]]; then
  run sbatch "${options[@]}"
  printf '%s\n' "$job"
else
  sbatch "${options[@]}" <<< "$job"
fi
