#!/usr/bin/env bash
# Set up everything that `make run` (kind: run) or `make ci` (kind: dev) needs: Debian packages, a
# virtual environment from the hash-pinned lock, and this package in it. With `native` as well (always
# for dev), build the native runtime too. Does nothing when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: scripts/setup.sh run|dev [native]}
native=${2:-}
[ "$kind" != dev ] || native=native
exec 1>&2 # standard output belongs to the job that follows

missing=()
need() { # package, test…
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb'; }

need python3 command -v python3
need python3-venv python3 -c 'import ensurepip, venv'
if [ "$kind" = dev ]; then
  need git command -v git
  need postgresql has_postgresql
  need curl command -v curl
  need softhsm2 command -v softhsm2-util
  need prometheus command -v prometheus
fi
if [ "$native" = native ]; then
  need g++ command -v g++
  need python3-dev test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Debian packages: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
  else
    echo "These packages are missing. Run this, then try again:"
    echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    exit 1
  fi
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $(python3 --version) is first on PATH."
  exit 1
}

export UV_LINK_MODE=copy VIRTUAL_ENV=$PWD/.venv
fresh() { # stamp, digest, module: was this very thing installed before?
  [ -f "$1" ] && [ "$(cat "$1")" = "$2 $PWD" ] && .venv/bin/python -c "import $3" 2>/dev/null
}

lock=requirements/$kind.txt
stamp=.venv/.setup-$kind
want=$(cat "$lock" requirements/bootstrap.txt pyproject.toml | sha256sum)
if ! fresh "$stamp" "$want" tensorguard; then
  echo "Setting up .venv from $lock"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
  .venv/bin/uv pip install --quiet --require-hashes -r "$lock"
  .venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
  echo "$want $PWD" >"$stamp"
fi

if [ "$native" = native ]; then
  stamp=.venv/.setup-native
  want=$(find native -type f -not -path 'native/build/*' -not -path 'native/tests/*' -not -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum)
  if ! fresh "$stamp" "$want" tensorguard_moai_native; then
    echo "Building the native runtime"
    .venv/bin/uv pip install --quiet --require-hashes -r requirements/native.txt
    PATH=$PWD/.venv/bin:$PATH .venv/bin/uv pip install --quiet --reinstall --no-deps --no-build-isolation ./native
    echo "$want $PWD" >"$stamp"
  fi
fi
