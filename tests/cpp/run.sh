#!/bin/sh
# Builds and runs the C++ tests under the address, undefined-behaviour and thread sanitizers.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-O1 -g -std=c++17 -fopenmp-simd -fno-omit-frame-pointer -Wall -Wextra -I$root/csrc"
levels="scalar"
[ "$(uname -m)" = x86_64 ] && levels="scalar avx2 avx512"

isa_flags() {  # as LEVELS in setup.py
  case $1 in
    avx2) echo "-mavx2 -mfma" ;;
    avx512) echo "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma" ;;
  esac
}

for sanitizer in address,undefined thread; do
  objects=""
  for source in "$root"/tests/cpp/test_core.cpp "$root"/csrc/cpu/isa.cpp "$root"/csrc/cpu/rank_rows.cpp; do
    object=$work/$(basename "$source").o
    g++ $flags -fsanitize=$sanitizer -fno-sanitize-recover=all -c "$source" -o "$object"
    objects="$objects $object"
  done
  for source in distance batch_hard weighted_triplet ranking; do
    for level in $levels; do
      object=$work/$source.$level.o
      g++ $flags $(isa_flags $level) -DVIFAST_ISA=$level -fsanitize=$sanitizer -fno-sanitize-recover=all \
        -c "$root/csrc/cpu/$source.simd.cpp" -o "$object"
      objects="$objects $object"
    done
  done
  g++ -fsanitize=$sanitizer $objects -o "$work/tests" -ldl -lpthread
  echo "-fsanitize=$sanitizer"
  "$work/tests"
done
