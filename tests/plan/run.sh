#!/bin/sh
# Plans at named sizes, compared as text: a memory regression is a line in review. The first line of each file is the command.
# tests/plan/run.sh --update writes the files anew.
: "${BIN:=build/bin}"
unset HV_MODEL                  # without a model: the full size
HV_CACHE=/nonexistent           # no rates that somebody measured
export HV_CACHE
n=0
tmp=$(mktemp) || exit 1
trap 'rm -f "$tmp"' EXIT

for f in tests/plan/*.txt; do
    read -r command <"$f"
    {
        echo "$command"
        # shellcheck disable=SC2086
        "$BIN"/${command#\$ } 2>&1
    } >"$tmp"
    if [ "${1-}" = --update ]; then
        cp "$tmp" "$f"
        continue
    fi
    n=$((n + 1))
    if cmp -s "$tmp" "$f"; then
        echo "ok $n - $command"
    else
        echo "not ok $n - $command"
        diff "$f" "$tmp" | sed 's/^/# /'
    fi
done
[ "${1-}" = --update ] || echo "1..$n"
