#!/usr/bin/env bash
# Baton, every request on a prefill and a decode worker:  start/baton-pd.sh PORT
set -euo pipefail
cd "$(dirname "$0")/../../.."
exec "${VENV:-.venv}/bin/baton" serve --port "$1" --workers 1p1d --always-split
