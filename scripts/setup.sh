#!/bin/sh
# Brings a Debian 12 (or later) machine and this checkout to where `make demo` and `make test` run.
# Installs only what is missing, and may be run again at any time.
#
#   scripts/setup.sh           everything
#   scripts/setup.sh device    only see to it that /dev/fuse is there
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: $*"
    fi
}

# ------------------------------------------------------------------------------------------ Debian packages

# want PACKAGES TEST...: the packages (words of one argument) are missing where the test fails.
missing=
want() {
    packages=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $packages"
}

compiles() { echo '#include <stdio.h>' | gcc -fsyntax-only -x c -; }
py() { "$python" -c "$1"; }
have_for_root() { (PATH="$PATH:/usr/sbin:/sbin" && have "$1"); }
chokidar() { NODE_PATH=/usr/share/nodejs node -e 'require("chokidar")'; }
fuse_headers() { pkg-config --exists fuse3; }

# What the interpreter itself lacks. Debian's packages can help only an interpreter of Debian's.
want_python() {
    if ! have "$python"; then
        [ "$python" = python3 ] || die "PYTHON=$python: there is no such command"
        missing="$missing python3 python3-dev python3-venv"
        return
    fi
    name=python3
    case $(py 'import os, sys; print(os.path.realpath(sys.executable))') in
        /usr/bin/*) name=$(py 'import sys; print("python%d.%d" % sys.version_info[:2])') ;;
    esac
    want "$name-dev" py 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
    want "$name-venv" py 'import ensurepip, venv'
}

system() {
    want fuse3 have fusermount3
    want pkg-config have pkg-config
    want libfuse3-dev fuse_headers
    want "gcc libc6-dev" compiles
    want git have git
    want rsync have rsync
    want sqlite3 have sqlite3
    want e2fsprogs have_for_root mkfs.ext4
    want xfsprogs have_for_root mkfs.xfs
    want iproute2 have_for_root ip
    # Programs that watch files, for the tests of native delivery.
    want inotify-tools have inotifywait
    want entr have entr
    want nodejs have node
    want node-chokidar chokidar
    want_python
    if [ -n "$missing" ]; then
        have apt-get || die "missing, and there is no apt-get to install it:$missing"
        say "installing Debian packages:$missing"
        as_root apt-get -qq update
        # A new machine may be upgrading itself just now: wait for the lock.
        # shellcheck disable=SC2086  # a list of words
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install -y --no-install-recommends -o DPkg::Lock::Timeout=120 $missing
    fi
}

# ------------------------------------------------------------------------------------------ Python packages

environment() {
    py 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is $("$python" --version 2>&1), 3.11 or later is needed: make PYTHON=/path/to/python3"
    py 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        die "$python has no C headers (Python.h), and Debian's packages are not for it: make PYTHON=/usr/bin/python3"
    py 'import sqlite3, ssl, venv' ||
        die "$python was built without sqlite3, ssl or venv: make PYTHON=/usr/bin/python3"

    # An environment whose interpreter has gone, or that was left half made, is made anew.
    "$venv/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$venv"
    say "installing Python packages into $venv"
    set -- "$venv/bin/python" -m pip install --quiet --disable-pip-version-check
    "$@" 'pip>=25.1' # the first that knows --group
    "$@" --group dev --editable '.[daemon]'
}

# ------------------------------------------------------------------------------------------ /dev/fuse

device() {
    [ -c /dev/fuse ] && return
    if have modprobe || [ -x /sbin/modprobe ]; then
        as_root env PATH="$PATH:/sbin:/usr/sbin" modprobe fuse || true
    fi
    [ -c /dev/fuse ] && return
    say "/dev/fuse is missing, so nothing can be mounted here."
    say "  on a machine of your own: modprobe fuse (the kernel needs CONFIG_FUSE_FS)"
    say "  in a container:           start it with --device /dev/fuse --cap-add SYS_ADMIN"
    return 1
}

case ${1:-all} in
    all)
        system
        environment
        device || true # checking and building do without it
        ;;
    device) device ;;
    *) die "usage: scripts/setup.sh [device]" ;;
esac
