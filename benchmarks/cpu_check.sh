#!/usr/bin/env bash
# Measures the CPU results of attention, training and latency again, and makes the plots and the page,
# in about 25 minutes on 2 cores. The page shows above each other table the command that made it.
#
#   benchmarks/cpu_check.sh                 everything
#   benchmarks/cpu_check.sh maps training   some steps, of
#       paper dilateformer maps kernels shifted sphere training latency report
#
# PYTHON    the interpreter (python); NATTEN takes part if it is installed there:
#           pip install --no-build-isolation natten==0.17.5
#           (it asks for C++17, so not beside a PyTorch whose headers ask for C++20, as 2.14's do)
#           and torch-harmonics 0.9.3, for "sphere": pip install torch-harmonics (for PyTorch 2.14)
# POSTER    a checkout of https://github.com/zczcwh/POSTER, to be timed beside the network; it
#           imports einops
# PREFIX    goes before each command, such as "taskset -c 0-3"
# RESUME=1  keeps what the files hold of this machine and commit, and times the rest
set -uo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python}"
results=benchmarks/results
failed=()

step() {  # step NAME COMMAND...
    local name=$1
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    # shellcheck disable=SC2086
    ${PREFIX:-} "$@" || failed+=("$name")
}

[ $# -gt 0 ] || set -- paper dilateformer maps kernels shifted sphere training latency report
for name in "$@"; do
    case $name in
        paper | dilateformer | maps | kernels | shifted | sphere)
            step "$name" "$python" -m benchmarks.attention --shapes "$name" --device cpu \
                --seconds 0.5 --json "$results/cpu-$name.json" ${RESUME:+--resume}
            ;;
        training)
            step training "$python" -m benchmarks.training --device cpu --seconds 2 \
                --json "$results/cpu-training.json" ${RESUME:+--resume} \
                ${POSTER:+--poster "$POSTER"}
            ;;
        latency)
            step latency "$python" -m benchmarks.latency --json "$results/cpu-latency.json"
            ;;
        report)
            step plots "$python" -m benchmarks.plots \
                "$results"/cpu-{paper,dilateformer,maps,kernels}.json
            step report "$python" -m benchmarks.report
            ;;
        *)
            echo "error: steps are paper dilateformer maps kernels shifted sphere training latency report; got $name" >&2
            exit 2
            ;;
    esac
done

[ ${#failed[@]} -eq 0 ] || { printf '\nfailed: %s\n' "${failed[*]}"; exit 1; }
