"""Vaults that earlier programs made are read by this one; vaults of later programs are refused.

Each fixture is a vault as it was when its format was released, with what must be found in it.  It
is never changed afterwards: a test that fails here says that the format broke.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest
from blake3 import blake3

from blockvault import Vault
from blockvault.encoding import pack
from blockvault.errors import Damaged, Unsupported, VaultError
from blockvault.ops import check, rebuild
from blockvault.store.env import LmdbStore
from blockvault.store.format import FORMAT
from tests.golden import make

ALL_FACTS: dict[str, dict[str, Any]] = json.loads(make.FACTS.read_text())


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the full fixture, as a vault directory."""
    return make.unpack("full", tmp_path)


@pytest.fixture(params=make.VAULTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def facts(name: str) -> dict[str, Any]:
    return ALL_FACTS[name]


@pytest.fixture
def home(name: str, tmp_path: Path) -> Path:
    """A copy of each fixture, as a vault directory."""
    return make.unpack(name, tmp_path)


def read_only(home: Path) -> Vault:
    return Vault(LmdbStore.open(home, readonly=True), home)


# -- old vaults ----------------------------------------------------------------------------------


def test_there_is_a_fixture_of_every_format() -> None:
    assert sorted(path.name for path in make.HERE.glob("*.tar.xz")) == [
        f"format-{number}.tar.xz" for number in range(1, FORMAT + 1)
    ]


def test_every_state_is_what_it_was(home: Path, facts: dict[str, Any]) -> None:
    with read_only(home) as vault:
        for rev, state in facts["states"].items():
            position = vault.resolve(rev)
            assert {name: root.hex() for name, _, root in position.volumes} == state["roots"]
            assert (position.snapshot or b"").hex() == state["snapshot"]
            for name, (size, digest) in state["volumes"].items():
                data = vault.device(rev, name).read(0, size)
                assert blake3(data).hexdigest() == digest, (rev, name)


def test_history_is_what_it_was(home: Path, facts: dict[str, Any]) -> None:
    with read_only(home) as vault:
        assert {branch.name: branch.seq for branch in vault.branches()} == facts["branches"]
        assert {tag.name: tag.snapshot.hex() for tag in vault.tags()} == facts["tags"]
        assert max(logged.seq for logged in vault.events()) == facts["last_seq"]
        with vault.read() as reader:
            assert reader.last().chain.hex() == facts["chain"]


def test_nothing_is_wrong_with_it(home: Path) -> None:
    with read_only(home) as vault:
        report = check.verify(vault)
        assert report.problems == []
        assert report.objects > 20
        told = rebuild.rebuild(vault, dry_run=True)
        assert (told.changed_rows, told.index_entries) == (0, 0)


def test_reading_changes_nothing(golden: Path) -> None:
    before = (golden / "data.mdb").read_bytes()
    with read_only(golden) as vault:
        vault.device("main", "vda").read(0, 4096)
    assert (golden / "data.mdb").read_bytes() == before


def test_it_can_be_written_on(home: Path, facts: dict[str, Any]) -> None:
    with Vault(LmdbStore.open(home), home) as vault:
        with vault.session("main") as session:
            session.device("vda").write(5000, b"years later")
            session.snapshot("later")
        assert vault.device("main", "vda").read(5000, 11) == b"years later"
        size, digest = facts["states"]["v1"]["volumes"]["vda"]
        assert blake3(vault.device("v1", "vda").read(0, size)).hexdigest() == digest
        assert check.verify(vault).ok


def test_the_same_story_makes_the_same_history_today(
    tmp_path: Path, name: str, facts: dict[str, Any]
) -> None:
    """Roots, snapshots and the chain of a new vault are those of the fixture, bit for bit."""
    vault, _ = make.told_anew(tmp_path, name)
    with vault, vault.read() as reader:
        assert reader.last().chain.hex() == facts["chain"]


# -- new vaults, old program -----------------------------------------------------------------------


def alter(home: Path, key: bytes, value: object) -> None:
    """Change a row of ``meta``, as a later program would write it."""
    with lmdb.open(str(home), max_dbs=32, lock=False) as env:
        database = env.open_db(b"meta", create=False)
        with env.begin(write=True, db=database) as txn:
            old = txn.get(key) or b""
            size = int.from_bytes(old[-10:-8], "little")
            body = pack(value) + old[-10 - size : -8]  # and the link to the next row
            sealed = b"meta\0" + len(key).to_bytes(2, "little") + key + body
            txn.put(key, body + blake3(sealed).digest()[:8])


LATER = [
    pytest.param("format", FORMAT + 1, "newer-format", f"format {FORMAT + 1}", id="format"),
    pytest.param("features", [["sealed"], []], "unknown-feature", "sealed", id="feature"),
]


@pytest.mark.parametrize(("name", "value", "kind", "said"), LATER)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_later_vault_is_refused_and_left_alone(
    golden: Path, name: str, value: object, kind: str, said: str, readonly: bool
) -> None:
    alter(golden, name.encode(), value)
    before = (golden / "data.mdb").read_bytes()
    with pytest.raises(Unsupported, match=said) as caught:
        LmdbStore.open(golden, readonly=readonly)
    assert caught.value.reason == kind
    assert (golden / "data.mdb").read_bytes() == before


def test_an_optional_feature_is_passed_over(golden: Path) -> None:
    alter(golden, b"features", [[], ["hints"]])
    with read_only(golden) as vault:
        assert vault.head == "main"


def test_the_command_says_which_program_is_needed(golden: Path) -> None:
    alter(golden, b"format", FORMAT + 1)
    done = subprocess.run(
        [sys.executable, "-m", "blockvault.cli.main", "-V", str(golden), "log"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(make.HERE.parent.parent)},
    )
    assert done.returncode == 8
    assert done.stderr.count("\n") == 1
    assert "newer blockvault" in done.stderr


def append(home: Path, row: list[object]) -> None:
    """One more record, soundly chained, as a later program would write it."""
    with LmdbStore.open(home) as store, store.write() as writer:
        writer.append(pack([row]), 1, writer.last().time_us)


def test_an_event_of_a_later_program_stops_a_replay(golden: Path) -> None:
    append(golden, [250, 0, "something new"])
    with read_only(golden) as vault, pytest.raises(Unsupported, match="250"):
        rebuild.differences(vault)


@pytest.mark.parametrize(
    ("version", "error"), [(b"\x02", Damaged), (b"\x00", Damaged)], ids=["later", "none"]
)
def test_a_record_of_another_version_is_not_guessed_at(
    golden: Path, version: bytes, error: type[VaultError]
) -> None:
    with LmdbStore.open(golden, readonly=True) as store, store.read() as reader:
        record = reader.record(reader.last().seq)
        assert record is not None
    with lmdb.open(str(golden), max_dbs=32, lock=False) as env:
        database = env.open_db(b"log", integerkey=True, create=False)
        with env.begin(write=True, db=database) as txn:
            key = record.first_seq.to_bytes(8, "little")
            data = version + (txn.get(key) or b"")[1:]
            check = blake3(b"log\0" + key + data[:52]).digest()[:8]
            txn.put(key, data[:52] + check + data[60:])
    with pytest.raises(error), read_only(golden) as vault:
        list(vault.events())
