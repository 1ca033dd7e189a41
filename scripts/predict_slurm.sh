#!/usr/bin/env bash
# Find defects with many tasks of a SLURM cluster, one shard of the images each, and put the results together. To copy
# and adapt.
#
# usage: job=$(sbatch --parsable --array=1-8 scripts/predict_slurm.sh MODEL IMAGES OUT [FLAGS OF defectseg predict])
#        sbatch --dependency=afterany:$job scripts/predict_slurm.sh --merge OUT [FLAGS OF defectseg merge]
# MODEL, IMAGES and OUT must be on storage that all nodes share, OUT outside of IMAGES. Each task of the array writes
# OUT/shards/1, OUT/shards/2 and so on; the second job makes OUT/all of them. It has the exit code of defectseg merge: 4
# if a task has not finished, which the log names.
#
# Submit the same two commands again after a failure, or when there are new images: tasks that had finished take
# seconds, others go on where they were stopped. Add --overwrite to the second command if OUT/all is there already.
# A task with unreadable images or defects counts as done; OUT/all tells of them.
#SBATCH --job-name=defectseg
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

if [ $# -ge 2 ] && [ "$1" = --merge ]; then
    out=${2%/}
    shift 2
    exec "${DEFECTSEG:-defectseg}" merge "$out"/shards/* --out "$out/all" "$@"
fi
if [ $# -lt 3 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "usage: sbatch --array=1-8 ${0##*/} MODEL IMAGES OUT [FLAGS OF defectseg predict]" >&2
    echo "       sbatch ${0##*/} --merge OUT [FLAGS OF defectseg merge]" >&2
    exit 2
fi
model=$1 images=$2 out=${3%/}
shift 3

status=0
"${DEFECTSEG:-defectseg}" predict "$model" "$images" --shard auto --out "$out/shards/$SLURM_ARRAY_TASK_ID" "$@" ||
    status=$?
case $status in
    3 | 10) exit 0 ;; # unreadable images, or defects: the shard is done, and the merge reports them
    *) exit "$status" ;;
esac
