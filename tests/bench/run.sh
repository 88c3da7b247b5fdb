#!/bin/sh
# Every measurement of BENCHMARKS.md that needs no reference checkout: operations, forward, decode, memory, weights, demo.
# BIN: the built tools; BUILD: the build folder.
set -eu
: "${BUILD:=build}" "${BIN:=$BUILD/bin}"
export BIN BUILD

echo "# $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(uname -r), $(date +%Y-%m-%d)"
for bench in bench_ops bench_dit bench_vae; do
    echo "# $bench"
    "$BUILD/tests/bench/$bench"
done
echo "# memory"
sh tests/bench/memory.sh
echo "# weights"
sh tests/bench/weights.sh
echo "# import"
sh tests/bench/import.sh
