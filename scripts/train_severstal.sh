#!/usr/bin/env bash
# From a folder in Severstal's layout to a model and its score: check, split, train, evaluate. To copy and change.
#
# usage: train_severstal.sh DATA RUN
# DATA holds train.csv and train_images/. RUN receives the model, RUN/evaluation its score on the images held out.
# After an interruption the same command goes on with the last whole epoch. Settings from the environment:
#   RECIPE           severstal, for one GPU; severstal-small, for a CPU; or a YAML file   (default: severstal)
#   ENCODER_WEIGHTS  imagenet, none, or a file with timm's names                          (default: as in the recipe)
#   FOLD             the fold to hold out, 0 to 4                                         (default: 0)
#   DEVICE           auto, cpu, cuda, cuda:N or mps                                       (default: auto)
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: ${0##*/} DATA RUN" >&2
    exit 2
fi
data=$1 run=${2%/}
common=(--data "$data" --device "${DEVICE:-auto}")

# Exits with 3, and this script with it, where rows or images are wrong: mend them first, or the model learns mistakes.
defectseg data check "$data"

# One split for every run, so that their scores compare. Needs to write into DATA.
if [ ! -e "$data/split.csv" ]; then
    defectseg data split "$data"
fi

if [ ! -e "$run/model.safetensors" ]; then
    train=(defectseg train "${RECIPE:-severstal}" "${common[@]}" --out "$run" --fold "${FOLD:-0}")
    if [ -e "$run/last.ckpt" ]; then
        "${train[@]}" --resume
    else
        # Interrupted before the end of the first epoch: there is nothing to go on from.
        if [ -e "$run/config.yaml" ]; then
            mv -- "$run" "$run.unfinished-$(date '+%Y%m%d-%H%M%S')"
        fi
        "${train[@]}" ${ENCODER_WEIGHTS:+--encoder-weights "$ENCODER_WEIGHTS"}
    fi
fi

# The report is written last: without it, an evaluation was interrupted, and a new one starts over.
if [ ! -e "$run/evaluation/report.html" ]; then
    rm -rf -- "$run/evaluation"
    defectseg evaluate "$run" "${common[@]}" --subset val --out "$run/evaluation"
fi
echo "model: $run/model.safetensors, report: $run/evaluation/report.html"
