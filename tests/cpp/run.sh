#!/usr/bin/env bash
# Builds the arithmetic of csrc/cpu with its tests twice, under ASan + UBSan and under TSan, and runs both. Needs g++.
# Sources and flags per instruction set are those of setup.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
cxx=${CXX:-g++}
jobs=$(getconf _NPROCESSORS_ONLN)

levels() {  # one line per instruction set: name, flags
  "$python" - "$root/setup.py" <<'PY'
import ast, platform, sys
tree = ast.parse(open(sys.argv[1]).read())
[levels] = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "LEVELS"]
x86 = platform.machine().lower() in ("x86_64", "amd64")
for name, flags in ast.literal_eval(levels).items():
    if name == "scalar" or x86:
        print(name, flags)
PY
}

check() {  # sanitizers
  local out=$root/build/cpp/${1//,/-} source name level flags
  local common="-std=c++17 -O1 -g -fno-omit-frame-pointer -fopenmp-simd -Wall -Wextra -I$root/csrc -fsanitize=$1 -fno-sanitize-recover=all"
  rm -rf "$out" && mkdir -p "$out"
  for source in "$root"/csrc/cpu/*.cpp "$root"/tests/cpp/*.cpp; do
    name=$(basename "$source" .cpp)
    if [[ $source == *.simd.cpp ]]; then
      while read -r level flags; do
        echo "$cxx $common $flags -DVIFAST_ISA=$level -c $source -o $out/$name.$level.o"
      done < <(levels)
    else
      echo "$cxx $common -c $source -o $out/$name.o"
    fi
  done | xargs -P "$jobs" -I{} sh -c '{}'
  "$cxx" -fsanitize="$1" "$out"/*.o -o "$out/tests" -ldl -lpthread
  echo "== C++ tests under -fsanitize=$1"
  "$out/tests"
}

check address,undefined
check thread
