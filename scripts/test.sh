#!/usr/bin/env bash
# Sets everything up, then checks style and runs the tests. Arguments go to pytest: ./scripts/test.sh -k softmax
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

timed() {
  local start=$SECONDS status=0
  "$@" || status=$?
  echo "== $* : exit status $status, $((SECONDS - start)) s"
  return "$status"
}

timed ./scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH # horovodrun looks for mpirun on PATH
timed ruff check .
timed ruff format --check .
timed pytest "$@"
echo "== all passed in $SECONDS s"
