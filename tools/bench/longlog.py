"""A long log: does a volume open, and read, as fast after ten million events as after ten thousand?

    python -m tools.bench.longlog --events 10000000 --size 100G

One server serves a volume; a client writes single blocks to random places, each an event of its
own, with a FLUSH now and then.  At 10,000 events and every tenfold more, a fresh process opens the
branch's newest state and reads blocks of it, and one opens a state half way back.  At each of these
points, and at the end, the server's memory is noted, the highest since it began.

With ``--collect`` all writes but the last of each block are then forgotten, and what collecting and
verifying so many objects takes in time and memory is noted.

Every block has other bytes, so the index grows with every event, but they compress to little: the
run takes disk space for the trees, about 1.2 KB an event on a large volume.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blockvault
from tools.bench import ending
from tools.bench.commands import command, run
from tools.bench.peers import vault
from tools.bench.servers import serving

BLOCK = 4096
BATCH = 256
"""Writes that are in flight together."""
FLUSH_EVERY = 4096
FIRST = 10_000
READS = 200
REPEATS = 5
SCATTER = 0x9E3779B1
"""Prime, so that ``number * SCATTER`` meets every block of a volume before any twice."""
UNITS = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_OPTION = struct.Struct(">QII")
_REQUEST = struct.Struct(">IHH8sQI")
_REPLY_SIZE = 16
_WRITE, _FLUSH = 1, 3


class Writer:
    """A small NBD client: many writes at once, then all their replies."""

    def __init__(self, listening: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(listening))
        self._receive(18)
        name = export.encode()
        fixed_newstyle_without_zeroes = struct.pack(">I", 3)
        chosen = _OPTION.pack(0x49484156454F5054, 1, len(name)) + name
        self._socket.sendall(fixed_newstyle_without_zeroes + chosen)
        self.size = struct.unpack(">QH", self._receive(10))[0]

    def write(self, blocks: list[tuple[int, bytes]]) -> None:
        """Write blocks at offsets; return when all are answered."""
        head = _REQUEST.pack
        self._socket.sendall(
            b"".join(
                head(0x25609513, 0, _WRITE, bytes(8), offset, len(data)) + data
                for offset, data in blocks
            )
        )
        self._answers(len(blocks))

    def flush(self) -> None:
        self._socket.sendall(_REQUEST.pack(0x25609513, 0, _FLUSH, bytes(8), 0, 0))
        self._answers(1)

    def _answers(self, count: int) -> None:
        replies = self._receive(count * _REPLY_SIZE)
        errors = {replies[at + 4 : at + 8] for at in range(0, len(replies), _REPLY_SIZE)}
        if errors != {bytes(4)}:
            raise RuntimeError(f"the server answered with errors: {errors}")

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise RuntimeError("the server is gone")
            data += more
        return bytes(data)


def measure(work: Path, events: int, size: int) -> Iterator[dict[str, Any]]:
    """Figures at each number of events, as they come."""
    folder, listening = work / "vault", work / "nbd.sock"
    with blockvault.Vault.create(folder) as made, made.session() as session:
        session.create_volume(vault.VOLUME, size)
    server = command(
        *vault.program(), "-V", folder, "serve", "--export", "main", "--socket", listening
    )
    written, began = 0, time.monotonic()
    with serving(server, listening):
        pid = _server_of(folder)
        client = Writer(listening, f"main/{vault.VOLUME}")
        for stop in _steps(events):
            while written < stop:
                count = min(BATCH, stop - written)
                client.write([_block(written + at, size) for at in range(count)])
                written += count
                if written % FLUSH_EVERY < BATCH:
                    client.flush()
            client.flush()
            yield {
                "events": written,
                "seconds": round(time.monotonic() - began, 1),
                "server_peak_mb": round(_status(pid, "VmHWM") / 1e6, 1),
                "server_private_mb": round(_status(pid, "RssAnon") / 1e6, 1),
                "vault_mb": round((folder / ".blockvault" / "data.mdb").stat().st_size / 1e6),
                **_opened(folder, written),
            }


def maintained(work: Path) -> Iterator[dict[str, Any]]:
    """What each step of maintenance takes of a vault with so many objects."""
    folder = work / "vault"
    for words in (
        ("gc", "--dry-run"),
        ("prune", "--keep-last", "1", "--keep-events", "0"),
        ("gc",),
        ("verify",),
    ):
        cost = run([command(*vault.program(), "-V", folder, *words)])
        yield {
            "command": " ".join(words),
            "seconds": round(cost.wall, 1),
            "peak_mb": round((cost.peak or 0) / 1e6, 1),
        }


def _steps(events: int) -> list[int]:
    steps = [FIRST]
    while steps[-1] * 10 < events:
        steps.append(steps[-1] * 10)
    return [*(step for step in steps if step < events), events]


def _block(number: int, size: int) -> tuple[int, bytes]:
    """Where the write of this number goes, and its bytes: places far apart, none twice."""
    return number * SCATTER % (size // BLOCK) * BLOCK, number.to_bytes(8, "big") * (BLOCK // 8)


def _server_of(folder: Path) -> int:
    asked = [*vault.program(), "-V", str(folder), "status", "--json"]
    answer = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
    return int(answer["pid"])


def _status(pid: int, name: str) -> int:
    """A line of the process's status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in the status of process {pid}")


def _opened(folder: Path, events: int) -> dict[str, float]:
    """Milliseconds that fresh processes take; the middle of several."""
    found: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        half = events // 2
        for name, at, there in (
            ("newest", "main", events),
            ("half_way", f"main@{{#{half}}}", half),
        ):
            open_it = ("--open", folder, at, there * 8 // 10)
            words = (sys.executable, "-m", "tools.bench.longlog", *open_it)
            done = subprocess.run(
                list(map(str, words)), check=True, capture_output=True, cwd=vault.ROOT
            )
            for what, seconds in json.loads(done.stdout).items():
                found.setdefault(f"{name}_{what}_ms", []).append(seconds * 1000)
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def _open(folder: str, revision: str, written: str) -> dict[str, float]:
    """What one fresh process sees: seconds to open a state, and to read one of the first blocks
    that were ``written``.
    """
    begun = time.perf_counter()
    with blockvault.open(folder) as opened:
        device = opened.device(revision)
        ready = time.perf_counter()
        rng = random.Random(1)
        for number in rng.choices(range(int(written)), k=READS):
            offset, data = _block(number, device.size)
            if device.read(offset, BLOCK) != data:
                raise RuntimeError(f"the block of write {number} is another")
        return {"open": ready - begun, "read": (time.perf_counter() - ready) / READS}


def main() -> None:
    """Print a line of JSON for each number of events."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--size", default="100G", help="of the volume: 512M, 100G, 1T")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="the disk to use")
    parser.add_argument("--collect", action="store_true", help="then collect what is dead, verify")
    parser.add_argument("--open", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.open:
        print(json.dumps(_open(*chosen.open)))
        return
    ending.heed()  # the server has a session of its own, and must not outlive this
    size = int(chosen.size[:-1]) * UNITS[chosen.size[-1]]
    work = Path(tempfile.mkdtemp(prefix="blockvault-longlog-", dir=chosen.work))
    with contextlib.ExitStack() as last:
        last.callback(shutil.rmtree, work)
        for figures in measure(work, chosen.events, size):
            print(json.dumps(figures), flush=True)
        for figures in maintained(work) if chosen.collect else ():
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
