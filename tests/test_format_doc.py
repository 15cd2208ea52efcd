"""docs/format.md is enough: a reader written from it reads what the program writes.

The reader (``format_reader``) shares no code with the program.  It must agree with the story's own
account of every state, with the program on every single event, and with every derived table.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from blockvault import Vault
from blockvault.errors import BadRequest, NotFound
from blockvault.model import events, names
from blockvault.ops import checkout
from blockvault.store import frames, tables
from tests.format_reader import (
    DATA,
    WAYPOINTS,
    ZERO,
    Bad,
    FormatReader,
    head_slots,
    ref_name,
    root_of,
    split_frame,
    volume_name,
)
from tests.golden import make, story
from tests.golden.story import noise

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "format.md").read_text()


def hashes(contents: dict[str, bytes]) -> dict[str, str]:
    """Contents as something that a failed test can show."""
    return {name: f"{len(data)} {blake3(data).hexdigest()}" for name, data in contents.items()}


class Written:
    """A vault that the program wrote, what it must hold, and the independent reader of it."""

    def __init__(self, home: Path, block_size: int, compression: str, pruned: bool) -> None:
        self.pruned = pruned
        with story.fixed_world():
            vault, self.told = story.tell(home, block_size=block_size, compression=compression)
            if pruned:
                self.told = story.forget(vault, self.told)
        with vault:
            self.positions = {rev: vault.resolve(rev) for rev in self.told.revisions}
            self.branches = vault.branches()
            self.moments = {
                (branch.id, seq): state
                for branch in self.branches
                for seq in range(branch.seq + 1)
                if (state := _program_reads(vault, f"{branch.name}@{{#{seq}}}")) is not None
            }
            with vault.read() as reader:
                self.last = reader.last()
        self.directory = home / ".blockvault"
        self.reader = FormatReader(self.directory)


def _program_reads(vault: Vault, rev: str) -> dict[str, str] | None:
    try:
        volumes = vault.resolve(rev, exact=True).volumes
    except NotFound:
        return None
    return hashes({v.name: vault.device(rev, v.name, exact=True).read(0, v.size) for v in volumes})


VAULTS = [(4096, "zstd:3", False), (8192, "none", False), (4096, "zstd:3", True)]


@pytest.fixture(scope="module", params=VAULTS, ids=["small", "raw", "pruned"])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    made = Written(tmp_path_factory.mktemp("vault"), *request.param)
    with made.reader:
        yield made


# -- reading -------------------------------------------------------------------------------------


def test_the_reader_shares_nothing_with_the_program() -> None:
    source = (ROOT / "tests" / "format_reader.py").read_text()
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
    assert imported - set(sys.stdlib_module_names) == {"lmdb", "msgpack", "zstandard", "blake3"}


def test_the_log_is_whole_and_every_event_occurs(written: Written) -> None:
    found = list(written.reader.events())
    codes = {event.code for event in found}
    if written.pruned:
        assert events.PRUNED in codes
    else:
        assert codes == set(events.EVENTS) - {events.PRUNED}
    assert written.reader.end == (written.last.seq, written.last.chain)


def test_every_encoding_occurs(written: Written) -> None:
    stored = [data[1] for _, data in written.reader.rows("frames")]
    records = [data[1] for _, data in written.reader.rows("log")]
    codecs = {0} if written.reader.meta["compression"] == "none" else {0, 1}
    gaps = {2} if written.pruned else set()
    assert (set(stored), set(records)) == (codecs, codecs | gaps)


def test_frames_of_unequal_objects_are_read() -> None:
    objects = [b"one", bytes(1000), b"", noise("three", 500)]
    for codec in ("none", "zstd:3"):
        assert split_frame(frames.encode(objects, frames.Codec(codec))) == objects


def test_every_revision_reads_as_told(written: Written) -> None:
    for rev, contents in written.told.revisions.items():
        position = written.positions[rev]
        if position.branch:
            state = written.reader.state(position.branch, position.seq)
            assert hashes(state) == hashes(contents), rev


def test_every_snapshot_reads_as_told(written: Written) -> None:
    seen = set()
    for rev, contents in written.told.revisions.items():
        oid = written.positions[rev].snapshot
        if oid is None:
            continue
        seen.add(oid)
        volumes = written.reader.snapshot(oid)["volumes"]
        read = {
            name: written.reader.content(size, written.reader.block_ids(size, root))
            for name, size, root in volumes
        }
        assert hashes(read) == hashes(contents), rev
        for name, data in contents.items():
            assert (name, len(data), root_of(data, written.reader.block_size)) in volumes
    assert len(seen) == len(written.reader.rows("snapshots"))


def test_every_flush_reads_as_told(written: Written) -> None:
    assert len(written.told.moments) > (0 if written.pruned else 5)
    for seq, contents in written.told.moments.items():
        assert hashes(written.reader.state(2, seq)) == hashes(contents), seq


def test_program_and_reader_agree_on_every_event(written: Written) -> None:
    assert {branch for branch, _ in written.moments} == {b.id for b in written.branches}
    for (branch, seq), contents in written.moments.items():
        assert hashes(written.reader.state(branch, seq)) == contents, (branch, seq)


def test_attachments_are_found(written: Written) -> None:
    oid = written.positions["main~0"].tip
    assert oid is not None
    reader = written.reader
    kept = {
        name: reader.content(size, reader.block_ids(size, root))
        for name, size, root in reader.snapshot(oid)["attachments"]
    }
    assert kept == {"machine.json": b'{"cpus": 2}\n', "empty.bin": bytes(9)}


# -- what is derived -----------------------------------------------------------------------------


@pytest.mark.parametrize("table", tables.PROJECTIONS)
def test_projections_follow_from_the_log(written: Written, table: str) -> None:
    rows = written.reader.fold.tables[table]
    assert rows
    assert dict(written.reader.rows(table)) == rows


def test_the_index_follows_from_the_frames(written: Written) -> None:
    stored, index = written.reader.stored(), written.reader.indexed()
    assert index
    assert set(index) == set(stored)
    assert all(index[oid] in stored[oid] for oid in index)


def test_runs_are_digests_of_leaves(written: Written) -> None:
    reader = written.reader
    rows = reader.rows("runs")
    assert rows
    for leaf, digest in rows:
        node = reader.object(leaf)
        ids = [node[at : at + 32] for at in range(0, 1024, 32)]
        assert blake3(reader.content(32 * reader.block_size, ids)).digest() == digest


def test_the_head_file_knows_the_last_commit(written: Written) -> None:
    slots = head_slots((written.directory / "head").read_bytes())
    newest = max(slots)
    assert (newest.seq, newest.chain) == (written.last.seq, written.last.chain)
    assert newest.txn_id == written.reader.env.info()["last_txnid"]


def test_leases_are_named_after_branches(written: Written) -> None:
    found = {int(path.name) for path in (written.directory / "leases").iterdir()}
    assert {branch.id for branch in written.branches if branch.name == "main"} < found
    if not written.pruned:
        assert found <= {branch.id for branch in written.branches}


# -- the page itself -----------------------------------------------------------------------------


def test_fields_of_events_are_those_of_the_page() -> None:
    section = PAGE.split("## 11. ")[1].split("## 12. ")[0]
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.*) \|$", section, re.M)
    listed = {
        int(code): (name, re.sub(r" \([^)]*\)", "", text).split(", ")) for code, name, text in rows
    }
    assert listed == {
        code: (kind.__name__, list(kind.FIELDS)) for code, kind in events.EVENTS.items()
    }
    assert set(DATA) == events.DATA_CODES
    assert set(WAYPOINTS) == events.WAYPOINT_CODES


def test_tables_are_those_of_the_page(written: Written) -> None:
    section = PAGE.split("## 3. ")[1].split("## 4. ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert sorted(listed) == sorted(written.reader.names())
    assert sorted(listed) == sorted((*tables.KEYED, *tables.NUMBERED))


def test_parameters_are_those_of_the_page(written: Written) -> None:
    section = PAGE.split("## 4. ")[1].split("## 5. ")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", section, re.M))
    assert set(written.reader.meta) <= listed


def test_the_worked_example_is_the_fixture() -> None:
    """Byte for byte; and whatever bytes the explanation quotes are in it."""
    section = PAGE.split("## 21. ")[1]
    (shown,) = re.findall(r"^```text\n(.*?)^```", section, re.M | re.S)
    assert shown == make.example()
    known = re.sub(r"\s", "", shown) + bytes(range(16)).hex()
    known += blake3(b"blockvault log 1" + bytes(range(16))).hexdigest()
    quoted = re.findall(r"`([0-9a-f]{2,})…?`", section.split("```")[2])
    assert len(quoted) > 15
    assert [text for text in quoted if text not in known] == []


def accepted(check: object, name: str) -> bool:
    assert callable(check)
    try:
        check(name)
    except BadRequest:
        return False
    return True


LETTERS = st.sampled_from("ab/.@{~-\\: \x00\x7f\u200b\ufffdé*1lock") | st.characters(codec="utf-8")
SPECIAL = [
    *("HEAD", "@", "con", "COM1", "com1x", "nul.txt", "lpt", "a.lock", "a.lock/b", "a b"),
    *("x" * 200, "x" * 201, "é" * 100, "é" * 101, ""),
]
NAMES = st.text(LETTERS, max_size=8) | st.sampled_from(SPECIAL)


@given(NAMES)
def test_names_are_what_the_page_says(name: str) -> None:
    assert accepted(names.check_ref_name, name) == ref_name(name)
    assert accepted(names.check_volume_name, name) == volume_name(name)


def test_the_manifest_is_what_the_page_says(tmp_path: Path) -> None:
    data = noise("disk", 10_000)
    with Vault.create(tmp_path / "v") as vault:
        with vault.session() as session:
            session.create_volume("vda", len(data)).write(0, data)
            made = session.snapshot("one")
        checkout.execute(vault, checkout.plan(vault, "main", tmp_path / "out"))
        vault_id = vault.options.vault_id.hex()
    manifest = json.loads((tmp_path / "out" / ".blockvault-checkout.json").read_text())
    (entry,) = manifest.pop("entries")
    status = (tmp_path / "out" / "vda.raw").stat()
    assert manifest == {
        "version": 1,
        "vault": vault_id,
        "revision": "main",
        "branch": "main",
        "snapshot": made.id.hex(),
    }
    assert entry == {
        "name": "vda",
        "file": "vda.raw",
        "attachment": False,
        "size": len(data),
        "root": root_of(data, 4096).hex(),
        "fingerprint": [status.st_size, status.st_mtime_ns, status.st_ino],
    }
    section = PAGE.split("## 19. ")[1].split("## 20. ")[0]
    listed = set(re.findall(r"^\| `([\w.\[\]]+)` \|", section, re.M))
    assert listed == {*manifest, "entries", *(f"entries[].{key}" for key in entry)}


# -- the reader is no rubber stamp ---------------------------------------------------------------


def spoilt(written: Written, into: Path, table: str, at: int) -> FormatReader:
    """The reader of a copy of the vault in which one byte of one row of a table is another."""
    into.mkdir()
    shutil.copy(written.directory / "data.mdb", into)
    numbered = table in tables.NUMBERED
    with lmdb.open(str(into), max_dbs=32, lock=False) as env:
        database = env.open_db(table.encode(), integerkey=numbered, create=False)
        with env.begin(write=True, db=database) as txn:
            rows = [(bytes(key), bytearray(value)) for key, value in txn.cursor()]
            key, value = max(rows, key=lambda row: len(row[1]))
            value[at] ^= 1
            txn.put(key, bytes(value))
    return FormatReader(into)


@pytest.mark.parametrize("at", [4, 12, 20, -1], ids=["count", "time", "chain", "payload"])
def test_an_altered_record_is_seen(written: Written, tmp_path: Path, at: int) -> None:
    with spoilt(written, tmp_path / "v", "log", at) as reader, pytest.raises(Bad):
        list(reader.events())


def test_an_altered_block_is_seen(written: Written, tmp_path: Path) -> None:
    with spoilt(written, tmp_path / "v", "frames", -100) as reader:
        bad = [oid for oid in reader.indexed() if not readable(reader, oid)]
    assert bad
    assert len(bad) < len(written.reader.indexed())


def readable(reader: FormatReader, oid: bytes) -> bool:
    try:
        return reader.object(oid) != ZERO
    except Bad:
        return False
