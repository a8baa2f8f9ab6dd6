#!/usr/bin/env bash
# Baton's default, prefill and decode apart where that helps:  start/baton-adaptive.sh PORT
set -euo pipefail
cd "$(dirname "$0")/../../.."
exec "${VENV:-.venv}/bin/baton" serve --port "$1"
