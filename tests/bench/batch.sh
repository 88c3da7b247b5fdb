#!/bin/sh
# A batch of 20 rows killed 20 times, and all else of tests/tools/batch.sh.    BIN=build/bin tests/bench/batch.sh
ROWS=${ROWS:-20} KILLS=${KILLS:-20} exec sh tests/tools/batch.sh
