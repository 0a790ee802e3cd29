#!/usr/bin/env bash
# Fetch the built files of the OHIF viewer from the npm registry into deploy/viewer/node_modules.
set -euo pipefail
cd "$(dirname "$0")/../viewer"
if ! command -v npm >/dev/null; then
    echo "npm is missing. Install it:  apt-get install -y npm" >&2
    exit 1
fi
echo "OHIF viewer (npm) ..."
npm ci --ignore-scripts --no-audit --no-fund --omit=dev --silent
touch node_modules/.installed
