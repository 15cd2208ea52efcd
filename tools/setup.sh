# Sourced by tools/test and tools/demo: system packages, and a virtual environment with blockvault.
# shellcheck shell=bash

venv=${BLOCKVAULT_VENV:-.venv}
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Whether an environment's Python will do: a later one than made it finds no packages there.
fit() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(sys.version_info < (3, 11) or not os.path.isdir(sysconfig.get_path("purelib")))' 2>/dev/null
}

too_old() {
    say "blockvault needs Python 3.11 or newer, and $1 is $("$1" -V 2>/dev/null || echo missing)"
    exit 1
}

# The first Python that will do; where there is none at all, need_programs installs python3.
python=
if fit "$venv/bin/python"; then
    python=$venv/bin/python
fi
for each in ${PYTHON:+"$PYTHON"} python3 python3.1{4,3,2,1}; do
    if [ -z "$python" ] && new_enough "$each"; then
        python=$each
    fi
done
if [ -z "$python" ]; then
    python=python3
    ! command -v "$python" >/dev/null || too_old "$python"
fi

# program=package, for what blockvault is compared with; a distribution may have dropped some of it.
peers=(borg=borgbackup restic=restic bup=bup casync=casync)
# program=package, for what the tests and the demonstration run.  Without file, nbdinfo 1.14 prints
# uninitialised memory as the content of an export.
programs=(
    mkfs.ext4=e2fsprogs debugfs=e2fsprogs e2fsck=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs
    qemu-img=qemu-utils qemu-nbd=qemu-utils qemu-io=qemu-utils qemu-system-x86_64=qemu-system-x86
    nbdinfo=libnbd-bin nbdcopy=libnbd-bin nbdsh=libnbd-bin nbdfuse=libnbd-bin file=file
    nbdkit=nbdkit fio=fio cc=gcc fusermount3=fuse3 git=git openssl=openssl
    "${peers[@]}"
)
# packages that hold no program: a file of theirs=package
files=(
    /usr/include/stdio.h=libc6-dev /usr/lib/python3/dist-packages/nbd.py=python3-libnbd
    /usr/share/OVMF/OVMF_VARS_4M.fd=ovmf
)

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
    [ "$python" = "$venv/bin/python" ] || "$python" -c 'import ensurepip, venv' 2>/dev/null \
        || echo "${python##*/}-venv"
}

# Print these packages, but for peers that apt does not have: it would install none of the others.
offered() {
    local each
    for each in "$@"; do
        if [[ " ${peers[*]##*=} " != *" $each "* ]] || ! command -v apt-cache >/dev/null \
            || apt-cache show "$each" &>/dev/null; then
            echo "$each"
        fi
    done
}

# Install what is missing, or say so.
need_programs() {
    local missing log=
    missing=$(missing_packages "$@" | sort -u | tr '\n' ' ')
    if [ -z "$missing" ]; then
        [ $# -gt 0 ] || know_packages
        return 0
    fi
    local wanted
    # shellcheck disable=SC2086  # lists of words
    wanted=$(offered $missing | tr '\n' ' ')
    if [ -z "$wanted" ]; then
        know_packages # without any list it knows of none
        # shellcheck disable=SC2086
        wanted=$(offered $missing | tr '\n' ' ')
    fi
    if [ -z "$wanted" ]; then
        say "not to be had: $missing"
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "not installed: ${missing}(sudo apt-get install ${wanted% })"
        return 0
    fi
    say "installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2046,SC2086  # lists of words
    if ! { apt-get -qq update \
        && apt-get -qq install -y --no-install-recommends $(offered $missing); } \
        >"${log:=$(mktemp)}" 2>&1; then
        tail -n 20 "$log" >&2
        say "apt-get could not install: $missing"
        exit 1
    fi
    rm -f "$log"
    missing=$(missing_packages "$@" | sort -u | tr '\n' ' ')
    [ -z "$missing" ] || say "not to be had: $missing"
}

# The guest of the machine tests is built from packages that apt only downloads: it must know some.
# Ubuntu has busybox, but not the kernel, and learns of none however often it is asked.  Of what is
# installed apt knows without any list.
know_packages() {
    [ "$(id -u)" = 0 ] && command -v apt-cache >/dev/null || return 0
    [[ $(apt-cache policy busybox-static 2>/dev/null) == *" Packages"* ]] \
        || apt-get -qq update || true
}

# make_environment [EXTRA]: a virtual environment with this working copy installed in it.
make_environment() {
    local extra=${1-} log done
    local wanted=.${extra:+[$extra]} stamp=$venv/.blockvault-$extra
    # One that is gone has left a link that leads nowhere.
    if [[ -e $venv/bin/python || -L $venv/bin/python ]] && ! fit "$venv/bin/python"; then
        if [ -n "${BLOCKVAULT_VENV-}" ]; then
            new_enough "$venv/bin/python" || too_old "$venv/bin/python"
            say "$venv was made by another Python than $("$venv/bin/python" -V)"
            exit 1
        fi
        say "making $venv anew: its Python cannot be run, is another one, or is older than 3.11"
        rm -rf "$venv" # our own
    fi
    if ! [ -x "$venv/bin/python" ]; then
        new_enough "$python" || too_old "$python" # it may have been installed just now
        if ! "$python" -m venv "$venv"; then
            say "$python could not make the virtual environment $venv" \
                "(Debian: apt-get install ${python##*/}-venv)"
            exit 1
        fi
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
