#!/bin/sh
# Checks and measures everything about the GPU in one command, without cargo and without a network:
#
#   tools/gpu.sh [--binary KRONSAE] [--out DIR] [--emulate LIB.so] [--python PYTHON] [--quick]
#
# --binary   the kronsae command [default: kronsae beside this script, or target/release/kronsae, or the one in PATH]
# --out      where gpu.json, gpu.md, peers.json and the logs go [default: gpu-report]
# --emulate  kernels emulated on the CPU, of cuda/emulate/build.sh, used where there is no GPU; for binaries built with the
#            feature cuda-emulation. Everything runs on tiny shapes then, and no time says anything.
# --python   an interpreter with torch, and sparsify if it is to take part [default: python3]
# --quick    no step times over F
#
# Exit status: 0 if every check holds; 1 if one does not; 2 if nothing could be run.
set -u
here=$(cd "$(dirname "$0")" && pwd)
binary= out=gpu-report emulate= python=python3 quick=
while [ $# -gt 0 ]; do
    case "$1" in
        --binary | --out | --emulate | --python)
            [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            case "$1" in
                --binary) binary=$2 ;;
                --out) out=$2 ;;
                --emulate) emulate=$2 ;;
                --python) python=$2 ;;
            esac
            shift 2 ;;
        --quick) quick=--no-sweep; shift ;;
        -h | --help) sed -n '2,/^set -u/{/^set -u/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
    esac
done

if [ -z "$binary" ]; then
    for candidate in "$here/kronsae" "$here/../target/release/kronsae" "$(command -v kronsae || true)"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ]; then
            binary=$candidate
            break
        fi
    done
fi
[ -n "$binary" ] && [ -x "$binary" ] || {
    echo "error: no kronsae command found; name one with --binary" >&2
    exit 2
}
mkdir -p "$out" || exit 2

# A real device first; an emulated one only where there is none.
unset KRONSAE_CUDA_EMULATION
tiny=
if device=$("$binary" bench gpu --probe 2>"$out/probe.log"); then
    echo "device: $device"
else
    sed 's/^/no GPU: /' "$out/probe.log" >&2
    [ -n "$emulate" ] || {
        echo "error: nothing to measure; with --emulate LIB.so everything runs emulated, on tiny shapes" >&2
        exit 2
    }
    KRONSAE_CUDA_EMULATION=$emulate
    export KRONSAE_CUDA_EMULATION
    "$binary" bench gpu --probe >/dev/null || exit 2
    echo "EMULATED on the CPU, on tiny shapes: this shows that everything runs; no time says anything about a GPU" >&2
    tiny=--tiny
fi

# The peers first: what the targets are ratios of.
peers=
if "$python" -c 'import sys' 2>/dev/null; then
    # shellcheck disable=SC2086
    if "$python" "$here/gpu_peers.py" $tiny --json "$out/peers.json"; then
        peers="--peers $out/peers.json"
    else
        echo "peers: $here/gpu_peers.py failed; going on without" >&2
    fi
else
    echo "peers: no $python; going on without" >&2
fi

status=0
# shellcheck disable=SC2086
"$binary" bench gpu --out "$out" $quick $peers || status=1

if [ -n "$tiny" ]; then
    echo "compute-sanitizer: skipped, kernels are emulated (their own sanitizers run in cargo xtask test)"
elif command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        if compute-sanitizer --tool "$tool" --error-exitcode 9 "$binary" bench gpu --tiny --checks >"$out/$tool.log" 2>&1; then
            echo "compute-sanitizer $tool: clean"
        elif grep -qi "not supported\|unable to\|failed to initialize" "$out/$tool.log"; then
            echo "compute-sanitizer $tool: not supported here, see $out/$tool.log"
        else
            echo "compute-sanitizer $tool: FAILED, see $out/$tool.log"
            status=1
        fi
    done
else
    echo "compute-sanitizer: skipped, it is not installed"
fi
echo "report: $out/gpu.md, $out/gpu.json"
exit $status
