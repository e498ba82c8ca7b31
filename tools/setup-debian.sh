#!/bin/bash
# Installs Debian or Ubuntu packages that are missing, and does nothing where none is.
#
#     tools/setup-debian.sh PACKAGE...
#     tools/setup-debian.sh --file tools/apt-packages.txt
#
# Needs root to install.  An ordinary user is told what is missing and how to get it, and
# the script ends with 1; with --advise it ends with 0, for what not every test needs.
set -eu

advise=0
packages=()
while [ $# -gt 0 ]; do
    case "$1" in
        --advise) advise=1 ;;
        --file)
            shift
            while read -r name _; do
                case "$name" in ''|'#'*) ;; *) packages+=("$name") ;; esac
            done < "$1"
            ;;
        -*) echo "setup-debian: unknown option $1" >&2; exit 2 ;;
        *) packages+=("$1") ;;
    esac
    shift
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "setup-debian: this is not Debian or Ubuntu; please install what these packages hold: ${packages[*]}" >&2
    [ "$advise" = 1 ]
    exit
fi

missing=()
for package in "${packages[@]}"; do
    # "installed" and nothing else: a removed package whose settings remain is listed too.
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup-debian: missing packages; to install them: sudo apt-get install ${missing[*]}" >&2
    [ "$advise" = 1 ]
    exit
fi

echo "==> Installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Another apt may be at work on a machine that has just started: wait for its lock.
apt=(apt-get -o DPkg::Lock::Timeout=180 -o Acquire::Retries=3)
"${apt[@]}" -qq update
# What it says is of interest only if it fails.
output=$("${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null 2>&1) || {
    printf '%s\n' "$output" >&2
    exit 1
}
