#!/usr/bin/env bash
# Runs the operator's tests and its fuzz with the CPU kernels under sanitizers.
#
#   tests/sdwa/sanitize_cpu.sh                    addresses and undefined behaviour: the best
#                                                 instruction set here, and the baseline
#   tests/sdwa/sanitize_cpu.sh avx2 baseline      those
#   SANITIZE=thread tests/sdwa/sanitize_cpu.sh    races: of the pool's threads and of the caller's
#
# PYTHON  the interpreter (python); CXX, CC  the compilers, GCC (c++, cc)
# Takes a quarter of an hour on 2 cores; nothing outside a temporary folder is written.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-python}"
compiler="${CXX:-c++}"
sanitize="${SANITIZE:-address,undefined}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The build of setup.py, with a compiler that adds the sanitizers.
cat > "$work/sanitizing" <<SCRIPT
#!/bin/sh
exec $compiler "\$@" -DSDWA_FEW_PRODUCTS -O1 -g -fno-omit-frame-pointer -fsanitize=$sanitize -fno-sanitize-recover=all
SCRIPT
chmod +x "$work/sanitizing"
CXX="$work/sanitizing" SDWA_BUILD_CUDA=0 "$python" setup.py -q build_ext \
    --build-lib "$work/built" --build-temp "$work/objects"

# The sources beside that library: what is imported from there finds it first.
mkdir "$work/root"
tar -c --exclude=_lib --exclude=__pycache__ --exclude='_build*.so' sdwa tests pyproject.toml | tar -x -C "$work/root"
cp -r "$work/built/sdwa/_lib" "$work"/built/sdwa/_build*.so "$work/root/sdwa/"
cd "$work/root"

library() { $compiler -print-file-name="$1"; }
if [ "$sanitize" = thread ]; then
    ${CC:-cc} -shared -fPIC -O1 -g -fsanitize=thread tests/sdwa/openmp_by_pthreads.c -o "$work/openmp.so"
    preloaded="$(library libtsan.so) $work/openmp.so"
    tests=(-k threads tests/sdwa/test_cpu_kernels.py)
    cases=100
    # It finds no place in memory otherwise.
    alone=(setarch -R)
else
    preloaded="$(library libasan.so) $(library libstdc++.so)"
    tests=(-k "cpu or wide" tests/sdwa/test_operator.py tests/sdwa/test_cpu_kernels.py::test_wide_maps)
    cases=1000
    alone=()
fi

[ $# -gt 0 ] || if [ "$sanitize" = thread ]; then set -- ""; else set -- "" baseline; fi
for isa in "$@"; do
    echo "== ${isa:-best instruction set}"
    sanitized() {
        LD_PRELOAD="$preloaded" SDWA_CPU_CAPABILITY="$isa" \
            ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
            "${alone[@]}" "$python" "$@"
    }
    sanitized -m pytest -q -x -n0 -p no:cacheprovider "${tests[@]}"
    sanitized -m tests.fuzz cpu --cases "$cases" --seed "${SDWA_FUZZ_SEED:-0}" --state "$work/fuzz$isa"
done
echo "clean"
