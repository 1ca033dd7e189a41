#!/usr/bin/env bash
# A nightly batch job to copy and adapt: says when the camera or the light has changed, or defects have become more.
#
# usage: drift_results.sh OUT RESULTS... [FLAGS OF defectseg drift]
# cron:  30 6 * * *  /opt/mill/drift_results.sh /data/drift "/data/results 1" --group 'coil[0-9]+'
#
# RESULTS are finished output folders of defectseg predict, such as that of predict_folder.sh. OUT receives drift.json,
# which remembers what was judged, and drift.html; OUT.log a dated log. Environment variables:
#   DEFECTSEG    the program, if cron does not find it on PATH             (default: defectseg)
#   NOTICE_HOOK  a program that is called as `NOTICE_HOOK "one line of text"` when somebody has to look
#
# The exit code is that of defectseg drift.
set -u

if [ $# -lt 2 ]; then
    echo "usage: ${0##*/} OUT RESULTS... [FLAGS OF defectseg drift]" >&2
    exit 2
fi
out=${1%/}
shift

log() { printf '%s %s\n' "$(date '+%F %T')" "$*" >>"$out.log"; }

notice() {
    log "$1"
    if [ -n "${NOTICE_HOOK:-}" ] && ! "$NOTICE_HOOK" "$1" >>"$out.log" 2>&1; then
        log "the notice could not be sent by $NOTICE_HOOK"
    fi
}

mkdir -p "$(dirname "$out")" || exit 4
said=$("${DEFECTSEG:-defectseg}" drift "$@" --out "$out" 2>&1)
code=$?
printf '%s\n' "$said" >>"$out.log"

case $code in
    0) log "done" ;;
    # The first sentence of the verdict, such as "The camera or the light changed. The last 20 groups: darker by 25 %."
    11) notice "$(grep -E -m 1 '^(The camera|More defects)' <<<"$said") See $out/drift.html" ;;
    130) log "interrupted" ;;
    # 2: a wrong flag, or verdicts about another model; 4: a run is not finished, or a folder cannot be read.
    *) notice "drift ended with exit code $code: see the end of $out.log" ;;
esac
exit "$code"
