#!/usr/bin/env bash
# Train on one or several GPU nodes of a SLURM cluster, with one process per GPU. To copy and adapt.
#
# usage: sbatch scripts/train_slurm.sh DATA RUN [arguments of defectseg train]
#        sbatch --nodes=2 scripts/train_slurm.sh /data/severstal runs/1 severstal --batch-size 12
# DATA and RUN must be on storage that all nodes share. batch_size is per GPU: with N GPUs, a step has N times as many
# crops, and there are N times fewer steps. To train as on one GPU, divide it by N. Shortly before the time limit, SLURM
# sends SIGTERM: the run saves its state, and the job is queued again and continues from there.
#SBATCH --job-name=defectseg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: sbatch ${0##*/} DATA RUN [arguments of defectseg train]" >&2
    exit 2
fi
data=$1 run=${2%/}
shift 2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
launch=(torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}"
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:${MASTER_PORT:-29500}")
train=(-m defectseg train --data "$data" --out "$run")

if [ -e "$run/model.safetensors" ]; then
    echo "$run: has ended; its model is model.safetensors"
    exit 0
elif [ -e "$run/request.json" ]; then # started by this job before it was queued again, or by another job
    train+=(--resume)
else
    train+=("$@")
fi
begun=$(mktemp)
status=0
srun "${launch[@]}" "${train[@]}" || status=$?
# torchrun ends with 1 whatever the exit codes of its processes, even for 3: the model exists, but some images were
# unreadable. If the run was interrupted, it has saved last.ckpt since the job began.
if [ -e "$run/model.safetensors" ]; then
    status=0
elif [ "$status" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] &&
    [ -n "$(find "$run" -name last.ckpt -newer "$begun" -print -quit)" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
rm -f -- "$begun"
exit "$status"
