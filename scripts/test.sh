#!/usr/bin/env bash
# Sets everything up, then checks code, types and pages and runs the tests. Arguments go to pytest: ./scripts/test.sh -k softmax
# Tests run in three processes, the long ones first, file by file: many wait for workers that they have started. -n 0 as
# an argument runs them one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

timed() {
  local start=$SECONDS status=0
  "$@" || status=$?
  echo "== $* : exit status $status, $((SECONDS - start)) s"
  return "$status"
}

install_browser() { # for the tests of pages
  ! command -v chromium chromium-browser google-chrome || return 0
  [[ $EUID == 0 ]] && command -v apt-get || return 1
  { apt-get update -qq && apt-get install -yqq --no-install-recommends chromium; } </dev/null >/dev/null
}

timed ./scripts/setup.sh
timed install_browser || echo "Warning: no Chromium, and it cannot be installed: tests that open pages are skipped" >&2
export PATH=$PWD/.venv/bin:$PATH # horovodrun looks for mpirun on PATH
timed ruff check .
timed ruff format --check .
timed mypy
timed shellcheck scripts/*.sh .ci/run
timed codespell
timed clang-format --dry-run -Werror instcls_tf/{classifier,data}/kernels/*.{cc,h} tests/kernels/*.cc
timed mkdocs build --strict --site-dir build/site
timed pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
echo "== all passed in $SECONDS s"
