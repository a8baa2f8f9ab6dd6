#!/usr/bin/env bash
# vLLM's CPU build with prefill and decode apart:  start/vllm-pd.sh PORT
# Two engines on one core each (VLLM_PREFILL_CORES, VLLM_DECODE_CORES), KV moved by vLLM's NixlConnector, a proxy of ours in front
# (serve_vllm_pd.py). bfloat16, inductor and tcmalloc as in vllm.sh.
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=$(realpath "${PEERS_DIR:-build/peers}")
tcmalloc=${LIBTCMALLOC:-$(ldconfig -p | awk '/libtcmalloc_minimal\.so/ { print $NF; exit }')}
[ -n "$tcmalloc" ] || echo "vllm-pd.sh: no tcmalloc here (apt: libtcmalloc-minimal4); without it vLLM is slower" >&2
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$root/vllm/cache} VLLM_CPU_KVCACHE_SPACE=2  # GiB, each
export LD_PRELOAD=$tcmalloc${LD_PRELOAD:+:$LD_PRELOAD}
exec "$root/vllm/bin/python" benchmarks/peers/serve_vllm_pd.py --port "$1" --model "$root/models/bf16" \
  --prefill-cores "${VLLM_PREFILL_CORES:-0}" --decode-cores "${VLLM_DECODE_CORES:-1}"
