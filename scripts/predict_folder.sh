#!/usr/bin/env bash
# A nightly batch job to copy and adapt: finds defects in the new images of a folder.
#
# usage: predict_folder.sh MODEL IMAGES OUT [FLAGS OF defectseg predict]
# cron:  30 2 * * *  /opt/mill/predict_folder.sh /opt/mill/model.safetensors "/data/line 1" "/data/results 1"
#
# OUT receives the results, OUT.log a dated log, OUT.lock the lock. Finished images are not processed again, so the next
# night continues an interrupted one. Environment variables:
#   DEFECTSEG    the program, if cron does not find it on PATH             (default: defectseg)
#   NOTICE_HOOK  a program that is called as `NOTICE_HOOK "one line of text"` when somebody has to look. To send mail:
#                echo "$1" | mail -s "$1" quality@mill.example             (default: none; OUT.log has the same text)
#
# The exit code is that of defectseg predict, or 0 if the previous run has not ended.
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

# Problems other than defects. errors.csv always has a header, so one line means no errors.
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

# A shutdown or Ctrl-C also signals defectseg, which stops cleanly. The trap makes the shell wait for that and log it.
trap : INT TERM

log "start: $images"
# 9>&- : defectseg does not inherit the lock, so no process that outlives this script can hold it.
"${DEFECTSEG:-defectseg}" predict "$model" "$images" --out "$out" "$@" >>"$out.log" 2>&1 9>&-
code=$?

case $code in
    0) log "done" ;;
    # The other images are done. The next run retries unreadable ones, so a file that was still being copied succeeds
    # then. Blank images count only with --fail-on-blank. --max-unreadable 1 accepts a file that is dead for good.
    3) notice "done, but not all is well$(troubles)" ;;
    # Needs action: no model, no input, disk full, or out of memory. The last line of the log says which.
    4) notice "could not go on: see the end of $out.log; run again once it is mended, nothing is lost" ;;
    # Only with --fail-on or --fail-on-defect. Earlier nights in OUT count too, so use a new OUT for each night.
    10) notice "defects found: see $out/index.html and $out/images.csv$(troubles)" ;;
    130) log "interrupted; the next run goes on from here" ;;
    # A wrong flag, or OUT holds results of another model, runtime or settings (the log says which): use a new OUT, or
    # --overwrite once. A new version of a library does not cause this: the log only mentions it.
    2) notice "wrong settings: see the end of $out.log" ;;
    # 1: a bug in defectseg; 127: it is not on PATH; 137: the system killed it, possibly for using too much memory.
    *) notice "failed with exit code $code: see the end of $out.log" ;;
esac
exit "$code"
