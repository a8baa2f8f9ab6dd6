#!/usr/bin/env bash
# llama.cpp's server:  start/llama.cpp.sh PORT
# Its fastest format in many streams (Q4_0, LLAMA_CPP_FORMAT for another), 16 slots of 4,096 tokens with KV of their own,
# flash attention, all cores.
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=${PEERS_DIR:-build/peers}
slots=16
exec "$root/llama_cpp/build/bin/llama-server" \
  --model "$root/models/SmolLM2-135M-Instruct.${LLAMA_CPP_FORMAT:-Q4_0}.gguf" --alias peer --threads "$(nproc)" \
  --parallel $slots --ctx-size $((slots * 4096)) --flash-attn on --no-kv-unified --no-webui --host 127.0.0.1 --port "$1"
