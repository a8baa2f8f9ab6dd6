#!/usr/bin/env bash
# Installs OpenVINO GenAI from PyPI. Its models are those of install_llama_cpp.sh.
#
#   PEERS_DIR  where everything goes (default: build/peers under the repository)
#   PYTHON     a Python that openvino-genai supports (default: python3)
set -euo pipefail
cd "$(dirname "$0")/../.."

OPENVINO_GENAI=2026.4.1.0

root=$(realpath -m "${PEERS_DIR:-build/peers}")/openvino
[ -x "$root/bin/pip" ] || "${PYTHON:-python3}" -m venv "$root"
"$root/bin/pip" install --quiet "openvino-genai==$OPENVINO_GENAI"
echo "OpenVINO GenAI is in $root"
