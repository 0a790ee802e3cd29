#!/usr/bin/env bash
# Make a virtual environment and install this distribution with extras: python.sh PYTHON FOLDER EXTRAS
set -euo pipefail
python=$1 folder=$2 extras=$3

if ! command -v "$python" >/dev/null; then
    echo "Python is missing ($python). Install it:  apt-get install -y python3 python3-venv" >&2
    exit 1
fi
if ! "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))'; then
    echo "$("$python" --version) is too old; 3.11 or newer is needed. Point to one:  make PYTHON=python3.11 ..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "Python's venv module is missing. Install it:  apt-get install -y python3-venv" >&2
    exit 1
fi
echo "Python environment $folder (extras: $extras) ..."
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
"$folder/bin/python" -m pip install -qq --upgrade pip
"$folder/bin/python" -m pip install -qq --editable ".[$extras]"
touch "$folder/.installed"
