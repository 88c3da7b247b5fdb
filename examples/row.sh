#!/bin/sh
# What the recipes of batch.mk run, from the folder where make runs. OUT: the folder of the videos.
#
#   row.sh shared NAME      a stage that rows share: OUT/.batch/NAME.cmd makes OUT/.batch/NAME.st
#   row.sh row ID           the rest of a row: latents, with their state kept from step to step, and the video
#   row.sh bad ID TEXT      a row that is none
#   row.sh tidy             removes what finished rows have left
#   row.sh status           the table of rows
#
# Each result has one maker at a time, on all machines that see the folder: flock on a file beside it. What runs holds the lock too, so
# a program that outlives its killed shell is waited for. HV_DEVICES, as cuda:0,cuda:1: each takes one at a time.
set -u

: "${OUT:?the folder of the videos}" "${HV:=hv}" "${HV_DEVICES:=}"
work=$OUT/.batch
host=$(uname -n)
case $HV in */*) PATH=$(cd "${HV%/*}" && pwd):$PATH ;; esac
OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export PATH OMP_WAIT_POLICY
child='' stopped='' device='' used='' began=$(date -u +%Y-%m-%dT%H:%M:%SZ)

# A signal goes to the program, which puts its work aside; then to the log.
stop() {
    stopped=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
for sig in INT TERM HUP; do
    # shellcheck disable=SC2064
    trap "stop $sig" $sig
done

locked() {      # file: taken until this script ends
    exec 9>>"$1"
    flock 9 &
    child=$!
    wait "$child" || exit 143
    child=''
}

# Waits for one of the devices. Without HV_DEVICES there is none to choose.
take_device() {
    [ -n "$HV_DEVICES" ] || return 0
    while [ -z "$stopped" ]; do
        seen=''
        for device in $(printf '%s' "$HV_DEVICES" | tr ',' ' '); do
            seen="$seen $device"
            at=$(printf '%s\n' "$seen" | tr ' ' '\n' | grep -cFx -- "$device")      # the same one again is another place on it
            exec 8>>"$work/device.$host.$(printf '%s' "$device" | tr '/ ' '--').$at.lock"
            ! flock -n 8 || return 0
        done
        exec 8>&-
        sleep 0.1
    done
    exit 143
}

# Runs a function of the command file, with a device or without; what it says goes to a file, and its time and memory to $used.
# `use` is the name of the stage.
try() {         # use, log, function, arguments..
    use=$1 said=$2
    shift 2
    [ -z "$device" ] || set -- "$@" --device "$device"
    "$@" -v 2>"$said" &
    child=$!
    wait "$child"
    rc=$?
    while kill -0 "$child" 2>/dev/null; do      # a signal ended the wait, not the program
        wait "$child"
        rc=$?
    done
    child=''
    [ -z "$stopped" ] || [ $rc = 0 ] || rc=143
    used="$used $use $(sed -n 's/^[a-z-]*: took \([0-9.]*\) s, \([0-9.]*\) MiB at its peak$/\1 \2/p' "$said" | tail -n 1)"
    return $rc
}

# One line of JSON. The write is one call, so that lines of several programs do not mix.
report() {      # file, key, name, status, stage, log or ''
    awk -v key="$2" -v name="$3" -v status="$4" -v stage="$5" -v device="$device" -v host="$host" -v began="$began" -v used="$used" \
        -v log_file="$6" '
        function text(s) {
            gsub(/[\001-\037]/, " ", s); gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s)
            return "\"" s "\""
        }
        BEGIN {
            n = split(used, u, " ")
            seconds = peak = ""
            for (i = 1; i <= n; i++)
                if (u[i] ~ /^[a-z]/ && u[i + 1] ~ /^[0-9]/) {
                    seconds = seconds (seconds == "" ? "" : ",") text(u[i]) ":" u[i + 1]
                    peak = peak (peak == "" ? "" : ",") text(u[i]) ":" u[i + 2]
                }
            while (log_file != "" && (getline line < log_file) > 0) {
                if (line ~ /goes on after step/) { sub(/.*after step /, "", line); from = line + 0 }
                else if (line ~ /measured [0-9.]* MiB/) { sub(/.*measured /, "", line); gpu = line + 0 }
                else if (line !~ /: took [0-9.]* s, / && line != "") last = line
            }
            printf "{\"%s\":%s,\"status\":%d,\"stage\":%s,\"host\":%s,\"device\":%s,\"began\":%s,\"seconds\":{%s},\"peak_mib\":{%s}", key,
                text(name), status, text(stage), text(host), device == "" ? "null" : text(device), text(began), seconds, peak
            if (gpu != "") printf ",\"device_mib\":%s", gpu
            if (from != "") printf ",\"resumed_after\":%d", from
            if (status >= 128) last = "ended by a signal"
            if (status != 0) printf ",\"error\":%s", text(last)
            printf "}\n"
        }' >"$work/line.$$" </dev/null
    cat "$work/line.$$" >>"$1"
    rm -f "$work/line.$$"
}

# 0 if the product is there, and none of the files is newer.
current() {     # product, files..
    product=$1
    shift
    [ -e "$product" ] || return 1
    for file; do
        [ ! -e "$file" ] || [ -z "$(find "$file" -prune -newer "$product")" ] || return 1
    done
}

swept() {       # removes what a killed program left of a file
    rm -f "${1%/*}/.$(basename "${1%.*}")".??????."${1##*.}" "${1%/*}/.${1##*/}".??????.*
}

shared() {      # NAME
    product=$work/$1.st stage=${1%%-*} input=''
    locked "$work/$1.lock"
    # shellcheck disable=SC1090
    . "$work/$1.cmd"
    m=${HV_MODEL:-}
    case $stage in
        text) set -- "$1" "$m/text_encoder/model.safetensors" "$m/text_encoder_2/model.safetensors" ;;
        audio) set -- "$1" "$m/audio_encoder/model.safetensors" ;;
        face) set -- "$1" "$m/face_detector/model.safetensors" ;;
        *) set -- "$1" "$m/vae/model.safetensors" ;;
    esac
    if current "$product" "$input" "$work/$1.cmd" "$@"; then
        return 0                                # another machine made it while this one waited
    fi
    swept "$product"
    case $stage in text | ref) take_device ;; esac
    try "$stage" "$work/$1.log" stage -o "$product"
    rc=$?
    report "$OUT/stages.jsonl" file "$1" $rc "$stage" "$work/$1.log"
    if [ $rc != 0 ]; then
        # Its rows cannot be made: each gets its line.
        sed 's/^/'"$1: /" "$work/$1.log" >&2
        awk -F '\t' -v name="$1" '{ for (i = 2; i <= 5; i++) if ($i == name) print $1 }' "$work/table" |
            while read -r id; do report "$OUT/rows.jsonl" row "$id" $rc "$stage" "$work/$1.log"; done
    fi
    return $rc
}

row() {         # ID
    state=$work/$1.state latent=$work/$1.latent.st video=$OUT/$1.mp4 shared='' input='' m=${HV_MODEL:-}
    locked "$work/$1.lock"
    # shellcheck disable=SC1090
    . "$work/$1.cmd"
    set -- "$1" $(for s in $shared; do printf '%s/%s.st\n' "$work" "$s"; done)
    id=$1 stage=denoise
    shift
    if current "$video" "$input" "$work/$id.cmd" "$m/transformer/model.safetensors" "$m/vae/model.safetensors" "$@"; then
        return 0                                # what a killed make had started was waited for
    fi
    take_device
    swept "$latent"
    swept "$video"
    had=0
    [ ! -e "$state" ] || had=1
    try denoise "$work/$id.log" denoise "$@" --state "$state" --resume -o "$latent"
    rc=$?
    # A state of the row as it was before it was edited, or a damaged one, is of no use.
    if [ $rc = 3 ] && [ $had = 1 ] && grep -qF "$state: " "$work/$id.log"; then
        sed 's/$/; starting anew/' "$work/$id.log" >&2
        rm -f "$state"
        used=''
        try denoise "$work/$id.log" denoise "$@" --state "$state" --resume -o "$latent"
        rc=$?
    fi
    log=$work/$id.log
    if [ $rc = 0 ]; then
        stage=decode
        try decode "$work/$id.decode.log" decode "$latent" -o "$video"
        rc=$?
        [ $rc = 0 ] || log=$work/$id.decode.log
    fi
    report "$OUT/rows.jsonl" row "$id" $rc $stage "$log"
    if [ $rc = 0 ]; then
        rm -f "$state" "$latent" "$work/$id.decode.log"
    else
        sed "s/^/$id: /" "$log" >&2
    fi
    return $rc
}

tidy() {
    for state in "$work"/*.state "$work"/*.latent.st; do
        id=${state##*/}
        id=${id%.state}
        id=${id%.latent.st}
        # A row that is being made has its lock, and no video that is newer than its commands.
        if current "$OUT/$id.mp4" "$work/$id.cmd" && flock -n "$work/$id.lock" true; then
            rm -f "$work/$id.state" "$work/$id.state.lock" "$work/$id.latent.st"
        fi
    done
}

status() {
    now=$work/status.$$
    while IFS='	' read -r id rest || [ -n "$id" ]; do
        state=waiting
        case $id in !*)
            printf '%s\tfailed\t\t%s\n' "$id" "$rest"
            continue ;;
        esac
        if current "$OUT/$id.mp4" "$work/$id.cmd"; then
            state=done
        elif [ -e "$work/$id.lock" ] && ! flock -n "$work/$id.lock" true; then
            state=running
        fi
        step=''
        if [ $state != done ] && [ -e "$work/$id.state" ]; then
            step=$(hv-tensor list "$work/$id.state" 2>/dev/null |
                sed -n -e 's/^# hv.step: \(.*\)/s=\1/p' -e 's/^# hv.steps: \(.*\)/n=\1/p' | sort -r | tr '\n' ' ' | sed 's/s=\([0-9]*\) n=\([0-9]*\).*/\1 of \2/')
        fi
        printf '%s\t%s\t%s\n' "$id" "$state" "$step"
    done <"$work/table" >"$now"
    [ -e "$OUT/rows.jsonl" ] || : >"$OUT/rows.jsonl"
    awk -F '\t' '
        function field(line, name,    at) {     # a value of a line that report wrote
            at = index(line, "\"" name "\":")
            if (!at) return ""
            line = substr(line, at + length(name) + 3)
            if (substr(line, 1, 1) == "\"") { line = substr(line, 2); sub(/",".*|"}$/, "", line) }
            else if (substr(line, 1, 1) == "{") { line = substr(line, 2); sub(/}.*/, "", line) }
            else sub(/[,}].*/, "", line)
            return line
        }
        function total(text, largest,    n, i, part, sum) {
            n = split(text, part, ",")
            for (i = 1; i <= n; i++) {
                sub(/.*:/, "", part[i])
                sum = largest ? (part[i] + 0 > sum + 0 ? part[i] : sum) : sum + part[i]
            }
            return text == "" ? "-" : sprintf("%.1f", sum)
        }
        FILENAME != ARGV[2] { if (field($0, "stage") != "table") last[field($0, "row")] = $0; next }
        $1 ~ /^!/ {
            bad = bad sprintf("%-24s %-8s line %s: %s\n", substr($1, 2) == "" ? "-" : substr($1, 2), $2, $4, $5)
            count["failed"]++
            next
        }
        {
            line = last[$1]
            why = ""
            if ($2 == "waiting" && line != "" && field(line, "status") != 0) {
                $2 = field(line, "status") + 0 >= 128 ? "stopped" : "failed"
                why = field(line, "stage") ": " (field(line, "error") == "" ? "status " field(line, "status") : field(line, "error"))
            }
            if (!header++)
                printf "%-24s %-8s %-10s %9s %9s  %s\n", "row", "state", "step", "seconds", "peak MiB", "device"
            count[$2]++
            printf "%-24s %-8s %-10s %9s %9s  %s\n", $1, $2, $3 == "" ? "-" : $3, total(field(line, "seconds")),
                total(field(line, "peak_mib"), 1), why != "" ? why : (field(line, "device") == "null" ? "" : field(line, "device"))
        }
        END {
            n = split("done running stopped failed waiting", names, " ")
            for (i = 1; i <= n; i++)
                text = text (i > 1 ? ", " : "") (count[names[i]] + 0) " " names[i]
            printf "%s%s\n", bad, text
        }' "$OUT/rows.jsonl" "$now"
    rm -f "$now"
}

case ${1:-} in
    shared | row) "$@" ;;
    bad)
        printf '%s\n' "$3" >"$work/bad.$$"
        report "$OUT/rows.jsonl" row "$2" 3 table "$work/bad.$$"
        rm -f "$work/bad.$$"
        exit 3 ;;
    tidy | status) "$1" ;;
    *) echo "usage: row.sh shared|row|bad|tidy|status .." >&2; exit 2 ;;
esac
