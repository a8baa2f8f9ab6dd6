#!/usr/bin/env bash
# OpenVINO GenAI behind a small server of ours (serve_openvino.py):  start/openvino.sh PORT [CHUNK_TOKENS]
# Q8_0, continuous batching, prompts in chunks of 128 tokens, prefix cache, all cores.
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=$(realpath "${PEERS_DIR:-build/peers}")
exec "$root/openvino/bin/python" benchmarks/peers/serve_openvino.py --port "$1" --chunk "${2:-128}" \
  --format "${OPENVINO_FORMAT:-Q8_0}"
