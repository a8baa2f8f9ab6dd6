#!/usr/bin/env bash
# vLLM's CPU build, bfloat16:  start/vllm.sh PORT [CHUNK_TOKENS]
# Chunked prefill of 512 tokens unless told otherwise (128 stutters less), a thread on every core, none reserved, compiled
# by inductor, tcmalloc as its documentation advises (LIBTCMALLOC, or where the system has it).
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=$(realpath "${PEERS_DIR:-build/peers}")
chunk=${2:-512}
tcmalloc=${LIBTCMALLOC:-$(ldconfig -p | awk '/libtcmalloc_minimal\.so/ { print $NF; exit }')}
[ -n "$tcmalloc" ] || echo "vllm.sh: no tcmalloc here (apt: libtcmalloc-minimal4); without it vLLM is slower" >&2
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$root/vllm/cache} VLLM_CPU_KVCACHE_SPACE=2  # GiB
export VLLM_CPU_OMP_THREADS_BIND=0-$(($(nproc) - 1))
export LD_PRELOAD=$tcmalloc${LD_PRELOAD:+:$LD_PRELOAD}
# Not the `vllm` command: it looks for a package named vllm, and this one is vllm-cpu.
exec "$root/vllm/bin/python" -m vllm.entrypoints.openai.api_server --model "$root/models/bf16" --served-model-name peer \
  --dtype bfloat16 --host 127.0.0.1 --port "$1" --max-model-len 4096 --max-num-seqs 64 \
  --enable-chunked-prefill --max-num-batched-tokens "$chunk" --disable-uvicorn-access-log
