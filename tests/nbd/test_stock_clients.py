"""The clients that people have: libnbd's tools, QEMU's, fio, nbdkit.

All of them meet a volume in memory; those that write much meet one of a real vault too, with limits
so small that its journal, background commits and checkpoints take part.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blockvault import Vault, behind, folding, journaling, pending
from blockvault.model.events import Checkpointed
from blockvault.nbd.exports import Exports
from blockvault.nbd.server import Server
from blockvault.nbd.serving import Serving
from blockvault.ops import check
from blockvault.session import Session
from blockvault.store import journal
from tests.nbd.conftest import wait_until
from tests.nbd.memory import BatchMemoryDevice, MemoryCatalogue, MemoryVolume
from tests.oracle import whole

Tool = Callable[[str], str]
MIB = 1 << 20


@pytest.fixture
def size(nightly: bool) -> int:
    """Not a multiple of the block size, nor of a sector: sizes must be exact."""
    return (1024 if nightly else 64) * MIB + 5000 * 512


@pytest.fixture
def volume(size: int) -> MemoryVolume:
    return MemoryVolume("vda", BatchMemoryDevice(size), "sixty-four MiB")


@pytest.fixture
def exports(volume: MemoryVolume) -> Exports:
    small = MemoryVolume("old", BatchMemoryDevice(MIB, read_only=True))
    return Exports(MemoryCatalogue(volume, small))


@pytest.fixture
def uri(server: Server, path: Path) -> str:
    return f"nbd+unix:///vda?socket={path}"


class Served(NamedTuple):
    """A volume of zeros that clients reach, and what it holds by other ways than theirs."""

    uri: str
    content: Callable[[], bytes | bytearray]
    durable: Callable[[], bytes | bytearray]
    session: Session | None = None
    """Of the branch, if it is one of a vault."""


@pytest.fixture(params=["memory", "vault"])
def served(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(f"in_{request.param}")
    return found


@pytest.fixture
def in_memory(uri: str, volume: MemoryVolume) -> Served:
    return Served(uri, lambda: volume.device.data, lambda: volume.device.durable)


@pytest.fixture
def in_vault(
    tmp_path: Path, path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    monkeypatch.setattr(journaling, "AFTER_FLUSHES", 2)
    monkeypatch.setattr(journal, "HALF", MIB)
    monkeypatch.setattr(behind, "COMMIT_BYTES", MIB)
    monkeypatch.setattr(pending, "TRANSACTION_BYTES", MIB // 2)
    monkeypatch.setattr(folding, "CHECKPOINT_BLOCKS", 1000)
    with Vault.create(tmp_path / "vault") as vault:
        with vault.session("main") as created:
            created.create_volume("vda", size)
        with Serving(vault, ["main"]) as serving:
            serving.server.listen_unix(path)
            session = serving.sessions["main"]

            def stored() -> bytes:
                session.flush()
                return whole(vault.device("main", "vda"))

            yield Served(f"nbd+unix:///main/vda?socket={path}", stored, stored, session)
        assert check.verify(vault).ok


# nbdsh is a script for the system's own Python, which has the bindings of libnbd.
SYSTEM = {**os.environ, "PATH": "/usr/bin:/bin:" + os.environ.get("PATH", "")}


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, env=SYSTEM
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def patterned(size: int, seed: int = 1) -> bytes:
    """Data, repeated data and holes, in runs of uneven length."""
    rng = random.Random(seed)
    parts, length = [], 0
    while length < size:
        run_length = min(rng.choice([512, 4096, 70_000, MIB]) + rng.randrange(3), size - length)
        parts.append(rng.choice([bytes, rng.randbytes, lambda n: b"a" * n])(run_length))
        length += run_length
    return b"".join(parts)


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


# -- libnbd ----------------------------------------------------------------------------------------


def test_nbdinfo(uri: str, path: Path, size: int, need_tool: Tool) -> None:
    (export,) = json.loads(run(need_tool("nbdinfo"), "--json", uri))["exports"]
    assert export["export-size"] == size
    assert export["contexts"] == ["base:allocation", "blockvault:diff:"]
    wanted = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    assert all(export[f"can_{what}"] for what in wanted)
    assert not export["is_read_only"]
    assert [export[f"block_size_{w}"] for w in ("minimum", "preferred", "maximum")] == [
        1, 4096, 32 * MIB,
    ]  # fmt: skip
    listed = json.loads(
        run(need_tool("nbdinfo"), "--list", "--json", f"nbd+unix:///?socket={path}")
    )
    assert [(e["export-name"], e["is_read_only"]) for e in listed["exports"]] == [
        ("vda", False), ("old", True),
    ]  # fmt: skip


def test_nbdinfo_map(uri: str, size: int, volume: MemoryVolume, need_tool: Tool) -> None:
    volume.device.data[MIB : 2 * MIB] = b"x" * MIB
    found = json.loads(run(need_tool("nbdinfo"), "--map", "--json", uri))
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [
        (0, MIB, 3), (MIB, MIB, 0), (2 * MIB, size - 2 * MIB, 3),
    ]  # fmt: skip
    volume.differing["main~1"] = [
        (0, 4096, False),
        (4096, 8192, True),
        (12288, size - 12288, False),
    ]
    context = "--map=blockvault:diff:main~1"
    found = json.loads(run(need_tool("nbdinfo"), context, "--json", uri))
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [
        (0, 4096, 0), (4096, 8192, 1), (12288, size - 12288, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_in_and_out(
    served: Served, size: int, tmp_path: Path, need_tool: Tool, connections: int
) -> None:
    source, target = tmp_path / "in.img", tmp_path / "out.img"
    source.write_bytes(patterned(size))
    copy = [need_tool("nbdcopy"), f"--connections={connections}", "--flush"]
    run(*copy, source, served.uri)
    assert digest(served.content()) == digest(source.read_bytes())
    assert digest(served.durable()) == digest(source.read_bytes())
    run(*copy, served.uri, target)
    assert digest(target.read_bytes()) == digest(source.read_bytes())


NBDSH = """
import errno, random
h.set_strict_mode(0)
size = h.get_size()
def refused(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == expected, (call, args, error)
    else:
        assert False, (call, args)
def handled(call, *args):
    try:
        call(*args)
    except nbd.Error:
        pass
refused("EINVAL", h.pread, 512, size - 511)
refused("EINVAL", h.pread, 1, 2**63)
refused("ENOSPC", h.pwrite, b"x" * 512, size - 511)
refused("ENOSPC", h.zero, 2, size - 1)
refused("EINVAL", h.trim, 2, size - 1)
refused("EINVAL", h.cache, 2, size - 1)
refused("EOVERFLOW", h.pread, 33 * 1024 * 1024, 0)
refused("EINVAL", h.pwrite, b"x", 0, 0x10)
refused("EINVAL", h.flush, 0x4000)
for call, args in ((h.pread, (0, 0)), (h.pwrite, (b"", 0)), (h.zero, (0, 0)), (h.trim, (0, 0))):
    handled(call, *args)
h.pwrite(b"unaligned", size - 9)
assert h.pread(9, size - 9) == b"unaligned"
h.pwrite(b"durable", 4090, nbd.CMD_FLAG_FUA)
h.zero(3, 4091, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert h.pread(7, 4090) == b"d\\0\\0\\0ble"
h.cache(size, 0)
h.flush()
holes = []
h.block_status(2**20, 1, lambda context, offset, entries, error: holes.append((context, entries)))
assert holes and holes[0][0] == "base:allocation", holes
chunks = []
h.pread_structured(3 * 2**20, 0, lambda data, offset, status, error: chunks.append(len(data)))
assert sum(chunks) == 3 * 2**20
cookies = set()
rng = random.Random(5)
model = {}
for n in range(2000):
    offset = rng.randrange(1000) * 512 + 10 * 2**20
    if offset not in model:
        model[offset] = bytes([n % 255 + 1]) * 512
        cookies.add(h.aio_pwrite(model[offset], offset))
while cookies:
    h.poll(-1)
    while cookies and (done := h.aio_peek_command_completed()) > 0:
        assert h.aio_command_completed(done)
        cookies.remove(done)
for offset, data in model.items():
    assert h.pread(512, offset) == data
print("passed", len(model))
"""


def test_nbdsh_with_requests_that_libnbd_would_refuse(served: Served, need_tool: Tool) -> None:
    opened = f"h.add_meta_context('base:allocation'); h.connect_uri('{served.uri}')"
    assert "passed" in run(need_tool("nbdsh"), "-c", opened, "-c", NBDSH)


READ_ONLY = """
h.set_strict_mode(0)
for call, args in ((h.pwrite, (b"x", 0)), (h.zero, (1, 0)), (h.trim, (1, 0))):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == "EPERM", error
    else:
        assert False, call
h.flush()
assert h.is_read_only() and h.pread(4, 0) == bytes(4)
print("passed")
"""


def test_a_read_only_export_refuses_changes(server: Server, path: Path, need_tool: Tool) -> None:
    uri = f"nbd+unix:///old?socket={path}"
    assert "passed" in run(need_tool("nbdsh"), "-u", uri, "-c", READ_ONLY)


def test_without_structured_replies_and_zero_padding(
    uri: str, volume: MemoryVolume, need_tool: Tool
) -> None:
    """An old client: EXPORT_NAME, 124 zeroes, simple replies."""
    volume.device.data[:5] = b"hello"
    script = f"""
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.connect_uri("{uri}")
assert h.get_protocol() == "newstyle"
assert h.pread(5, 0) == b"hello"
h.pwrite(b"world", 5)
h.flush()
h.shutdown()
print("passed")
"""
    assert "passed" in run(need_tool("nbdsh"), "-c", script)
    assert volume.device.durable[:10] == b"helloworld"


# -- QEMU ------------------------------------------------------------------------------------------


def test_qemu_img_convert_compare_and_map(
    served: Served, size: int, tmp_path: Path, need_tool: Tool
) -> None:
    qemu_img, uri = need_tool("qemu-img"), served.uri
    raw, qcow2, back = (tmp_path / name for name in ("in.img", "in.qcow2", "back.img"))
    raw.write_bytes(patterned(size, 2))
    run(qemu_img, "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    run(qemu_img, "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, uri)
    content = served.content()
    assert digest(content) == digest(raw.read_bytes())
    run(qemu_img, "compare", "-f", "qcow2", "-F", "raw", qcow2, uri)
    run(qemu_img, "convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", uri, back)
    assert digest(back.read_bytes()) == digest(raw.read_bytes())
    entries = json.loads(run(qemu_img, "map", "--output=json", "-f", "raw", uri))
    data = bytearray(size)
    for entry in entries:
        place = slice(entry["start"], entry["start"] + entry["length"])
        if not entry["zero"]:
            data[place] = content[place]
    assert digest(data) == digest(content), "what is called zero is zero"
    assert any(entry["zero"] for entry in entries)


QEMU_IO = [
    "write -P 0x5a 65536 1M", "read -P 0x5a 65536 1M", "write -f -P 0x33 1000 3000",
    "read -P 0x33 1000 3000", "read -P 0 0 1000", "write -z 66000 5000", "read -P 0 66000 5000",
    "write -z -u 80000 5000", "read -P 0x5a 71000 9000", "discard 131072 65536", "flush",
    "aio_write -P 1 2M 64k", "aio_write -P 2 3M 64k", "aio_read -P 0 9M 64k", "aio_flush",
    "read -P 1 2M 64k", "read -P 2 3M 64k",
]  # fmt: skip


def test_qemu_io_patterns(served: Served, need_tool: Tool) -> None:
    commands = [part for command in QEMU_IO for part in ("-c", command)]
    done = run(need_tool("qemu-io"), "-f", "raw", *commands, served.uri)
    assert "Pattern verification failed" not in done
    assert "error" not in done.lower()


def test_blkverify_against_a_file(
    served: Served, size: int, tmp_path: Path, need_tool: Tool
) -> None:
    """QEMU does every request on both and compares what is read."""
    raw = tmp_path / "twin.img"
    raw.write_bytes(bytes(size))
    rng = random.Random(11)
    commands = []
    for _ in range(300):
        offset, length = rng.randrange(size // 512 - 600) * 512, rng.randrange(1, 500) * 512
        verb = rng.choice([f"write -P {rng.randrange(255)}", "write -P 0", "read", "flush"])
        commands += ["-c", verb if verb == "flush" else f"{verb} {offset} {length}"]
    export, _, path = served.uri.removeprefix("nbd+unix:///").partition("?socket=")
    image = (
        f"driver=blkverify,test.driver=raw,test.file.driver=nbd,test.file.path={path},"
        f"test.file.export={export},raw.driver=file,raw.filename={raw}"
    )
    run(need_tool("qemu-io"), "--image-opts", *commands, image)
    assert digest(served.content()) == digest(raw.read_bytes())


# -- others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["randwrite", "randrw"])
def test_fio_verifies_its_checksums(
    served: Served, tmp_path: Path, need_tool: Tool, pattern: str
) -> None:
    report = tmp_path / "fio.json"
    run(
        need_tool("fio"), "--name=verify", "--ioengine=nbd", f"--uri={served.uri}",
        f"--rw={pattern}", "--bsrange=512-16k", "--bs_unaligned=1", "--iodepth=16", "--size=32m",
        "--verify=crc32c", "--fsync=64", "--do_verify=1", "--verify_fatal=1",
        "--output-format=json", f"--output={report}", "--randrepeat=1", f"--aux-path={tmp_path}",
        "--verify_state_save=0",
    )  # fmt: skip
    text = report.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["write"]["total_ios"] > 1000
    assert job["read"]["total_ios"] > 1000
    if served.session is not None:
        assert served.session.journaled
        assert checkpoints(served.session) > 3


def checkpoints(session: Session) -> int:
    events = session.vault.events("main")
    return sum(isinstance(logged.event, Checkpointed) for logged in events)


def test_nbdkit_as_a_client(
    uri: str, size: int, volume: MemoryVolume, tmp_path: Path, need_tool: Tool
) -> None:
    """Another implementation in between, asked through its own socket."""
    volume.device.data[:] = patterned(size, 3)
    target = tmp_path / "out.img"
    proxy = [need_tool("nbdkit"), "-U", "-", "nbd", f"uri={uri}", "--run"]
    run(*proxy, f"{need_tool('nbdcopy')} $uri {target}")
    assert digest(target.read_bytes()) == digest(volume.device.data)
    run(*proxy, f"{need_tool('nbdinfo')} --map --totals $uri")


def test_the_same_answers_as_qemu_nbd(uri: str, size: int, tmp_path: Path, need_tool: Tool) -> None:
    """Same requests to both servers, good and bad ones."""
    raw, other = tmp_path / "raw.img", tmp_path / "qemu.sock"
    raw.write_bytes(bytes(size))
    command = [need_tool("qemu-nbd"), "-f", "raw", "-x", "vda", "-k", str(other), "-t", str(raw)]
    server = subprocess.Popen(command)
    script = """
h.set_strict_mode(0)
size = h.get_size()
for name, args in (
    ("pread", (512, size)), ("pread", (512, size - 511)), ("pwrite", (b"x" * 512, size)),
    ("zero", (512, size)), ("trim", (512, size)), ("pread", (512, 0)), ("pwrite", (b"x", 7)),
    ("zero", (5, 5)), ("trim", (4096, 0)), ("flush", ()), ("cache", (512, 0)),
    ("pwrite", (b"x" * 512, 0, 0x10)), ("zero", (512, 0, 0x4)), ("pread", (512, 0, 0x2)),
):
    try:
        getattr(h, name)(*args)
        print(name, "ok")
    except nbd.Error as error:
        print(name, error.errno)
"""
    try:
        wait_until(other.exists)
        theirs = run(need_tool("nbdsh"), "-u", f"nbd+unix:///vda?socket={other}", "-c", script)
    finally:
        server.terminate()
        server.wait()
    ours = run(need_tool("nbdsh"), "-u", uri, "-c", script)
    pairs = list(zip(ours.splitlines(), theirs.splitlines(), strict=True))
    assert len(pairs) == 14
    # The protocol asks for ENOSPC when a write goes beyond the end; qemu-nbd has its own mind.
    assert [pair for pair in pairs if pair[0] != pair[1]] == [
        ("pwrite ENOSPC", "pwrite EINVAL"), ("zero ENOSPC", "zero EINVAL"),
    ]  # fmt: skip
