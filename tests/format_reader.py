"""A reader of vaults written from docs/format.md, which shares no code with the program.

It proves the page: what it needs to know stands there.  It trusts nothing that is derived, other
than the index: history comes from the log, and the projections are folded anew to be compared.
Numbers in comments are the sections of the page.  ``Bad`` is raised for what the page forbids.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from unicodedata import category

import lmdb
import msgpack
import zstandard
from blake3 import blake3

ZERO = bytes(32)
INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Zs"}
BASE = ("refs", "branches", "waypoints", "snapshots")
WAYPOINTS = {2, 32, 33, 34, 35, 36}
DATA = {16, 17, 18, 19}
VOLUMES_AT = {2: 6, 32: 3, 33: 3, 34: 3, 35: 3, 36: 3}
SNAPSHOT_AT = {2: 5, 33: 4, 34: 4, 35: 4}
FIELDS = {
    **{1: 5, 2: 7, 3: 4, 4: 3, 5: 4, 6: 3, 7: 4, 8: 3},
    **{16: 7, 17: 6, 18: 6, 19: 3, 32: 4, 33: 6, 34: 5, 35: 7, 36: 6},
    **{48: 4, 49: 3, 50: 4, 51: 4},
}


class Bad(Exception):
    """The vault is not what the page says."""


class Event(NamedTuple):
    """One row of the log: ``row`` begins with code and dt."""

    seq: int
    time: int
    row: tuple[Any, ...]
    record: int
    record_time: int

    @property
    def code(self) -> int:
        return int(self.row[0])

    @property
    def branch(self) -> int:
        """The branch of a content event."""
        return self.seq if self.code == 2 else int(self.row[2])


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Any:
    value = msgpack.unpackb(data, use_list=False)
    need(pack(value) == data, "not the shortest encoding")
    return value


def need(condition: object, what: str) -> None:
    if not condition:
        raise Bad(what)


class FormatReader:
    """A vault directory, read only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = lmdb.open(
            str(directory), readonly=True, lock=False, max_dbs=32, map_size=1 << 34
        )
        flags: dict[str, dict[str, Any]] = {
            "log": {"integerkey": True},
            "frames": {"integerkey": True},
            "index": {"dupsort": True, "dupfixed": True},
        }
        self.tables = {
            name: self.env.open_db(name.encode(), create=False, **flags.get(name, {}))
            for name in self.names()
        }
        self._meta()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.env.close()

    def names(self) -> list[str]:
        """The tables that there are."""
        with self.env.begin() as txn:
            return [bytes(key).decode() for key, _ in txn.cursor()]

    def rows(self, table: str) -> list[tuple[bytes, bytes]]:
        """Every row of a table, with each duplicate; checks are proved and cut off."""
        with self.env.begin() as txn:
            found = [(bytes(k), bytes(v)) for k, v in txn.cursor(self.tables[table])]
        if table in ("log", "frames", "index"):
            return found
        opened = [self._opened(table, key, row) for key, row in found]
        if table == "runs":
            return [(key, value) for key, value, _ in opened]
        need(opened and opened[0][:2] == (b"\0", b""), f"{table} has no beginning")
        links = [following for _, _, following in opened]
        need(links == [*(key for key, _, _ in opened[1:]), b""], f"{table} lacks a row")
        return [(key, value) for key, value, _ in opened[1:]]

    def _opened(self, table: str, key: bytes, row: bytes) -> tuple[bytes, bytes, bytes]:
        """Key, value and the key of the next row."""
        body, check = row[:-8], row[-8:]
        place = table.encode() + b"\0" + len(key).to_bytes(2, "little")
        need(check == blake3(place + key + body).digest()[:8], f"a row of {table} is damaged")
        size = int.from_bytes(body[-2:], "little")
        at = len(body) - 2 - size
        return key, body[:at], body[at:-2]

    # -- 4, 18 -----------------------------------------------------------------------------------

    def _meta(self) -> None:
        self.meta = {key.decode(): unpack(value) for key, value in self.rows("meta")}
        need(self.meta["format"] == 1, "a format that this reader does not know")
        required, _ = self.meta["features"]
        self.seconds = [b""]
        if "recent-rows" in required:
            self.seconds = [b"", b"\0"]
        if "waiting-rows" in required:
            self.seconds = [b"", b"\0", b"\1"]
        unknown = set(required) - {"recent-rows", "waiting-rows"}
        need(not unknown, f"features that this reader does not know: {unknown}")
        self.vault_id = self.meta["vault_id"]
        self.block_size = self.meta["block_size"]
        need(len(self.vault_id) == 16, "vault id")
        need(self.block_size in (4096, 8192, 16384, 32768, 65536), "block size")

    # -- 5, 6, 7: objects --------------------------------------------------------------------------

    def frame(self, number: int) -> list[bytes]:
        """The objects of one frame."""
        with self.env.begin() as txn:
            data = txn.get(number.to_bytes(8, "little"), db=self.tables["frames"])
        if data is None:
            raise Bad(f"frame {number} is missing")
        return split_frame(bytes(data))

    def place(self, oid: bytes) -> tuple[int, int] | None:
        """Frame number and slot of an object."""
        with self.env.begin() as txn:
            cursor = txn.cursor(self.tables["index"])
            for second in self.seconds:
                if not cursor.set_range_dup(oid[:1] + second, oid[1:]):
                    continue
                value = bytes(cursor.value())
                need(len(value) == 38, "an index value has 38 bytes")
                if value[:31] == oid[1:]:
                    return divmod(int.from_bytes(value[31:], "big"), 65536)
        return None

    def object(self, oid: bytes) -> bytes:
        """An object by its id, proved."""
        place = self.place(oid)
        need(place is not None, f"object {oid.hex()} is not in the index")
        assert place is not None
        data = self.frame(place[0])[place[1]]
        need(blake3(data).digest() == oid, f"object {oid.hex()} has another hash")
        return data

    def indexed(self) -> dict[bytes, int]:
        """The whole index: id -> place."""
        found = {}
        for key, value in self.rows("index"):
            need(key[1:] in self.seconds, "a key of the index")
            need(key[:1] + value[:31] not in found, "an id that the index has twice")
            found[key[:1] + value[:31]] = int.from_bytes(value[31:], "big")
        return found

    def stored(self) -> dict[bytes, set[int]]:
        """What the frames hold: id -> its places."""
        found: dict[bytes, set[int]] = {}
        for key, data in self.rows("frames"):
            number = int.from_bytes(key, "little")
            for slot, item in enumerate(split_frame(data)):
                found.setdefault(blake3(item).digest(), set()).add(number * 65536 + slot)
        return found

    # -- 8: trees ----------------------------------------------------------------------------------

    def block_ids(self, size: int, root: bytes) -> list[bytes]:
        """The id of every block of a volume."""
        count = -(-size // self.block_size)
        height = 1
        while 32**height < count:
            height += 1
        ids = [root]
        for _ in range(height):
            below: list[bytes] = []
            for oid in ids:
                node = bytes(1024) if oid == ZERO else self.object(oid)
                need(len(node) == 1024, "a node has 1024 bytes")
                need(oid == ZERO or node != bytes(1024), "a node of zeros was stored")
                below += [node[at : at + 32] for at in range(0, 1024, 32)]
            ids = below
        need(all(oid == ZERO for oid in ids[count:]), "blocks behind the end")
        return ids[:count]

    def content(self, size: int, ids: list[bytes]) -> bytes:
        """Every byte of a volume."""
        parts = [bytes(self.block_size) if oid == ZERO else self.object(oid) for oid in ids]
        need(all(len(part) == self.block_size for part in parts), "a block has the block size")
        data = b"".join(parts)
        need(not data[size:].strip(b"\0"), "bytes behind the end")
        return data[:size]

    # -- 9: snapshots ------------------------------------------------------------------------------

    def snapshot(self, oid: bytes) -> dict[str, Any]:
        value = unpack(self.object(oid))
        need(value[0] == 1, "snapshot version")
        names = ("parents", "volumes", "attachments", "message", "author", "time", "seq")
        return dict(zip(names, value[1:], strict=True))

    # -- 10, 11: the log ---------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """All events that are left; the chain is verified on the way, and at the end the gaps."""
        chain = blake3(b"blockvault log 1" + self.vault_id).digest()
        due, before = 1, 0
        chains, gaps, pruned = {}, [], None
        for key, data in self.rows("log"):
            first = int.from_bytes(key, "little")
            version, codec, reserved, count, raw_size, time, stored, check = struct.unpack_from(
                "<BBHIIq32s8s", data
            )
            need(blake3(b"log\0" + key + data[:52]).digest()[:8] == check, "a header's check")
            need(version == 1 and reserved == 0 and count, "record header")
            need(first == due, f"event {due} is missing")
            need(time >= before, "times of records decrease")
            chains[first] = chain
            due, before = first + count, time
            if codec == 2:
                need(raw_size == 0 and len(data) == 60, "a gap has no payload")
                gaps.append((first, due))
                chain = stored
                continue
            payload = decoded(codec, data[60:], raw_size, 64 << 20)
            hashed = chain + first.to_bytes(8, "little") + time.to_bytes(8, "little", signed=True)
            chain = blake3(hashed + count.to_bytes(4, "little") + payload).digest()
            need(chain == stored, f"the chain breaks at event {first}")
            for event in self._rows(payload, first, count, time):
                pruned = event if event.code == 51 else pruned
                yield event
        self._lawful(gaps, chains, pruned)
        self.end = due - 1, chain

    def _rows(self, payload: bytes, first: int, count: int, time: int) -> Iterator[Event]:
        rows = unpack(payload)
        need(len(rows) == count, "count")
        last_dt = 0
        for seq, row in enumerate(rows, first):
            need(FIELDS.get(row[0]) == len(row), f"event {seq} has an unknown shape")
            need(row[1] >= last_dt, "times within a record decrease")
            need(row[0] != 51 or count == 1, "Pruned is alone")
            last_dt = row[1]
            yield Event(seq, time + row[1], row, first, time)

    def _lawful(
        self, gaps: list[tuple[int, int]], chains: dict[int, bytes], pruned: Event | None
    ) -> None:
        kept = pruned.row[2] if pruned else ()
        for first, end in gaps:
            need(pruned and end <= pruned.seq, "a gap behind the last prune")
            need(all(end <= run[0] or run[1] <= first for run in kept), "a gap in what is kept")
        for first, _, chain in kept:
            need(chains[first] == chain, "a kept run continues another chain")

    # -- 12: states --------------------------------------------------------------------------------

    def state(self, branch: int, seq: int) -> dict[str, bytes]:
        """Every byte of every volume of a branch, just after an event."""
        fold = self.fold
        while seq < branch:
            source, source_seq = fold.branches[branch][1:3]
            need(source, "the branch had not begun")
            branch, seq = source, min(seq, source_seq)
        last = max(at for of, at in fold.waypoints if of == branch and at <= seq)
        cut = unpack(pack(fold.refs.get(b"cuts/" + _key(branch), (0, 0))))[0]
        need(last == seq or last >= cut, "the events in between were pruned")
        volumes = fold.waypoints[branch, last][4]
        sizes = {name: size for name, size, _ in volumes}
        ids = {name: self.block_ids(size, root) for name, size, root in volumes}
        for event in fold.data:
            if last < event.seq <= seq and event.branch == branch and event.code != 19:
                self._apply(ids, sizes, event.row)
        return {name: self.content(sizes[name], ids[name]) for name in ids}

    def _apply(
        self, ids: dict[str, list[bytes]], sizes: dict[str, int], row: tuple[Any, ...]
    ) -> None:
        code, _, _, name, offset, length, *rest = row
        first = offset // self.block_size
        stop = -(-(offset + length) // self.block_size)
        need(offset + length <= sizes[name], "a write behind the end")
        if code == 16:
            new = [rest[0][at : at + 32] for at in range(0, len(rest[0]), 32)]
        else:
            need(offset % self.block_size == 0, "a zeroed range begins in a block")
            need((offset + length) % self.block_size == 0 or offset + length == sizes[name], "end")
            new = [ZERO] * (stop - first)
        need(len(new) == stop - first, "one id for each block")
        ids[name][first:stop] = new

    # -- 13: projections ---------------------------------------------------------------------------

    @cached_property
    def fold(self) -> Fold:
        """What the log says the projection tables hold: from the start, or from the last prune."""
        return Fold(list(self.events()))


class Fold:
    """Section 13, one event after another."""

    def __init__(self, events: list[Event], *, from_the_start: bool = False) -> None:
        self.refs: dict[bytes, object] = {}
        self.branches: dict[int, list[Any]] = {}
        self.waypoints: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.trail: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.snapshots: dict[bytes, tuple[int, int]] = {}
        self.data = [event for event in events if event.code in DATA]
        prunes = [] if from_the_start else [event for event in events if event.code == 51]
        start = 0
        if prunes:
            start = prunes[-1].seq + 1
            self.begin(events, prunes[-1])
        for event in events:
            if event.seq >= start:
                self.step(event)

    @property
    def tables(self) -> dict[str, dict[bytes, bytes]]:
        """The tables as the vault has them."""
        return {
            "refs": {key: pack(value) for key, value in self.refs.items()},
            "branches": {_key(key): pack(value) for key, value in self.branches.items()},
            "waypoints": {_key(*key): pack(value) for key, value in self.waypoints.items()},
            "trail": {_key(*key): pack(value) for key, value in self.trail.items()},
            "snapshots": {key: pack(value) for key, value in self.snapshots.items()},
        }

    def step(self, event: Event) -> None:
        self.names(event)
        if event.code in WAYPOINTS:
            self.waypoint(event)
        if event.code in WAYPOINTS | DATA:
            self.moved(event)
            held = self.branches[event.branch]
            held[5] = event.seq
            held[8] = event.seq if event.code in WAYPOINTS | {19} else held[8]
        if event.code == 51:
            kept = event.row[2]
            self.base(event.row[3])
            self.trail = {
                key: row
                for key, row in self.trail.items()
                if key[0] in self.branches and in_runs(key[1], kept)
            }

    def begin(self, events: list[Event], pruned: Event) -> None:
        """What a Pruned event leaves, without what was before it."""
        self.base(pruned.row[3])
        for event in events:
            content = event.code in WAYPOINTS | DATA and event.branch in self.branches
            if content and in_runs(event.record, pruned.row[2]):
                self.moved(event)

    def base(self, rows: tuple[tuple[str, bytes, bytes], ...]) -> None:
        held = {name: [row[1:] for row in rows if row[0] == name] for name in BASE}
        self.refs = {key: unpack(value) for key, value in held["refs"]}
        self.branches = {_numbers(key)[0]: [*unpack(value)] for key, value in held["branches"]}
        self.waypoints = {_numbers(key): unpack(value) for key, value in held["waypoints"]}
        self.snapshots = {key: unpack(value) for key, value in held["snapshots"]}

    def names(self, event: Event) -> None:
        code, row = event.code, event.row
        if code == 2:
            self.refs[b"heads/" + row[2].encode()] = [event.seq]
            self.branches[event.seq] = [*row[2:5], False, event.seq, event.seq, None, 0, event.seq]
        elif code in (3, 4, 5):
            branch = self.branches[row[2]]
            if code != 5:
                del self.refs[b"heads/" + branch[0].encode()]
            if code != 4:
                branch[0] = row[3]
                self.refs[b"heads/" + row[3].encode()] = [row[2]]
            branch[3] = {3: branch[3], 4: True, 5: False}[code]
            if code == 4:
                self.refs[b"deleted/" + _key(row[2])] = [event.seq, event.time]
            elif code == 5:
                del self.refs[b"deleted/" + _key(row[2])]
        elif code == 6:
            self.refs[b"HEAD"] = [row[2]]
        elif code == 7:
            self.refs[b"tags/" + row[2].encode()] = [row[3], event.seq]
            self.snapshots.setdefault(row[3], (event.seq, 0))
        elif code == 8:
            del self.refs[b"tags/" + row[2].encode()]
        elif code == 48:
            self.refs[b"holds/" + row[2]] = [event.seq, event.time, row[3]]
            self.snapshots.setdefault(row[2], (event.seq, 0))
        elif code == 49:
            self.refs.pop(b"holds/" + row[2], None)
        elif code == 50 and row[3]:
            self.refs[b"policies/" + _key(row[2])] = row[3]
        elif code == 50:
            self.refs.pop(b"policies/" + _key(row[2]), None)

    def waypoint(self, event: Event) -> None:
        code, row, seq, branch = event.code, event.row, event.seq, event.branch
        snapshot = row[SNAPSHOT_AT[code]] if code in SNAPSHOT_AT else None
        held = self.branches[branch]
        if snapshot is not None:
            tip = snapshot
        elif code in (32, 36):
            tip = held[6]
        else:
            tip = self.tip_at(*(row[3:5] if code == 2 else row[5:7]))
        detail = {2: row[3:5], 33: row[5:6], 35: row[5:7], 36: row[4:6]}.get(code, ())
        self.waypoints[branch, seq] = (
            code,
            event.time,
            snapshot,
            tip,
            row[VOLUMES_AT[code]],
            *detail,
        )
        if tip is None:
            held[7] = 0
        elif snapshot is not None or tip != held[6] or code == 35:
            held[7] = seq
        held[4], held[6] = seq, tip
        if snapshot is not None:
            self.snapshots.setdefault(snapshot, (seq, branch))

    def tip_at(self, branch: int, seq: int) -> bytes | None:
        before = [at for of, at in self.waypoints if of == branch and at <= seq]
        found: bytes | None = self.waypoints[branch, max(before)][3] if before else None
        return found

    def moved(self, event: Event) -> None:
        """The row of the trail that an event belongs to."""
        key = event.branch, event.record
        point = event.seq if event.code in WAYPOINTS | {19} else self.trail.get(key, (0, 0))[1]
        self.trail[key] = (event.seq, point, event.record_time)


def in_runs(record: int, runs: tuple[tuple[int, int, bytes], ...]) -> bool:
    """Whether a record is in one of the runs that a Pruned event lists as kept."""
    return any(first <= record < end for first, end, _ in runs)


def split_frame(data: bytes) -> list[bytes]:
    """Section 6: the objects of an encoded frame."""
    version, codec, count, raw_size, uniform = struct.unpack_from("<BBHII", data)
    need(version == 1 and count, "frame header")
    lengths = [uniform] * count
    start = 12
    if not uniform:
        lengths = list(struct.unpack_from(f"<{count}I", data, start))
        start += 4 * count
    need(sum(lengths) == raw_size, "lengths of a frame")
    payload = decoded(codec, data[start:], raw_size, 16 << 20)
    objects = []
    for length in lengths:
        objects.append(payload[:length])
        payload = payload[length:]
    return objects


def decoded(codec: int, payload: bytes, raw_size: int, limit: int) -> bytes:
    """Sections 6 and 10: a payload as it was before it was encoded."""
    need(raw_size <= limit, "raw_size")
    if codec == 1:
        need(zstandard.frame_content_size(payload) == raw_size, "stated size")
        try:
            payload = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Bad(f"zstd: {error}") from None
    else:
        need(codec == 0, "codec")
    need(len(payload) == raw_size, "size of a payload")
    return payload


class Slot(NamedTuple):
    """Section 15: one note of the head file."""

    seq: int
    txn_id: int
    chain: bytes


def head_slots(data: bytes) -> list[Slot]:
    """The valid slots of a head file."""
    slots = []
    for at in range(0, len(data) - 63, 64):
        magic, txn_id, seq, chain, check = struct.unpack_from("<8sQQ32s8s", data, at)
        if magic == b"bvhead 1" and blake3(data[at : at + 56]).digest()[:8] == check:
            need(txn_id % 64 == at // 64, "a slot in another's place")
            slots.append(Slot(seq, txn_id, chain))
    return slots


def root_of(data: bytes, block_size: int) -> bytes:
    """Section 8, the other way: the root of a volume of these bytes."""
    blocks = [data[at : at + block_size] for at in range(0, len(data), block_size)]
    ids = [
        blake3(block.ljust(block_size, b"\0")).digest() if block.strip(b"\0") else ZERO
        for block in blocks
    ]
    while True:
        nodes = [b"".join(ids[at : at + 32]).ljust(1024, b"\0") for at in range(0, len(ids), 32)]
        ids = [blake3(node).digest() if node.strip(b"\0") else ZERO for node in nodes]
        if len(ids) <= 1:
            return ids[0] if ids else ZERO


def ref_name(name: str) -> bool:
    """Section 1: whether a branch or tag may be called so."""
    parts = name.split("/")
    return (
        1 <= len(name.encode()) <= 200
        and not any(char <= " " or char in "\x7f~^:?*[\\\ufffd" for char in name)
        and not any(pair in name for pair in ("..", "@{", "//"))
        and not name.startswith(("-", "/"))
        and not name.endswith("/")
        and not any(part.startswith(".") or part.endswith((".", ".lock")) for part in parts)
        and name not in ("HEAD", "@")
        and not any(category(char) in INVISIBLE for char in name)
    )


def volume_name(name: str) -> bool:
    """Section 1: whether a volume or attachment may be called so."""
    devices = {"con", "prn", "aux", "nul"}
    devices |= {f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)}
    return (
        1 <= len(name.encode()) <= 200
        and not any(char < " " or char in '\x7f/\\:*?"<>|\ufffd' for char in name)
        and name[0] not in ".- "
        and name[-1] not in ". "
        and name.split(".")[0].lower() not in devices
        and not any(category(char) in INVISIBLE for char in name if char != " ")
    )


def _key(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)


def _numbers(key: bytes) -> tuple[Any, ...]:
    return struct.unpack(f">{len(key) // 8}Q", key)
