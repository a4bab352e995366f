#!/usr/bin/env bash
# `make bare`: a minimal Debian from nothing, and in it `make demo` and `make test`. See --help.
#
# Everything that is mounted or started lives in namespaces of its own: they end with this script, whatever ends it,
# and take the mounts and the processes with them.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: make bare [ARGS='...'], or devkit/bare.sh [...]; needs root, on Debian or with debootstrap

Makes a minimal Debian (debootstrap's minbase with git, make, python3, python3-venv and ca-certificates), clones the
committed tree into it and runs `make demo ARGS="--requests 20 --exit"` and `make test` there. It takes about half an
hour. The machine's settings of package indexes are carried over: apt's sources and proxy, pip's and uv's files and
variables with the folders that they name, certificates, /etc/hosts and /etc/resolv.conf.

  --python VERSION   3.11 is Debian 12 (default), 3.13 is Debian 13
  --root FOLDER      where to make it (default: build/bare); it must be empty or not there
  --run COMMAND      run this in the clone, instead of the two; may be given several times
  --keep             keep the folder when all is well (it is kept after a failure)
  --again            use the folder that was kept, with a new clone
  --help             this text
TEXT
}

say() { printf '[bare] %s\n' "$*"; }
fail() { printf '[bare] error: %s\n' "$*" >&2; exit 1; }

INCLUDED=git,make,python3,python3-venv,ca-certificates
CLONE=/moescope
# What the root gets of this machine's files: how to reach and trust package indexes.
CARRIED=(
    /etc/hosts /etc/resolv.conf /etc/ssl/certs /usr/local/share/ca-certificates
    /etc/pip.conf /etc/xdg/pip /root/.config/pip /root/.pip /etc/uv /root/.config/uv
    /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/apt/keyrings /etc/apt/trusted.gpg.d
)
VARIABLES='^(PIP_|UV_|SSL_CERT_|CURL_CA_BUNDLE=|REQUESTS_CA_BUNDLE=|NODE_EXTRA_CA_CERTS=|(http|https|ftp|all|no)_proxy=|(HTTP|HTTPS|FTP|ALL|NO)_PROXY=)'

# The environment in the root, a line a variable; no caches, since it begins from nothing.
carried_variables() { env | grep -E "$VARIABLES" | grep -vE '^(PIP|UV)_CACHE_DIR=' || true; }

# Files and folders that settings of pip and uv name and that exist here; of an index in a folder, what holds its files.
named_paths() {
    local path files=(/etc/pip.conf /etc/xdg/pip/* /root/.config/pip/* /root/.pip/* /etc/uv/* /root/.config/uv/*)
    {
        carried_variables
        cat "${PIP_CONFIG_FILE:-/dev/null}" "${UV_CONFIG_FILE:-/dev/null}" "${files[@]}" 2>/dev/null || true
    } | grep -oE '(file://)?/[^][:space:]"'\'',;]+' | sed 's,^file://,,; s,/simple/*$,,' | sort -u |
        while read -r path; do [ ! -e "$path" ] || echo "$path"; done
}

# --- outside: options, the namespaces, the end -----------------------------------------------------------------

main() {
    local root=$PWD/build/bare python=3.11 keep= again= runs=()
    while [ $# -gt 0 ]; do
        case $1 in
            --python|--root|--run) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
            --python) python=$2; shift ;;
            --root) root=$(realpath -m -- "$2"); shift ;;
            --run) runs+=("$2"); shift ;;
            --keep) keep=1 ;;
            --again) again=1 ;;
            --help) usage; return ;;
            *) fail "unknown: $1 (see --help)" ;;
        esac
        shift
    done
    local suite
    case $python in
        3.11) suite=bookworm ;;
        3.13) suite=trixie ;;
        *) fail "no release of Debian has Python $python: 3.11 (Debian 12) or 3.13 (Debian 13)" ;;
    esac
    [ ${#runs[@]} -gt 0 ] || runs=('make demo ARGS="--requests 20 --exit"' 'make test')
    [ "$(id -u)" = 0 ] || fail "needs root: debootstrap and chroot do"
    if [ "$again" ]; then
        [ -x "$root/bin/bash" ] || fail "$root holds no Debian to use again"
    else
        [ -z "$(ls -A "$root" 2>/dev/null)" ] || fail "$root isn't empty: remove it, or use it with --again"
    fi
    command -v debootstrap >/dev/null || devkit/setup-debian.sh debootstrap
    [ -z "$(git status --porcelain)" ] || say "what isn't committed here is left out"
    contain "$root" "$suite" "$keep" "$again" "${runs[@]}"
}

# Runs `inside` in namespaces of its own, and removes the root after it.
contain() {
    local suite=$2 keep=$3 again=$4
    ROOT=$1 CHILD='' REMOVE=''
    shift 4
    trap ended EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mkdir -p "$ROOT"
    # A command in a script's background would ignore SIGINT, and so would all that it starts.
    env --default-signal=INT unshare --mount --propagation private --pid --fork --kill-child \
        bash "${BASH_SOURCE[0]}" --inside "$ROOT" "$suite" "$again" "$@" &
    CHILD=$!
    wait "$CHILD"
    [ "$keep" ] || REMOVE=yes
}

# Ends what still runs in the namespaces, whose mounts end with it; removes the root after success.
ended() {
    local first
    if [ -n "$CHILD" ]; then
        first=$(pgrep -P "$CHILD" || true)
        kill -KILL "$CHILD" 2>/dev/null || true
        wait "$CHILD" 2>/dev/null || true
        while [ -n "$first" ] && [ -e "/proc/$first" ]; do sleep 0.1; done
    fi
    if [ "$REMOVE" ]; then
        rm -rf --one-file-system "$ROOT"
    else
        say "kept: $ROOT (use it with --again, or remove it)"
    fi
}

# --- inside the namespaces ---------------------------------------------------------------------------------------

inside() {
    local root=$1 suite=$2 again=$3 run
    shift 3
    [ "$again" ] || make_root "$root" "$suite"
    carry_over "$root" "$suite"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    rm -rf "${root:?}$CLONE"
    git clone --quiet --no-hardlinks . "$root$CLONE"
    say "$(. "$root/etc/os-release" && echo "$PRETTY_NAME"), $(chroot "$root" python3 --version)," \
        "commit $(git rev-parse --short HEAD)"
    local closing=() begin
    for run in "$@"; do
        say "$run"
        begin=$SECONDS
        if ! in_root "$root" "$run"; then
            closing+=("$run: FAILED after $((SECONDS - begin)) s")
            break
        fi
        closing+=("$run: green after $((SECONDS - begin)) s")
    done
    for run in "${closing[@]}"; do say "$run"; done
    [[ ${closing[-1]} == *": green after "* ]]
}

make_root() {
    local root=$1 suite=$2 mirror log
    # The mirror that this machine's apt uses for Debian; debootstrap's own if it uses none.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
        head -n 1 || true)
    log=$(mktemp)
    say "debootstrap $suite into $root"
    if ! debootstrap --variant=minbase --include="$INCLUDED" "$suite" "$root" ${mirror:+"$mirror"} >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        fail "debootstrap could not make $suite"
    fi
    rm -f "$log"
    # Nothing here has to outlive a loss of power.
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
    say "debootstrap ended after ${SECONDS} s"
}

# Brings the settings of package indexes into the root, and binds the folders that they name.
carry_over() {
    local root=$1 suite=$2 path
    for path in "${CARRIED[@]}"; do
        [ -e "$path" ] || continue
        mkdir -p "$root$(dirname "$path")"
        cp -rL --no-target-directory "$path" "$root$path" 2>/dev/null || true
    done
    carry_apt "$root" "$suite"
    while read -r path; do
        if [ -d "$path" ]; then
            mkdir -p "$root$path"
            [ -z "$(ls -A "$root$path")" ] || continue
        else
            mkdir -p "$root$(dirname "$path")"
            [ ! -s "$root$path" ] || continue
            touch "$root$path"
        fi
        mount --bind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
    done < <(named_paths)
}

# apt's ways of fetching, and its sources of Debian, for the root's release.
carry_apt() {
    local root=$1 suite=$2 here file files=()
    apt-config dump 2>/dev/null | grep -E '^Acquire::' >"$root/etc/apt/apt.conf.d/90host" || true
    here=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || true)
    [ -n "$here" ] || return 0
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        if [ -f "$file" ] && grep -q "$here" "$file"; then files+=("$file"); fi
    done
    [ ${#files[@]} -gt 0 ] || return 0  # debootstrap's own source stays
    rm -f "$root/etc/apt/sources.list"
    for file in "${files[@]}"; do sed "s/\b$here\b/$suite/g" "$file" >"$root$file"; done
}

in_root() {
    local root=$1 variables
    mapfile -t variables < <(carried_variables)
    chroot "$root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        TERM="${TERM:-dumb}" "${variables[@]}" bash -c "cd $CLONE && $2"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --inside ]; then inside "${@:2}"; else main "$@"; fi
exit  # bash reads on where it was, even in a file that has changed
