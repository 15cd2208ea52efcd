# Sourced by tools/test and tools/demo: system packages, and a virtual environment with blockvault.
# shellcheck shell=bash

venv=${BLOCKVAULT_VENV:-.venv}
PATH=$PATH:/usr/sbin:/sbin

# program=package, for what the tests and the demonstration run.  Without file, nbdinfo 1.14 prints
# uninitialised memory as the content of an export.
programs=(
    mkfs.ext4=e2fsprogs debugfs=e2fsprogs e2fsck=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs
    qemu-img=qemu-utils qemu-nbd=qemu-utils qemu-io=qemu-utils qemu-system-x86_64=qemu-system-x86
    nbdinfo=libnbd-bin nbdcopy=libnbd-bin nbdsh=libnbd-bin nbdfuse=libnbd-bin file=file
    nbdkit=nbdkit fio=fio cc=gcc fusermount3=fuse3 git=git openssl=openssl
)
# packages that hold no program: a file of theirs=package
files=(
    /usr/include/stdio.h=libc6-dev /usr/lib/python3/dist-packages/nbd.py=python3-libnbd
    /usr/share/OVMF/OVMF_VARS_4M.fd=ovmf
)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# Print the packages that are missing, of the "program=package" given, or of all.
missing_packages() {
    local pair
    if [ $# = 0 ]; then
        set -- "${programs[@]}"
        for pair in "${files[@]}"; do
            [ -e "${pair%%=*}" ] || echo "${pair##*=}"
        done
    fi
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || echo "${pair##*=}"
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

# Install what is missing, or say so.
need_programs() {
    local missing
    missing=$(missing_packages "$@" | sort -u | tr '\n' ' ')
    if [ -z "$missing" ]; then
        [ $# -gt 0 ] || know_packages
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "not installed: ${missing}(sudo apt-get install ${missing% })"
        return 0
    fi
    say "installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of words
    if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; } \
        >"${log:=$(mktemp)}" 2>&1; then
        tail -n 20 "$log" >&2
        say "apt-get could not install: $missing"
        exit 1
    fi
    rm -f "$log"
}

# The guest of the machine tests is built from packages that apt only downloads: it must know them.
know_packages() {
    [ "$(id -u)" = 0 ] && command -v apt-cache >/dev/null || return 0
    [ -n "$(apt-cache pkgnames linux-image-cloud-amd64 2>/dev/null)" ] || apt-get -qq update || true
}

# make_environment [EXTRA]: a virtual environment with this working copy installed in it.
make_environment() {
    local extra=${1-} log done
    local wanted=.${extra:+[$extra]} stamp=$venv/.blockvault-$extra
    if ! [ -x "$venv/bin/python" ] && ! python3 -m venv "$venv"; then
        say "python3 could not make the virtual environment $venv (Debian: apt-get install python3-venv)"
        exit 1
    fi
    if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        say "blockvault needs Python 3.11 or newer; $venv has $("$venv/bin/python" -V)"
        exit 1
    fi
    for done in "$stamp" "$venv/.blockvault-dev"; do # whoever has the tools has the program
        [ "$done" -nt pyproject.toml ] && return 0
    done
    log=$(mktemp)
    say "installing Python packages into $venv"
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check \
        --config-settings editable_mode=compat -e "$wanted" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        say "pip could not install the Python packages"
        exit 1
    fi
    rm -f "$log"
    touch "$stamp"
}
