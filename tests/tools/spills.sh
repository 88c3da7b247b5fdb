#!/bin/sh
# The build's own report on the CUDA kernels: which were compiled for which architecture, and that no hot kernel spills registers.
# BUILD: the build folder. Without a CUDA build there is nothing to read.
: "${BUILD:=build}"
# Hot: what the transformer and the VAE spend their time in.
hot='flash|sage|fused|norm|rope|gated|dequant|conv_wgmma|conv_mma|sum_parts'
n=0
bad=0
report() {
    n=$((n + 1))
    if [ -z "$2" ]; then echo "ok $n - $1"; else bad=1; echo "not ok $n - $1"; echo "$2" | sed 's/^/# /'; fi
}
if ! ls "$BUILD"/kernels/cuda/*.ptxas >/dev/null 2>&1; then
    echo "ok 1 - # skip no CUDA kernels in this build"
    echo "1..1"
    exit 0
fi
for f in "$BUILD"/kernels/cuda/*.ptxas; do
    name=$(basename "$f" .cu.o.ptxas)
    report "$name: no hot kernel spills" "$(awk -v list=1 -f tests/gpu/ptxas.awk "$f" | awk -v hot="$hot" '$5 ~ hot && $3 > 0')"
done
all=$(cat "$BUILD"/kernels/cuda/*.ptxas | awk -v list=1 -f tests/gpu/ptxas.awk)
report "the report names kernels of flash attention" "$(echo "$all" | grep -q flash || echo "none of $(echo "$all" | wc -l)")"
echo "1..$n"
exit $bad
