#!/usr/bin/env bash
# Runs an experiment on TPUs of a GKE cluster, through xpk (pip install xpk).
#
#   launch/gke_xpk.sh --action=run --project=P --zone=us-west4-a \
#     --cluster=C --name=ppo --tpu-type=v5litepod-16 \
#     --docker-image=gcr.io/P/rlhf_jax:latest \
#     --config=experiments/gpt2.py:1.5b --workdir=gs://BUCKET/runs/ppo \
#     [-- FLAGS OF THE PROGRAM]
#
#   --action=create-cluster   make the cluster with the TPUs
#            image            build the image of this folder and push it
#            run              submit the run (default)
#            status           list the runs      logs   show those of the run
#            delete           end the run        delete-cluster
#   --project, --zone  Google Cloud's
#   --cluster=NAME     the cluster
#   --name=NAME        of the run: a workload of xpk
#   --tpu-type         as v5litepod-16
#   --num-slices=N     (1)
#   --docker-image     with this code installed; see --action=image
#   --base-image       what it is built on (python:3.11)
#   --config, --workdir  as of rlhf_jax.main; the workdir is in a bucket
#   --provisioning     of a new cluster: spot or on-demand (spot)
#   --max-restarts=N   so often the run is started again, and resumes (100)
#   --dry-run          print the commands only
#
# A preempted or failed run is started again by the cluster with the same
# command, and so resumes; one that is refused, or stopped by a guard, is not.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=run project="" zone="" cluster="" name="" tpu_type="" num_slices=1
docker_image="" base_image=python:3.11 config="" workdir="" provisioning=spot
max_restarts=100
parse "action project zone cluster name tpu-type num-slices docker-image
 base-image config workdir provisioning max-restarts" "$@"
need project "the Google Cloud project"
need zone "the zone, as us-west4-a"
case $action in
  image) ;;
  *) need cluster "the GKE cluster" ;;
esac
case $action in
  run | logs | delete) need name "a name for the run" ;;
esac
case $action in
  run | create-cluster) need tpu-type "the slice, as v5litepod-16" ;;
esac
case $action in
  run | image) need docker-image "gcr.io/PROJECT/IMAGE:TAG" ;;
esac
if [[ $action == run ]]; then
  need config "an experiment, as experiments/gpt2.py:1.5b"
  need workdir "gs://BUCKET/RUN, which all machines see"
  need_bucket
fi
need_numbers num-slices max-restarts
[[ $provisioning == spot || $provisioning == on-demand ]] \
  || missing+=("--provisioning=$provisioning is neither spot nor on-demand")
all_given

here=(--project="$project" --zone="$zone" --cluster="$cluster")

create_cluster() {
  run xpk cluster create "${here[@]}" --tpu-type="$tpu_type" \
    --num-slices="$num_slices" "--$provisioning"
}

image() {
  local recipe="FROM $base_image
WORKDIR /rlhf_jax
COPY . .
RUN pip install --no-cache-dir -e '.[tpu,gcs]'"
  if [[ -n $dry_run ]]; then
    run docker build --tag="$docker_image" --file=- .
    printf '%s\n' "$recipe"
  else
    docker build --tag="$docker_image" --file=- . <<< "$recipe"
  fi
  run docker push "$docker_image"
}

# Of the statuses up to 126 only those named start it again; xpk itself adds 127
# to 255, those of killed processes. The program stands in the place of the
# shell, to which SIGTERM goes.
submit() {
  run xpk workload create "${here[@]}" --workload="$name" \
    --tpu-type="$tpu_type" --num-slices="$num_slices" \
    --docker-image="$docker_image" --max-restarts="$max_restarts" \
    "--restart-on-exit-codes=1,$PREEMPTED" \
    --termination-grace-period-seconds=120 \
    "--command=cd /rlhf_jax && exec $(quoted python -u -m rlhf_jax.main \
      --distributed "--config=$config" "--workdir=$workdir" \
      ${extra[@]+"${extra[@]}"})"
}

logs() {
  run gcloud logging read --project="$project" --order=asc \
    --format="value(textPayload)" \
    "resource.type=k8s_container AND resource.labels.cluster_name=$cluster \
AND resource.labels.pod_name:$name"
}

case $action in
  create-cluster) create_cluster ;;
  image) image ;;
  run) submit ;;
  status) run xpk workload list "${here[@]}" ;;
  logs) logs ;;
  delete) run xpk workload delete "${here[@]}" --workload="$name" --force ;;
  delete-cluster) run xpk cluster delete "${here[@]}" ;;
  *) fail "--action=$action is none of create-cluster, image, run, status," \
          "logs, delete, delete-cluster" ;;
esac
