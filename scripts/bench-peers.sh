#!/usr/bin/env bash
# Make the environments of the inference bench's peers under build/peers, from hash-pinned locks:
#   scripts/bench-peers.sh [orion] [concrete-ml]      both without arguments; about 1.3 and 2.0 GB
#   scripts/bench-peers.sh lock                       resolve the locks anew
# Both need the CPU build of torch, which PyPI does not have: let pip (for `lock`, uv) know an index or a
# folder with it, by PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS (UV_EXTRA_INDEX_URL or UV_FIND_LINKS).
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
  local name=$1
  shift
  .venv/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
    --custom-compile-command 'scripts/bench-peers.sh lock' \
    --group "peer-$name" "$@" --output-file "requirements/peer-$name.txt"
}

if [ "${1:-}" = lock ]; then
  lock orion
  lock concrete-ml --override requirements/peer-concrete-ml.overrides
  exit
fi

[ "$#" -gt 0 ] || set -- orion concrete-ml
for name in "$@"; do
  [ -f "requirements/peer-$name.txt" ] || { echo "there is no peer $name" >&2; exit 2; }
  python3.11 -m venv --clear "build/peers/$name"
  "build/peers/$name/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --require-hashes --requirement "requirements/peer-$name.txt"
  echo "--peer $name=build/peers/$name/bin/python"
done
