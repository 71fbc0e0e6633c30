#!/usr/bin/env bash
# Makes a Python environment under target/, generates stubs from proto/, and runs the client against a real server.
# Usage: run.sh [DIRECTORY OF THE PROGRAMS]   (default: target/debug)
set -euo pipefail
cd "$(dirname "$0")/../../.."
target=${CARGO_TARGET_DIR:-target}
programs=${1:-$target/debug}
venv=$target/interop/venv
if ! command -v python3 >/dev/null; then
  echo "error: python3 is missing; fix: apt-get install python3 python3-venv" >&2
  exit 1
fi
stamp=$venv/.$(sha256sum tests/interop/python/requirements.txt | cut -c1-16)
if [ ! -e "$stamp" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv" || { echo "error: no venv; fix: apt-get install python3-venv" >&2; exit 1; }
  "$venv/bin/pip" install -q -r tests/interop/python/requirements.txt
  touch "$stamp"
fi
generated=$target/interop/stubs
rm -rf "$generated" && mkdir -p "$generated"
"$venv/bin/python" -m grpc_tools.protoc -I proto --python_out="$generated" --grpc_python_out="$generated" proto/atrium/v1/*.proto
PYTHONPATH=$generated exec "$venv/bin/python" -W error::ResourceWarning tests/interop/python/interop.py "$(realpath "$programs")"
