#!/usr/bin/env bash
# Sets up and runs tests/single on each supported Python, each in a temporary clone of what is committed, and prints a table.
#
#   ./scripts/test_pythons.sh                                       CPython 3.9 to 3.12, those that are found
#   PYTHONS="python3.9 /opt/py/bin/python3" ./scripts/test_pythons.sh   these
#   ./scripts/test_pythons.sh -k softmax                            arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_pythons() { # one a line: the first of each version that starts; pyenv's shims do not for versions not selected
  local version candidate
  for version in 3.9 3.10 3.11 3.12; do
    for candidate in "python$version" ~/.pyenv/versions/"$version".*/bin/python; do
      if [[ $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$version" ]]; then
        command -v "$candidate"
        break
      fi
    done
  done
}

try() { # try PYTHON FOLDER PYTEST_ARGUMENTS...: sets $result
  local python=$1 folder=$2 start=$SECONDS
  shift 2
  result="set-up failed"
  git clone -q . "$folder"
  if PYTHON=$python "$folder/scripts/setup.sh"; then
    result="tests failed"
    if (cd "$folder" && PATH=$folder/.venv/bin:$PATH pytest -n 3 --dist loadfile -q --durations=0 --durations-min=60 \
      tests/single "$@"); then
      result=passed
    fi
  fi
  result="$result, $((SECONDS - start)) s"
}

if [[ -n ${PYTHONS:-} ]]; then
  read -ra pythons <<<"$PYTHONS"
else
  mapfile -t pythons < <(find_pythons)
fi
((${#pythons[@]})) || { echo "test_pythons.sh: no CPython 3.9 to 3.12 found; name some with PYTHONS=" >&2 && exit 1; }
[[ -z $(git status --porcelain --untracked-files=no) ]] || echo "Note: only what is committed is tested." >&2

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
table=
failed=0
for python in "${pythons[@]}"; do
  echo "== $python"
  try "$python" "$folder/clone" "$@"
  [[ $result == passed* ]] || failed=1
  version=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null) || version=unknown
  table+=$(printf '%-8s  %-24s  %s' "$version" "$result" "$python")$'\n'
  rm -rf "$folder/clone" # 3 GB each
done
printf '\n%s' "$table"
exit "$failed"
