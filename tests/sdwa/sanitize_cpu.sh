#!/usr/bin/env bash
# Runs the operator's tests with the CPU kernels under the address and undefined-behaviour sanitizers.
#
#   tests/sdwa/sanitize_cpu.sh                    the best instruction set here, and the baseline
#   tests/sdwa/sanitize_cpu.sh avx2 baseline      those
#
# PYTHON  the interpreter (python); CXX  the compiler, GCC (c++)
# Takes a quarter of an hour on 2 cores; nothing outside a temporary folder is written.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-python}"
compiler="${CXX:-c++}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The build of setup.py, with a compiler that adds the sanitizers.
cat > "$work/sanitizing" <<SCRIPT
#!/bin/sh
exec $compiler "\$@" -DSDWA_FEW_PRODUCTS -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
SCRIPT
chmod +x "$work/sanitizing"
CXX="$work/sanitizing" SDWA_BUILD_CUDA=0 "$python" setup.py -q build_ext \
    --build-lib "$work/built" --build-temp "$work/objects"

# The sources beside that library: what is imported from there finds it first.
mkdir "$work/root"
tar -c --exclude=_lib --exclude=__pycache__ --exclude='_build*.so' sdwa tests | tar -x -C "$work/root"
cp -r "$work/built/sdwa/_lib" "$work"/built/sdwa/_build*.so "$work/root/sdwa/"
cd "$work/root"

[ $# -gt 0 ] || set -- "" baseline
for isa in "$@"; do
    echo "== ${isa:-best instruction set}"
    LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 SDWA_CPU_CAPABILITY="$isa" \
        "$python" -m pytest -q -x -p no:cacheprovider -k "cpu or wide" \
        tests/sdwa/test_operator.py tests/sdwa/test_cpu_kernels.py::test_wide_maps
done
echo "clean"
