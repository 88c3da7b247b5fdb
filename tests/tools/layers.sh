#!/bin/sh
# The layers hold: every include of the project's own headers is one that the table of doc/architecture.md allows.
set -u

# folder : what it may include (an extended regular expression on the header's path; a name without a folder is its own)
table='
lib/core    : ^core/
lib/io      : ^(core|io)/
lib/text    : ^(core|text)/
lib/audio   : ^(core|audio)/
lib/ops     : ^(core|ops)/
lib/mem     : ^(core/|mem/|ops/dev[.]h$|io/st[.]h$)
lib/model   : ^(core|mem|ops|model)/
kernels/cpu : ^(core/|ops/backend[.]h$|kernels/cpu/)
kernels/cuda: ^(core/|ops/backend[.]h$|kernels/cuda/)
tools       : ^(core|io|text|audio|mem|ops|model)/
'
n=0
bad=0
list=$(mktemp)
trap 'rm -f "$list"' EXIT INT TERM

report() {      # what, then what spoils it ("" when nothing does)
    n=$((n + 1))
    if [ -z "$2" ]; then
        echo "ok $n - $1"
    else
        bad=1
        echo "not ok $n - $1"
        echo "$2" | sed 's/^/# /'
    fi
}

echo "$table" | sed '/^$/d' >"$list"
while IFS=: read -r folder allowed; do
    folder=$(echo "$folder" | tr -d ' ')
    allowed=$(echo "$allowed" | tr -d ' ')
    [ -d "$folder" ] || continue
    wrong=$(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$folder" --include='*.[ch]' --include='*.cu' \
        --include='*.cuh' | sed -E 's/^([^:]*:[0-9]+):.*"([^"]*)".*/\1 \2/' | awk -v ok="$allowed" '$2 ~ "/" && $2 !~ ok')
    report "$folder includes its own layer and those below" "$wrong"
done <"$list"

report "BLAS is for bench alone" "$(grep -rnE '#[[:space:]]*include.*cblas' lib tools kernels --include='*.[ch]')"
report "only kernels/cuda includes CUDA" "$(grep -rnE '#[[:space:]]*include.*(cuda_runtime|cublas)' lib tools kernels/cpu --include='*.[ch]')"
report "only cli.c prints" \
    "$(grep -rnE '(^|[^a-z_])(printf|puts|perror) ?\(' lib kernels/cpu --include='*.c' | grep -v '^lib/core/cli\.c:')"
report "nothing in the library exits, aborts or calls a shell" \
    "$(grep -rnE '(^|[^a-z_])(exit|abort|system|popen) ?\(' lib kernels/cpu --include='*.c')"
report "a backend is named in dev.c and backend.h alone" \
    "$(grep -rnE '#[[:space:]]*if.*HV_CUDA_BACKEND' lib tools | grep -vE '^lib/ops/(dev\.c|backend\.h):')"
echo "1..$n"
exit $bad
