#!/bin/sh
# A table of videos over many machines, or many slots of this one, by GNU parallel: parallel.sh CSV OUT [VARIABLE=VALUE]...
#
#   HV_HOSTS=2/:,8/gpu1,8/gpu2 examples/parallel.sh rows.csv /share/videos HV_DEVICES=cuda:0
#
# HV_HOSTS is what parallel's -S takes: slots/host, ":" being this machine (default: 1/:). The machines see the same folders and have
# hv on their PATH; the variables go to batch.mk, which does the work. Where the jobs stand is in OUT/parallel.log: run it again after
# any end, and what is done is not done again. A job whose machine is lost is tried on another one; the row's state is in OUT.
set -eu
csv=$1 out=$2
shift 2
mk=$(cd "$(dirname "$0")" && pwd)/batch.mk
q() { printf "%s" "$1" | sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/"; }
words="CSV=$(q "$csv") OUT=$(q "$out")"
for v; do words="$words $(q "$v")"; done

eval "make -s -f $(q "$mk") $words ids" >/dev/null             # the rules, before many ask for them
eval "make -s -f $(q "$mk") $words ids" |
    parallel -S "${HV_HOSTS:-1/:}" --retries "${HV_RETRIES:-2}" --joblog "$out/parallel.log" --env HV_MODEL --env HVFLAGS \
        "cd $(q "$(pwd)") && PATH=$(q "$PATH") make -s -f $(q "$mk") $words {}"
