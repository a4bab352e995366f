#!/usr/bin/env bash
# Installs Debian packages that are missing: devkit/setup-debian.sh prometheus chromium
#
# A command of a package's name counts as the package, wherever it comes from; on Ubuntu, which has no
# chromium-headless-shell, chromium does too. Quick when nothing is missing; needs apt-get and root (or sudo without a
# password) otherwise, and says what to install by hand when it has neither.
set -euo pipefail

say() { printf '[debian] %s\n' "$*"; }

os=$(. /etc/os-release 2>/dev/null && printf %s "$ID" || true)
has() { # a package or what counts as it
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ] || command -v "$1" >/dev/null ||
        { [ "$os:$1" = ubuntu:chromium-headless-shell ] && command -v chromium >/dev/null; }
}

missing=()
for package in "$@"; do
    has "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

by_hand() {
    say "error: $1; install these by hand: ${missing[*]}" >&2
    exit 1
}

command -v apt-get >/dev/null || by_hand "there is no apt-get here"
as_root=()
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || by_hand "neither root nor sudo without a password"
    as_root=(sudo -n)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }

say "installing ${missing[*]}"
apt update >"$log" 2>&1 || { tail -n 5 "$log" >&2; say "apt-get update failed, trying with the lists there are"; }
apt install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    if [ "$os" = ubuntu ] && [[ " ${missing[*]} " == *" chromium"* ]]; then
        say "Ubuntu's apt has no chromium, its snap is called so: snap install chromium" >&2
    fi
    by_hand "apt-get could not install them"
}
say "installed after ${SECONDS}s"
