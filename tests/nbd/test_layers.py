"""What names mean in a server whose clients write to copies, and how long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import Busy, NotFound
from blockvault.model.retention import Policy
from blockvault.nbd.exports import Export, Exports
from blockvault.nbd.volumes import VaultCatalogue
from blockvault.ops import forget, gc, prune

BLOCK = 4096


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path) as made:
        with made.session() as session:
            session.create_volume("vda", 8 * BLOCK).write(0, b"one")
            session.create_volume("vdb", 8 * BLOCK)
            session.snapshot("one")
        yield made


@pytest.fixture
def catalogue(vault: Vault) -> Iterator[VaultCatalogue]:
    made = VaultCatalogue(vault, {}, ["main"], copy_on_write=True)
    yield made
    made.close()


@pytest.fixture
def exports(catalogue: VaultCatalogue) -> Exports:
    return Exports(catalogue)


def attach(exports: Exports, name: str) -> Export:
    return exports.attach(exports.find(name))


def read(exports: Exports, name: str, length: int = 3) -> bytes:
    export = attach(exports, name)
    try:
        return export.device.read(0, length)
    finally:
        exports.release(export)


def write(exports: Exports, name: str, data: bytes) -> None:
    export = attach(exports, name)
    export.device.write(0, data)
    exports.release(export)


def move_on(vault: Vault, data: bytes) -> None:
    with vault.session() as session:
        session.device("vda").write(0, data)
        session.snapshot()


def test_what_a_client_wrote_is_there_when_it_comes_back(vault: Vault, exports: Exports) -> None:
    for name in ("main/vda", "main~0/vda"):  # one that is listed, one that is not
        write(exports, name, b"cow")
        move_on(vault, b"two")
        assert read(exports, name) == b"cow"


def test_what_is_listed_means_what_it_meant_at_the_start(vault: Vault, exports: Exports) -> None:
    move_on(vault, b"two")
    assert read(exports, "main/vda") == b"one"
    assert read(exports, "main~0/vda") == b"two"


def test_clients_of_one_name_have_one_layer(vault: Vault, exports: Exports) -> None:
    first = attach(exports, "main~0/vda")
    move_on(vault, b"two")
    second = attach(exports, "main~0/vda")
    assert second.device is first.device
    exports.release(first)
    exports.release(second)


def test_what_was_written_by_another_name_of_an_open_state_stays(
    vault: Vault, exports: Exports
) -> None:
    """Whoever joins an open layer has it by the name that he came by."""
    first = attach(exports, "main/vda")
    write(exports, "main~0/vda", b"cow")
    second = attach(exports, "main~0/vda")
    assert second.device is first.device
    exports.release(first)
    move_on(vault, b"two")
    third = attach(exports, "main~0/vda")
    assert third.device is second.device
    exports.release(second)
    exports.release(third)
    assert read(exports, "main~0/vda") == b"cow"


def test_a_name_has_one_meaning_however_clients_interleave(vault: Vault, exports: Exports) -> None:
    before = exports.find("main~0/vda")
    move_on(vault, b"two")
    after = exports.find("main~0/vda")
    first = exports.attach(before)
    with pytest.raises(Busy, match="ask for it again"):
        exports.attach(after)
    second = attach(exports, "main~0/vda")
    assert second.device is first.device
    exports.release(first)
    exports.release(second)
    exports.release(exports.attach(after))


def test_a_name_that_nobody_wrote_to_follows_its_branch(vault: Vault, exports: Exports) -> None:
    assert read(exports, "main~0/vda") == b"one"
    move_on(vault, b"two")
    assert read(exports, "main~0/vda") == b"two"


def test_all_volumes_of_a_name_are_of_one_state(vault: Vault, exports: Exports) -> None:
    write(exports, "main~0/vdb", b"cow")
    move_on(vault, b"two")
    assert read(exports, "main~0/vda") == b"one"


def test_states_that_were_only_read_leave_nothing_open(vault: Vault, exports: Exports) -> None:
    for number in range(3):
        move_on(vault, str(number).encode())
    assert read(exports, "main~1/vda", 1) == b"1"
    before = os.listdir("/proc/self/fd")
    for number in range(4):
        read(exports, f"main~{number}/vda")
    assert os.listdir("/proc/self/fd") == before


def test_a_layer_that_cannot_be_opened_leaves_no_meaning(
    vault: Vault, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockvault.ops import reading

    move_on(vault, b"new")  # so that it is another state than the one that is offered

    def fails(*arguments: object) -> None:
        raise OSError("no more files")

    with monkeypatch.context() as patched:
        patched.setattr(reading, "open_device", fails)
        with pytest.raises(OSError, match="no more"):
            attach(exports, "main~0/vda")
    move_on(vault, b"two")
    assert read(exports, "main~0/vda") == b"two"


def test_what_is_offered_is_there_though_its_history_was_pruned(
    vault: Vault, exports: Exports
) -> None:
    move_on(vault, b"two")
    move_on(vault, b"new")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    gc.collect(vault)
    for _ in range(2):  # the layer that nobody wrote to goes with its client
        assert read(exports, "main/vda") == b"one"
    assert [name for name, _ in exports.listing()] == ["main/vda", "main/vdb"]


@pytest.mark.parametrize("offered", ["main", "HEAD", "@", "heads/main"])
def test_all_spellings_of_an_offered_branch_are_one_copy(vault: Vault, offered: str) -> None:
    catalogue = VaultCatalogue(vault, {}, [offered], copy_on_write=True, only_listed=True)
    exports = Exports(catalogue)
    move_on(vault, b"two")
    first = attach(exports, "main/vda")
    for name in ("@", "HEAD", "heads/main"):
        assert attach(exports, f"{name}/vda").device is first.device
    vault.create_branch("other", "main")
    vault.switch("other")
    for name in {"@", "HEAD"} - {offered}:
        assert attach(exports, f"{name}/vda").device is first.device, "it came by this name before"
    for name in ("other", "heads/other", "heads/v1", "main~0"):
        with pytest.raises(NotFound, match="not offered"):
            exports.find(f"{name}/vda")
    catalogue.close()


def test_the_current_branch_is_the_one_that_is_current_when_a_client_asks(
    vault: Vault, exports: Exports
) -> None:
    vault.create_branch("other", "main")
    vault.switch("other")
    with vault.session("other") as session:
        session.device("vda").write(0, b"two")
    assert read(exports, "@/vda") == b"two"
    assert read(exports, "main/vda") == b"one"
