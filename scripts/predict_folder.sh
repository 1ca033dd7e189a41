#!/usr/bin/env bash
# A nightly batch job to copy and change: looks for defects in whatever is new in a folder of images.
#
# usage: predict_folder.sh MODEL IMAGES OUT [FLAGS OF defectseg predict]
# cron:  30 2 * * *  /opt/mill/predict_folder.sh /opt/mill/model.safetensors "/data/line 1" "/data/results 1"
#
# OUT receives the results, OUT.log a dated account, OUT.lock the lock. Images that are done are not done again, so an
# interrupted night goes on with the next. Settings from the environment:
#   DEFECTSEG    the program, for a cron that does not find it on PATH     (default: defectseg)
#   NOTICE_HOOK  a program that is called as `NOTICE_HOOK "one line of text"` when somebody has to look; one that sends
#                mail: echo "$1" | mail -s "$1" quality@mill.example       (default: none, OUT.log tells all the same)
#
# Ends with the exit code of defectseg predict, or 0 where the run of the night before still goes.
set -u

if [ $# -lt 3 ]; then
    echo "usage: ${0##*/} MODEL IMAGES OUT [FLAGS OF defectseg predict]" >&2
    exit 2
fi
model=$1 images=$2 out=${3%/}
shift 3

log() { printf '%s %s\n' "$(date '+%F %T')" "$*" >>"$out.log"; }

notice() {
    log "$1"
    if [ -n "${NOTICE_HOOK:-}" ] && ! "$NOTICE_HOOK" "$1" >>"$out.log" 2>&1; then
        log "the notice could not be sent by $NOTICE_HOOK"
    fi
}

# What is wrong besides defects; errors.csv has a header even where it lists nothing.
troubles() {
    if [ "$(head -n 2 "$out/errors.csv" 2>/dev/null | wc -l)" -gt 1 ]; then
        printf '; some images are unreadable: see %s' "$out/errors.csv"
    fi
    if grep -qE '^("([^"]|"")*"|[^",]*),blank,' "$out/images.csv" 2>/dev/null; then
        printf '; some images are blank: see %s' "$out/images.csv"
    fi
}

mkdir -p "$(dirname "$out")" || exit 4
exec 9>"$out.lock" || exit 4
if ! flock --nonblock 9; then
    log "skipped: the previous run still goes"
    exit 0
fi

# A shutdown or Ctrl-C signals defectseg too, which stops cleanly; the traps make the shell wait for that and log it.
trap : INT TERM

log "start: $images"
# 9>&- : the lock is this script's alone, so that nothing that lives longer can hold it.
"${DEFECTSEG:-defectseg}" predict "$model" "$images" --out "$out" "$@" >>"$out.log" 2>&1 9>&-
code=$?

case $code in
    0) log "done" ;;
    # The rest is done. A file that was still being copied succeeds in the next run, which tries unreadable ones again.
    # Pictures that show nothing count only with the flag --fail-on-blank.
    3) notice "done, but not all is well$(troubles)" ;;
    # Nothing will get better by itself: no model, no input, disk full, out of memory. The log's last line says which.
    4) notice "could not go on: see the end of $out.log; run again once it is mended, nothing is lost" ;;
    # Only with the flag --fail-on-defect. Earlier nights in OUT count too: then give each night an OUT of its own.
    10) notice "defects found: see $out/images.csv and $out/overlays$(troubles)" ;;
    130) log "interrupted; the next run goes on from here" ;;
    # A wrong flag, or OUT holds the results of another model, runtime or settings (the log says which): give them a new
    # OUT, or --overwrite once. A new version of a library does not end here: it is only told in the log.
    2) notice "wrong settings: see the end of $out.log" ;;
    # 1 is a bug in defectseg, 127 means that it is not on PATH, 137 that the system killed it, perhaps for its memory.
    *) notice "failed with exit code $code: see the end of $out.log" ;;
esac
exit "$code"
