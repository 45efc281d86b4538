#!/usr/bin/env bash
# Resolve the hash-pinned requirement files anew. They hold no URL, so that any index can serve them.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-header --custom-compile-command 'make lock' pyproject.toml "$@"
}
echo 'uv>=0.9' | .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header - --output-file requirements/bootstrap.txt
compile --output-file requirements/runtime.txt
compile --extra examples --extra sklearn --group build --constraint requirements/runtime.txt \
  --output-file requirements/run.txt
compile --extra examples --extra bench --extra mcap --extra onnx --extra ray --extra sklearn --group build --group dev \
  --constraint requirements/run.txt --output-file requirements/dev.txt
.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --custom-compile-command 'make lock' --group native-build \
  --constraint requirements/dev.txt --output-file requirements/native.txt
