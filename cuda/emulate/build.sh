#!/bin/sh
# Builds the kernels for the CPU: cuda/emulate/build.sh OUTPUT.so [more flags of g++]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=$1
shift
# -ffp-contract=off: the kernels' products and sums round where they say so, no more and no less.
# -fno-strict-aliasing: nvcc allows vectors to be loaded from arrays of their elements.
exec "${CXX:-g++}" -std=c++17 -O2 -g1 -fPIC -shared -fvisibility=hidden -Wl,-z,start-stop-visibility=hidden -ffp-contract=off -fno-strict-aliasing \
    -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-function "$@" \
    "$here/block.cpp" "$here/library.cpp" -o "$output"
