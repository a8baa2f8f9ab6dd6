#!/usr/bin/env bash
# Builds llama.cpp for this machine's CPU, from the source inside llama-cpp-python's sdist on PyPI,
# and makes the formats that are compared from Baton's default model.
#
#   PEERS_DIR  where everything goes (default: build/peers under the repository)
#   MODEL      the GGUF file to start from (default: the one Baton keeps in ~/.cache/baton)
#   CC, CXX    another compiler than cmake's choice
#   JOBS       compilers at once (default: 2)
#
# Needs cmake, a C++17 compiler and 1 GB of disk; about 7 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

LLAMA_CPP_PYTHON=0.3.36  # vendors llama.cpp of 2026-10-01

peers_dir=$(realpath -m "${PEERS_DIR:-build/peers}")
model=${MODEL:-$HOME/.cache/baton/SmolLM2-135M-Instruct.Q4_1.gguf}
root=$peers_dir/llama_cpp
mkdir -p "$root/sdist" "$peers_dir/models"

[ -x "$root/venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$root/venv"
if [ ! -d "$root/source" ]; then
  "$root/venv/bin/pip" download --quiet --no-deps --no-binary llama-cpp-python \
    --dest "$root/sdist" "llama-cpp-python==$LLAMA_CPP_PYTHON"
  mkdir -p "$root/unpacked"
  tar -xf "$root/sdist/llama_cpp_python-$LLAMA_CPP_PYTHON.tar.gz" -C "$root/unpacked" \
    --strip-components=1
  mv "$root/unpacked/vendor/llama.cpp" "$root/source"
fi

# GGML_NATIVE: every instruction set this CPU has. The web page of the server is left out, because
# its build would download it.
cmake -S "$root/source" -B "$root/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
  ${CC:+-DCMAKE_C_COMPILER=$CC} ${CXX:+-DCMAKE_CXX_COMPILER=$CXX}
cmake --build "$root/build" --parallel "${JOBS:-2}" \
  --target llama-bench llama-batched-bench llama-quantize llama-perplexity llama-server

# The embedding, which is also the output matrix, stays in Q8_0 in both 4-bit files, as in the
# original: the files differ in nothing but the format of the layers.
quantize() {  # TYPE [OPTION...]
  local made="$peers_dir/models/$(basename "$model" .Q4_1.gguf).$1.gguf"
  [ -f "$made" ] && return
  "$root/build/bin/llama-quantize" --allow-requantize "${@:2}" "$model" "$made.part" "$1" 2
  mv "$made.part" "$made"
}
quantize Q4_0 --pure --token-embedding-type q8_0
quantize Q8_0
quantize BF16
ln -sf "$model" "$peers_dir/models/"
echo "llama.cpp is in $root, its models are in $peers_dir/models"
