#!/usr/bin/env bash
# Compiles the CPU kernels for arm64, and runs the operator's tests and fuzz on them, all under qemu:
# on a Debian of another processor, with its packages g++-aarch64-linux-gnu, qemu-user-static and
# mmdebstrap. How fast the kernels are cannot be told that way.
#
#   tests/sdwa/arm64.sh           golden vectors and cases; 300 cases of the fuzz
#   tests/sdwa/arm64.sh 5000      5000 cases of the fuzz
#
# PYTHON  the interpreter (python), which has ninja
# CXX, CC  the cross compilers (aarch64-linux-gnu-g++, aarch64-linux-gnu-gcc)
# ARM64  a folder for Debian's Python and PyTorch for arm64 (build/arm64), made where it is missing:
#        900 MB, two minutes. Nothing else outside a temporary folder is written.
# Takes ten minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

cases="${1:-300}"
python="${PYTHON:-python}"
export CXX="${CXX:-aarch64-linux-gnu-g++}" CC="${CC:-aarch64-linux-gnu-gcc}"
arm64=$(realpath -m "${ARM64:-build/arm64}")
emulated="$arm64/environment/bin/python"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Debian's packages, unpacked, and a virtual environment whose interpreter is a script. What is not
# there, such as compilers, an emulated program finds on the machine itself. This PyTorch is the
# last whose wheel for arm64 is without CUDA.
if [ ! -e "$arm64/complete" ]; then
    mkdir -p "$arm64/environment/bin"
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mmdebstrap --quiet --variant=extract --architectures=arm64 \
        --include=python3,libstdc++6,ca-certificates "$suite" "$arm64/root"
    cat > "$emulated" <<SCRIPT
#!/bin/sh
exec qemu-aarch64-static -L "$arm64/root" -0 "\$0" "$arm64/root/usr/bin/python3" "\$@"
SCRIPT
    chmod +x "$emulated"
    echo "home = /usr/bin" > "$arm64/environment/pyvenv.cfg"
    "$python" -m pip --python "$emulated" install -q torch==2.10.0 numpy 'setuptools>=77' \
        ninja tqdm hypothesis pytest pytest-benchmark pytest-timeout pytest-xdist
    touch "$arm64/complete"
fi
# An emulated program starts others of this machine only.
ln -sf "$("$python" -c 'import ninja; print(ninja.BIN_DIR)')/ninja" "$arm64/environment/bin/ninja"

SDWA_WERROR=1 SDWA_BUILD_CUDA=0 "$emulated" setup.py -q build_ext \
    --build-lib "$work/built" --build-temp "$work/objects"

# The sources beside that library: what is imported from there finds it first.
mkdir "$work/root"
tar -c --exclude=_lib --exclude=__pycache__ --exclude='_build*.so' sdwa tests pyproject.toml | tar -x -C "$work/root"
cp -r "$work/built/sdwa/_lib" "$work/root/sdwa/"
cd "$work/root"

"$emulated" -m sdwa.info
# The test left out runs what it compiles.
"$emulated" -m pytest -q -x -n0 --timeout 3600 -p no:cacheprovider -k "cpu and not ring_of_rows" \
    tests/sdwa/test_operator.py tests/sdwa/test_cpu_kernels.py
"$emulated" -m tests.fuzz cpu --cases "$cases" --seed "${SDWA_FUZZ_SEED:-0}" --state "$work/fuzz"
echo "passed"
