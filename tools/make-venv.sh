#!/bin/bash
# Makes the virtual environment that everything here is built and run in.
#
#     tools/make-venv.sh PYTHON DIRECTORY
#
# As root on Debian or Ubuntu it installs what their Python leaves out (venv, headers)
# and the compiler; elsewhere it says what is missing.
set -eu

python=$1
venv=$2
here=$(dirname "$0")

fail() {
    printf 'make-venv: %s\n' "$@" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "no $python here: install Python 3.11 or later, or name it: make PYTHON=/path/to/python3"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $version; this needs 3.11 or later: make PYTHON=/path/to/python3"

# What is missing, as the Debian packages that hold it.
missing() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || echo "python$version-dev"
    command -v "${CC%% *}" >/dev/null || echo gcc
    echo '#include <stdio.h>' | "${CC%% *}" -E -x c - >/dev/null 2>&1 || echo libc6-dev
}

CC=${CC:-cc}
packages=$(missing)
if [ -n "$packages" ]; then
    case $(command -v "$(readlink -f "$(command -v "$python")")") in
        /usr/bin/*) ;;
        # Debian's packages would not help a Python that is not Debian's.
        *) fail "$python lacks what these Debian packages would hold:" $packages ;;
    esac
    # shellcheck disable=SC2086
    "$here/setup-debian.sh" $packages
    packages=$(missing)
    [ -z "$packages" ] || fail "still missing after the installation:" $packages
fi

echo "==> Making $venv with Python $("$python" -c 'import platform; print(platform.python_version())')"
rm -rf "$venv"
"$python" -m venv "$venv"
