#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under 10 minutes: build, tests, sanitizers,
# benchmarks, profiles. What times nothing runs side by side. A step that fails or runs out of time
# is reported, and the rest runs; the exit status is then 1. What the time was too short for can be
# asked for by name in another call.
#
#   benchmarks/gpu_check.sh                everything
#   benchmarks/gpu_check.sh tests sanitize some steps:
#       build info tests network sanitize attention repeats large training profile peers train
#       report
#
# PYTHON   the interpreter (python3), with what `pip install '.[test]'` brings
# POSTER   a checkout of https://github.com/zczcwh/POSTER, to be timed beside the network
# RESULTS  folder of results (benchmarks/results)
# LIMIT    seconds for everything (570)
#
# Results lie in files of RESULTS as soon as they are measured; the output is the only log.
set -uo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
results="${RESULTS:-benchmarks/results}"
limit="${LIMIT:-570}"
steps=(build info tests network sanitize attention repeats large training profile peers train)
steps+=(report)
mkdir -p "$results"
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
touch "$logs"/{passed,failed,aside}

passed() { echo "$1" >>"$logs/passed"; }
failed() { echo "$1" >>"$logs/failed"; }

step() {  # step NAME SECONDS COMMAND...: never longer than SECONDS, nor than what is left
    local name=$1 most=$2 status
    shift 2
    local left=$((limit - SECONDS))
    if [ "$left" -lt 5 ]; then
        failed "$name (no time left)"
        return 1
    fi
    [ "$most" -le "$left" ] || most=$left
    printf '\n== %s (at %s s, at most %s s): %s\n' "$name" "$SECONDS" "$most" "$*"
    timeout --kill-after=5 "$most" "$@" </dev/null 2>&1 | tee "$logs/$name"
    status=${PIPESTATUS[0]}
    case $status in
        0) passed "$name"; return 0 ;;
        124 | 137) failed "$name (over $most s)" ;;
        *) failed "$name (status $status)" ;;
    esac
    return 1
}

aside() {  # aside COMMAND...: beside what follows, its output kept until `together`
    local output
    output="$(mktemp "$logs/aside-XXXXXX")"
    echo "$output" >>"$logs/aside"
    OMP_NUM_THREADS=4 "$@" >"$output" 2>&1 &
}

together() {  # waits for what runs aside
    local output
    wait
    while read -r output; do cat "$output"; done <"$logs/aside"
    : >"$logs/aside"
}

have() {  # have COMMAND STEP: is it installed?
    command -v "$1" >/dev/null && return
    failed "$2 ($1 is not installed)"
    return 1
}

build() {
    local capability
    capability="$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')" ||
        { failed "build (no GPU)"; return; }
    step build 240 env SDWA_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST="$capability" \
        "$python" setup.py build_ext --inplace
}

info() { step info 60 "$python" -m sdwa.info; }

tests() {
    # -k takes the tests of GPU backends; those that emulate a GPU on the host need none.
    local common=("$python" -m pytest tests/sdwa -q --maxfail=20)
    common+=(--ignore=tests/sdwa/test_cuda_on_host.py --ignore=tests/sdwa/test_triton_interpreted.py)
    aside step tests-cuda 150 "${common[@]}" -k cuda
    aside step tests-triton 200 "${common[@]}" -k "triton and not geometry"
}

network() {  # logits of each kind of attention on the GPU against float64 on the CPU
    aside step network 90 "$python" -m benchmarks.training --device cuda --batch 2 \
        --measures latency --precision float32,bf16 --seconds 0.1
}

sanitize() {
    local tool
    have compute-sanitizer sanitize || return
    for tool in memcheck racecheck initcheck synccheck; do
        aside step "sanitize-$tool" 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --kernel-name kns=sdwa --error-exitcode 9 \
            "$python" -m benchmarks.gpu.small_set --backend cuda
    done
}

attention() {
    local dtype
    for dtype in bfloat16 float32; do
        step "attention-$dtype" 80 "$python" -m benchmarks.attention --device cuda \
            --dtype "$dtype" --backends cuda,triton,reference,window,global \
            --passes forward,backward,forward+backward --seconds 0.05 --graph --warm \
            --json "$results/gpu-attention-$dtype.json"
    done
}

peers() {  # FlexAttention compiles for seconds, for every shape
    step peers 120 "$python" -m benchmarks.attention --device cuda --dtype bfloat16 \
        --backends natten,flex --shapes paper,dilateformer,maps --seconds 0.05 \
        --json "$results/gpu-attention-bfloat16.json" --resume
}

repeats() {  # the same bits in 100 runs
    step repeats 60 "$python" -m benchmarks.attention --device cuda --shapes paper,base28 \
        --backends cuda,triton --dtype bfloat16,float32 --repeats 100 --seconds 0.05 \
        --json "$results/gpu-repeats.json" || return
    step repeats-identical 10 "$python" -c '
import json, sys
rows = json.load(open(sys.argv[1]))["measurements"]
rows = [m for m in rows if "identical_repeats" in m["details"]]
different = [m for m in rows if not m["details"]["identical_repeats"]]
different = [(m["case"], m["contender"], m["what"]) for m in different]
print(len(rows), "problems repeated; not identical:", different)
sys.exit(bool(different) or not rows)' "$results/gpu-repeats.json"
}

large() {  # more than 2^31 elements per tensor
    step large 60 "$python" -m benchmarks.attention --device cuda --shapes large --backends cuda \
        --seconds 0.1 --json "$results/gpu-large.json"
}

training() {
    step training 120 "$python" -m benchmarks.training --device cuda --seconds 1 --graph \
        --json "$results/gpu-training.json" ${POSTER:+--poster "$POSTER"}
}

profile() {
    local options number=0
    have ncu profile || return
    while read -r options; do
        number=$((number + 1))
        # shellcheck disable=SC2086
        step "profile-$number" 60 ncu --set full --clock-control none --kernel-name regex:sdwa \
            --kernel-name-base mangled --launch-skip 2 --launch-count 4 \
            "$python" -m benchmarks.gpu.profiling $options &&
            cp "$logs/profile-$number" "$results/gpu-profile-$number.txt"
    done < <("$python" -m benchmarks.gpu.profiling --slowest 2 "$results/gpu-attention-bfloat16.json")
    [ "$number" -gt 0 ] || failed "profile (no attention results)"
}

train() {  # the drawn faces in bf16; its last lines tell the accuracy
    step train 180 "$python" -m cfmrfn.train --device cuda --precision bf16 \
        --output "$logs/train-run" &&
        tail -n 5 "$logs/train" >"$results/gpu-train.txt"
}

report() {
    step plots 60 "$python" -m benchmarks.plots --folder "$results" \
        "$results"/gpu-attention-{bfloat16,float32}.json
}

[ $# -gt 0 ] || set -- "${steps[@]}"
for name in "$@"; do
    case " ${steps[*]} " in
        *" $name "*) ;;
        *) echo "error: steps are ${steps[*]}; got $name" >&2; exit 2 ;;
    esac
done
for name in "$@"; do
    case $name in
        tests | network | sanitize) ;;  # nothing is timed beside them
        *) together ;;
    esac
    "$name"
done
together

printf '\n== after %s s\npassed: %s\n' "$SECONDS" "$(paste -sd ' ' "$logs/passed")"
[ -s "$logs/failed" ] || exit 0
sed 's/^/FAILED: /' "$logs/failed"
exit 1
