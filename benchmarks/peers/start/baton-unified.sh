#!/usr/bin/env bash
# Baton, one worker that does both:  start/baton-unified.sh PORT
set -euo pipefail
cd "$(dirname "$0")/../../.."
exec "${VENV:-.venv}/bin/baton" serve --port "$1" --unified 1
