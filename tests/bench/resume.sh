#!/bin/sh
# 50 kills at random moments a case, each resumed, bytes compared; the cases and all else of tests/tools/resume.sh.
#   BIN=build/bin [KILLS=50] [DEVICE=cuda] tests/bench/resume.sh
KILLS=${KILLS:-50} exec sh tests/tools/resume.sh
