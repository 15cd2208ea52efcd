"""Make the images: ext4 on sparse files, filled by mmdebstrap and by packages installed inside.

Each state is made under a temporary name and renamed when it is whole, so that a build that was
stopped goes on where it was.  Mounts live in a mount namespace of their own (``unshare``): whatever
happens to the build, none of them stays behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.images.states import SIZE, STATES, SUITE, State

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "unshare": "util-linux",
    "mount": "mount",
}
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

# $1 image, $2 mount point, $3 archive.  The loop device goes when its last mount does.
FILL = """
mount -o loop "$1" "$2"
tar -C "$2" -xf "$3"
umount "$2"
"""

# $1 image, $2 mount point, $3 what to do inside.  The host's apt settings (a proxy, say) and
# resolver are lent to the guest by bind mounts, so that nothing of the host stays in the image;
# policy-rc.d keeps installed services from starting here.
CHANGE = """
mount -o loop "$1" "$2"
mount --bind /dev "$2/dev"
mount -t proc proc "$2/proc"
mount --bind /etc/apt/apt.conf.d "$2/etc/apt/apt.conf.d"
touch "$2/etc/resolv.conf"
mount --bind /etc/resolv.conf "$2/etc/resolv.conf"
printf '#!/bin/sh\\nexit 101\\n' > "$2/usr/sbin/policy-rc.d"
chmod 755 "$2/usr/sbin/policy-rc.d"
DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$2" sh -ec "$3"
rm "$2/usr/sbin/policy-rc.d"
umount -R "$2"
"""


class BuildFailed(Exception):
    """An image could not be made; the text says which step, and where its output is."""


def missing() -> list[str]:
    """What keeps this machine from building, in words; empty if nothing does."""
    absent = [
        f"{program} (package {package})"
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=SEARCH) is None
    ]
    return absent + (["root, for loop devices and chroot"] if os.geteuid() != 0 else [])


def build(folder: Path, states: Sequence[State] = STATES) -> None:
    """Make every image that is not there yet, then the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for state in states:
        if (folder / state.file).exists():
            print(f"{state.file}: exists", file=sys.stderr)
            continue
        start = time.monotonic()
        make(folder, state)
        print(f"{state.file}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    manifest(folder, states)


def make(folder: Path, state: State) -> None:
    """One image, under its name only when it is whole."""
    part = folder / f"{state.file}.part"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        log = folder / f"{state.name}.log"
        mounted = Path(scratch, "mounted")
        mounted.mkdir()
        if state.parent is None:
            archive = Path(scratch, "system.tar")
            packages = ",".join(state.packages)
            options = ("--variant=minbase", f"--include={packages}")
            run(["mmdebstrap", *options, SUITE, str(archive)], log)
            with part.open("wb") as file:
                file.truncate(SIZE)
            run(["mkfs.ext4", "-q", "-F", str(part)], log)
            in_namespace(FILL, [str(part), str(mounted), str(archive)], log)
        else:
            run(["cp", "--sparse=always", str(folder / f"{state.parent}.img"), str(part)], log)
            in_namespace(CHANGE, [str(part), str(mounted), state.script], log)
    part.rename(folder / state.file)


def manifest(folder: Path, states: Sequence[State]) -> None:
    """Write which images there are, in order, and whose they are."""
    rows = [
        {"name": state.name, "file": state.file, "machine": state.machine, "parent": state.parent}
        for state in states
    ]
    text = json.dumps({"states": rows}, indent=1)
    (folder / "series.json").write_text(text + "\n")


def in_namespace(script: str, arguments: Sequence[str], log: Path) -> None:
    """Run a shell script in which mounts are private, and vanish with its last process."""
    run(["unshare", "--mount", "sh", "-ec", script, "sh", *arguments], log)


def run(words: Sequence[str], log: Path) -> None:
    """Run a program; its output goes to ``log``, and its end into the error if it fails."""
    with log.open("ab") as out:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "PATH": SEARCH},
            check=False,
        )
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else f"exit {done.returncode}"
        raise BuildFailed(f"{words[0]} failed: {said} (all of it: {log})")
