"""What the store asks of the file system under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockvault.errors import Unsupported
from blockvault.store import env, filesystem
from blockvault.store.env import LmdbStore
from tests.store.material import OPTIONS

MOUNTS = (
    "/dev/vda / ext4 rw 0 0\n"
    "server:/x /srv nfs4 rw 0 0\n"
    "tmpfs /srv/local tmpfs rw 0 0\n"
    "me@host:/ /home/me/far\\040away fuse.sshfs rw 0 0\n"
    "//nas/share /srv2 cifs rw 0 0\n"
    "none /hidden nfs rw 0 0\n"
    "/dev/vdb /hidden xfs rw 0 0\n"
    "/dev/sdb /media/caf\udce9 vfat rw 0 0\n"
    "tmpfs /mnt/größe tmpfs rw 0 0\n"
    "tmpfs /mnt/two\u2028lines tmpfs rw 0 0\n"
)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/vaults/a", "nfs4"),
        ("/srvx", "ext4"),
        ("/srv/local/a", "tmpfs"),
        ("/home/me", "ext4"),
        ("/home/me/far away/vault", "fuse.sshfs"),
        ("/srv2/a", "cifs"),
        ("/hidden/a", "xfs"),
        ("/media/caf\udce9/a", "vfat"),
        ("/mnt/größe/run", "tmpfs"),
        ("/mnt/two\u2028lines", "tmpfs"),
    ],
)
def test_the_nearest_and_last_mount_decides(tmp_path: Path, path: str, kind: str) -> None:
    (tmp_path / "mounts").write_bytes(MOUNTS.encode(errors="surrogateescape"))
    assert filesystem.file_system_type(Path(path), tmp_path / "mounts") == kind


def test_the_real_mount_table_is_understood(tmp_path: Path) -> None:
    assert filesystem.file_system_type(Path("/proc/self")) == "proc"
    assert filesystem.file_system_type(tmp_path) not in ("", "proc")
    assert filesystem.file_system_type(tmp_path, tmp_path / "no such file") == ""


REFUSED = ["nfs4", "cifs", "9p", "virtiofs", "vboxsf", "gfs2", "fuse.sshfs", "fuse.ceph-fuse"]


@pytest.mark.parametrize("kind", REFUSED)
def test_network_file_systems_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    LmdbStore.create(home, OPTIONS).close()
    monkeypatch.setattr(filesystem, "file_system_type", lambda path: kind)
    for attempt in (
        lambda: LmdbStore.open(home),
        lambda: LmdbStore.open(home, readonly=True),
        lambda: env.LmdbStore.create(home.parent / "new", OPTIONS),
    ):
        with pytest.raises(Unsupported, match=kind) as caught:
            attempt()
        assert caught.value.reason == "network-filesystem"
    assert list(home.parent.iterdir()) == [home]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuse.mine", ""])
def test_local_ones_are_not(home: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(filesystem, "file_system_type", lambda path: kind)
    LmdbStore.create(home, OPTIONS).close()


def test_a_file_without_write_bits_is_closed_to_everybody(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert filesystem.may_write(path)
    assert not filesystem.nobody_writes(path)
    path.chmod(0o444)
    assert not filesystem.may_write(path)
    assert filesystem.nobody_writes(path)
