#!/bin/sh
# Runs every test: unit programs, tool scripts, plans, fuzz corpora, goldens. BIN: the built tools; BUILD: the build folder.
# The last line is "N passed, N failed" (and ", N skipped"); the exit status is 1 when something failed.
set -u

: "${BUILD:=build}" "${BIN:=$BUILD/bin}"
export BIN BUILD
# Several programs share the cores: a thread that waits must not spin.
export OMP_WAIT_POLICY=passive
log=$BUILD/test.log
status=0

# Every program and script speaks TAP. A program that dies or keeps fewer promises than its plan is a failure of prove's.
# shellcheck disable=SC2046
prove --verbose --nocolor --jobs "$(nproc)" --exec '' \
    $(find "$BUILD/tests/unit" -name 'test_*' ! -name '*.*' | sort) tests/tools/*.sh tests/plan/*.sh >"$log" 2>&1 || status=1
passed=$(grep -c '^ok ' "$log")
failed=$(grep -c '^not ok ' "$log")
skipped=$(grep -ci '^ok .*# skip' "$log")
passed=$((passed - skipped))
sed -n -e '/^not ok /p' -e '/^# /p' -e '/^Test Summary/,$p' "$log" | grep -vE '^# (skip|ok|not ok)'
if [ $status != 0 ] && [ "$failed" = 0 ]; then
    failed=1                                    # no "not ok" line: a test program ended early
fi

for t in $(find "$BUILD/tests/fuzz" -name 'fuzz_*' ! -name '*.*' | sort); do
    name=${t##*/fuzz_}
    if "$t" "tests/fuzz/corpus/$name" >>"$log" 2>&1; then
        passed=$((passed + 1))
    else
        echo "not ok: fuzz corpus $name"
        failed=$((failed + 1))
    fi
done

"$BUILD/tests/golden/golden" --bin "$BIN" tests/golden >"$BUILD/golden.log" 2>&1
grep -E 'FAILED' "$BUILD/golden.log"
counts=$(tail -n 1 "$BUILD/golden.log")
case $counts in
    *" passed, "*" failed"*)
        echo "goldens: $counts ($BUILD/golden.log)"
        passed=$((passed + ${counts%% passed*}))
        rest=${counts#* passed, }
        failed=$((failed + ${rest%% failed*}))
        case $counts in *" skipped") rest=${counts##*, }; skipped=$((skipped + ${rest%% skipped})) ;; esac ;;
    *)
        echo "not ok: the golden runner ended early; its last line: $counts"
        failed=$((failed + 1)) ;;
esac

echo "log: $log"
if [ "$skipped" != 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" = 0 ] && [ "$passed" != 0 ]
