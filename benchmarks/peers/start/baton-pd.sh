#!/usr/bin/env bash
# Baton, prefill and decode apart, its default:  start/baton-pd.sh PORT
set -euo pipefail
cd "$(dirname "$0")/../../.."
exec "${VENV:-.venv}/bin/baton" serve --port "$1" --workers 1p1d
