#!/usr/bin/env bash
# Checks types: devkit/check-types.sh moescope.capture ...
#
# mypy can't follow the editable install's mapping of folders to packages, and no folder is named `moescope`. So the
# packages are checked in a copy that is installed aside, and the devkit where it lies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

copy=build/types
uv=uv
uv --version >/dev/null 2>&1 || uv=.kit/uv

rm -rf "$copy" build/lib build/bdist.*
"$uv" pip install -q --python .venv/bin/python --target "$copy" --no-deps --reinstall-package moescope .
packages=()
for package in "$@"; do packages+=(-p "$package"); done

config=$PWD/pyproject.toml
mypy=$PWD/.venv/bin/mypy
(cd "$copy" && MYPYPATH=. "$mypy" --config-file "$config" --cache-dir "$OLDPWD/.mypy_cache" --namespace-packages \
    --explicit-package-bases --python-executable "$OLDPWD/.venv/bin/python" "${packages[@]}")
MYPYPATH=$copy "$mypy" --namespace-packages --explicit-package-bases devkit/*.py devkit/hosts/*.py devkit/matrix/*.py \
    devkit/containers/*.py
MYPYPATH=devkit/cpu_plugin "$mypy" --explicit-package-bases devkit/cpu_plugin/*.py
MYPYPATH=devkit/cpu_plugin:$copy "$mypy" tests/devkit/*.py
