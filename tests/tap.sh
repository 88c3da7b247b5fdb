# tap.sh - what the shell tests share. Sourced, not run: ". tests/tap.sh" from the repository root.
# Sets $root, puts the built tools on PATH and makes $dir, a folder that goes away at exit.

: "${BIN:?the folder of the built tools}"
root=$(pwd)
PATH=$(cd "$BIN" && pwd):$PATH
export PATH
dir=$(mktemp -d)
HV_CACHE=$dir/cache             # what is measured here stays here
export HV_CACHE
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
n=0

ok() {          # status what
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; fi
}

same() {        # file file what
    cmp -s "$1" "$2"
    ok $? "$3"
}

status() {      # expected status, what, command...    stdout and stderr go to $dir/out and $dir/err
    want=$1
    what=$2
    shift 2
    "$@" >"$dir/out" 2>"$dir/err"
    got=$?
    [ $got = "$want" ] || sed 's/^/# /' "$dir/err"
    [ $got = "$want" ]
    ok $? "$what (status $got, expected $want)"
}

done_testing() {
    echo "1..$n"
}
