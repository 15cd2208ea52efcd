"""The builder of images, as far as it goes without a network: order, manifest, mounts, errors."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import skip
from tools.bench import inputs
from tools.images import build
from tools.images.states import STATES, State


def test_states_follow_their_parents() -> None:
    seen: dict[str, State] = {}
    for state in STATES:
        assert state.name not in seen
        if state.parent is None:
            assert state.packages
            assert not state.script
        else:
            assert seen[state.parent].machine == state.machine
            assert state.script
        seen[state.name] = state
    assert len(STATES) == 5
    assert sum(state.parent is None for state in STATES) == 2, "two installs"


def test_the_harness_reads_the_manifest(tmp_path: Path) -> None:
    build.manifest(tmp_path, STATES)
    for state in STATES:
        (tmp_path / state.file).touch()
    images = inputs.given([str(tmp_path)])
    assert [(image.name, image.machine) for image in images] == [
        (state.name, state.machine) for state in STATES
    ]


def test_images_that_exist_are_kept(tmp_path: Path) -> None:
    for state in STATES:
        (tmp_path / state.file).write_bytes(state.name.encode())
    build.build(tmp_path)
    assert (tmp_path / "base.img").read_bytes() == b"base"
    assert (tmp_path / "series.json").exists()


def test_a_step_that_fails_says_what_it_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(build.BuildFailed, match=r"sh failed: no mirror .*log"):
        build.run(["sh", "-c", "echo trying; echo no mirror >&2; exit 1"], log)
    assert "trying" in log.read_text()


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SEARCH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    reasons = build.missing()
    assert "mmdebstrap (package mmdebstrap)" in reasons
    assert any("root" in reason for reason in reasons)


def test_an_archive_becomes_a_clean_file_system_and_no_mount_stays(
    tmp_path: Path, need_tool: Callable[[str], str]
) -> None:
    mkfs, check, debugfs = (need_tool(name) for name in ("mkfs.ext4", "e2fsck", "debugfs"))
    if os.geteuid() != 0:
        skip("loop mounts need root")
    image, archive, mounted = tmp_path / "a.img", tmp_path / "a.tar", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run([mkfs, "-q", "-F", str(image)], check=True)
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo("etc/hostname")
        entry.size = 6
        tar.addfile(entry, io.BytesIO(b"guest\n"))
    words = [str(image), str(mounted), str(archive)]
    build.in_namespace(build.FILL, words, tmp_path / "log")
    stopping = 'mount -o loop "$1" "$2"; echo stopped inside >&2; exit 1'
    with pytest.raises(build.BuildFailed, match="stopped inside"):
        build.in_namespace(stopping, words, tmp_path / "log")
    assert str(mounted) not in Path("/proc/self/mounts").read_text()
    subprocess.run([check, "-fn", str(image)], check=True, capture_output=True)
    show = [debugfs, "-R", "cat /etc/hostname", str(image)]
    shown = subprocess.run(show, capture_output=True, check=True).stdout
    assert shown == b"guest\n"
