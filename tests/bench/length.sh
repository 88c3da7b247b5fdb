#!/bin/sh
# Five minutes of sound through hv-denoise and hv-decode, and all else of tests/tools/length.sh.    BIN=build/bin tests/bench/length.sh
LENGTH=${LENGTH:-300} exec sh tests/tools/length.sh
