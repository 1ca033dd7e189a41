#!/usr/bin/env bash
# From a folder in Severstal's layout to a model and its score: check, split, train, evaluate. To copy and adapt.
#
# usage: train_severstal.sh DATA RUN
# DATA holds train.csv and train_images/. RUN receives the model, RUN/evaluation its score on held-out images.
# After an interruption, the same command continues where it stopped. Environment variables:
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

# Problems in the data are printed, and shown with images in RUN.check. Wrong rows, broken images and copies across the
# folds of split.csv end this script with 3. Correct them first, or the model learns mistakes, or its score is too high.
# Duplicates alone do not end it, because the split keeps copies together.
status=0
defectseg data check "$data" --out "$run.check" --overwrite || status=$?
if [ "$status" -eq 3 ] && [ "$(grep -Ec '"(errors|leaks)": 0,?$' "$run.check/check.json")" -eq 2 ]; then
    status=0
fi
[ "$status" -eq 0 ] || exit "$status"

# All runs use one split, so that their scores can be compared. It is written into DATA.
if [ ! -e "$data/split.csv" ]; then
    defectseg data split "$data"
fi

if [ ! -e "$run/model.safetensors" ]; then
    if [ -e "$run/request.json" ]; then
        train=(defectseg train "${common[@]}" --out "$run" --resume)
    else
        train=(defectseg train "${RECIPE:-severstal}" "${common[@]}" --out "$run" --fold "${FOLD:-0}"
            ${ENCODER_WEIGHTS:+--encoder-weights "$ENCODER_WEIGHTS"})
    fi
    # 3: trained, but some images were unreadable; RUN/errors.csv lists them.
    "${train[@]}" || [ $? -eq 3 ]
fi

# The report is written last. If it is missing, the evaluation was interrupted and starts again.
if [ ! -e "$run/evaluation/report.html" ]; then
    rm -rf -- "$run/evaluation"
    defectseg evaluate "$run" "${common[@]}" --subset val --out "$run/evaluation"
fi
echo "model: $run/model.safetensors, report: $run/evaluation/report.html"
