#!/usr/bin/env bash
# Submits a run to SLURM: one task a GPU, requeued and resumed on preemption.
#
#   launch/slurm.sh --nodes=2 --gpus-per-node=8 --name=ppo \
#     --config=experiments/gpt2.py:1.5b --workdir=/shared/runs/ppo \
#     [-- FLAGS OF THE PROGRAM]
#
#   --nodes=N, --gpus-per-node=N   the machines
#   --name=NAME        of the job
#   --config, --workdir  as of rlhf_jax.main; the workdir is seen by all nodes
#   --partition, --account, --time   as of sbatch
#   --cpus-per-task=N  (8)
#   --setup=COMMAND    run before on every node, as "source venv/bin/activate"
#   --max-restarts=N   requeues after a failure (10); preemptions and time
#                      limits are not counted
#   --dry-run          print the commands only
#
# The program resumes by itself when it is given the same command. Two minutes
# before its time limit it is told to save, and the job is requeued. The log is
# WORKDIR/logs/slurm-JOB.log. `scancel --signal=INT JOB` saves and ends a run.

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
need config "an experiment, as experiments/gpt2.py:1.5b"
need workdir "a folder that all nodes see"
need_numbers nodes gpus-per-node cpus-per-task max-restarts
all_given

# The processes end each other, with statuses that say why; who stays for a
# minute is killed. The highest status is srun's.
program=$(quoted srun --kill-on-bad-exit=0 --wait=60 --label \
  python -m rlhf_jax.main --distributed "--config=$config" \
  "--workdir=$workdir" --grace_seconds=100 ${extra[@]+"${extra[@]}"})

# SIGTERM before the time limit goes to the processes, not to the job's shell.
# Where the shell has it as well, SLURM preempts the job, and requeues it by
# itself, or somebody cancels it: the shell waits until all have saved.
job="#!/bin/bash
failures=$(quoted "$workdir/logs/slurm-")\$SLURM_JOB_ID.failures
trap 'ended=yes; trap \"\" TERM' TERM
${setup:-true}
$program &
wait \$!
status=\$?
if [[ -n \$ended ]]; then
  wait \$!
  exit
fi
case \$status in
  0 | $REFUSED | $STOPPED | $INTERRUPTED) exit \$status ;;
  $PREEMPTED) ;;
  *)
    echo \$status >> \"\$failures\"
    ((\$(wc -l < \"\$failures\") <= $max_restarts)) || exit \$status ;;
esac
scontrol requeue \$SLURM_JOB_ID
exit \$status"

options=(--requeue --open-mode=append --signal=TERM@120
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
