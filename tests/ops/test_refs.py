"""Names: what each operation allows, refuses, and leaves in the history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, NotFound
from blockvault.ops import rebuild
from tests.oracle import BLOCK


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """main with snapshots one and two, and a flushed write after them."""
    with Vault.create(tmp_path) as made:
        with made.session() as session:
            head = session.create_volume("v", 9 * BLOCK)
            for text in ("one", "two"):
                head.write(0, text.encode())
                session.snapshot(text)
            head.write(0, b"new")
        yield made
        assert rebuild.rebuild(made, dry_run=True).changed_rows == 0


def read(vault: Vault, rev: str) -> bytes:
    return vault.open_volume(rev).read(3)


def test_branches_begin_anywhere(vault: Vault) -> None:
    for number, (rev, text) in enumerate(
        [("main", b"new"), ("main~0", b"two"), ("main~1", b"one"), ("main@{now}", b"new")]
    ):
        made = vault.create_branch(f"b{number}", rev)
        assert (made.source, read(vault, made.name)) == (vault.branch("main").id, text)
    assert [branch.name for branch in vault.branches()] == ["b0", "b1", "b2", "b3", "main"]
    assert vault.resolve("b1").snapshot == vault.resolve("main~0").snapshot


def test_writes_to_a_branch_stay_there(vault: Vault) -> None:
    vault.create_branch("b", "main~1")
    with vault.session("b") as session:
        session.device().write(0, b"bbb")
        session.snapshot("b")
    assert [read(vault, rev) for rev in ("b", "main", "main~0")] == [b"bbb", b"new", b"two"]
    assert [made.message for made in vault.log("b")] == ["b", "one"]


def test_rollback_and_its_undoing(vault: Vault) -> None:
    before = vault.branch("main").seq
    assert vault.rollback("main", "main~1") == before
    now = vault.resolve("main")
    assert (read(vault, "main"), now.snapshot) == (b"one", vault.resolve("main~0").snapshot)
    assert [made.message for made in vault.log()] == ["one"]
    assert read(vault, f"main@{{#{before}}}") == b"new"
    vault.rollback("main", f"main@{{#{before}}}")
    assert read(vault, "main") == b"new"
    assert [made.message for made in vault.log()] == ["two", "one"]
    kinds = [move.kind for move in vault.reflog()]
    assert kinds == ["rollback", "rollback", "snapshot", "snapshot", "volume", "branch"]


def test_a_rollback_leaves_a_point_of_what_was_never_flushed(vault: Vault) -> None:
    session = vault.session()
    session.device().write(0, b"raw")
    session.commit(barrier=False)
    session._lease.release()  # the end of its process
    left = vault.branch("main").seq
    before = vault.rollback("main", "main~1")
    assert (before, read(vault, f"main@{{#{before}}}")) == (left + 1, b"raw")
    vault.rollback("main", f"main@{{#{before}}}")
    assert read(vault, "main") == b"raw"


def test_tags_of_snapshots_and_of_heads(vault: Vault) -> None:
    two = vault.tag("two", "main~0")
    assert two.snapshot == vault.resolve("main~0").snapshot
    head = vault.tag("head")
    made = vault.get_snapshot(head.snapshot)
    assert made.parents == (two.snapshot,)
    assert [found.message for found in vault.log("head")][1:] == ["two", "one"]
    with vault.session() as session:
        session.device().write(0, b"xxx")
    assert [read(vault, rev) for rev in ("head", "two", "main")] == [b"new", b"two", b"xxx"]
    with pytest.raises(Conflict):
        vault.tag("two", "main~1")
    vault.tag("two", "main~1", force=True)
    assert read(vault, "two") == b"one"
    vault.delete_tag("two")
    with pytest.raises(NotFound):
        vault.delete_tag("two")
    assert [tag.name for tag in vault.tags()] == ["head"]


def test_a_branch_from_a_tagged_head_and_a_rollback_to_it(vault: Vault) -> None:
    vault.tag("t")
    vault.rollback("main", "main~1")
    vault.create_branch("b", "t")
    assert read(vault, "b") == b"new"
    vault.rollback("main", "t")
    assert read(vault, "main") == b"new"
    with vault.session("b") as session:
        assert session.snapshot("b").parents == (vault.tags()[0].snapshot,)


def test_renaming_moves_the_name_only(vault: Vault) -> None:
    seq = vault.branch("main").seq
    vault.rename_branch("main", "trunk")
    assert (vault.head, vault.branch("trunk").seq) == ("trunk", seq)
    vault.create_branch("main", "trunk~1")
    for old, new, kind in (
        ("trunk", "main", Conflict),
        ("nobody", "x", NotFound),
        ("trunk", "a b", BadRequest),
        ("trunk", "HEAD", BadRequest),
    ):
        with pytest.raises(kind):
            vault.rename_branch(old, new)
    assert [read(vault, name) for name in ("trunk", "main")] == [b"new", b"one"]


def test_a_branch_that_is_written_keeps_its_name(vault: Vault) -> None:
    with vault.session("main"), pytest.raises(Busy, match="written"):
        vault.rename_branch("main", "trunk")
    vault.rename_branch("main", "trunk")
    assert [branch.name for branch in vault.branches()] == ["trunk"]


def test_deleting_and_restoring(vault: Vault) -> None:
    vault.create_branch("b", "main~1")
    with pytest.raises(Conflict) as refused:
        vault.delete_branch("main")
    assert refused.value.reason == "branch-current"
    vault.switch("b")
    vault.delete_branch("main")
    with pytest.raises(NotFound):
        vault.resolve("main")
    with pytest.raises(NotFound):
        vault.switch("main")
    assert [branch.name for branch in vault.branches(deleted=True)] == ["b", "main"]
    vault.create_branch("main", "b")
    with pytest.raises(Conflict):
        vault.restore_branch("main")
    vault.rename_branch("main", "other")
    vault.restore_branch("main")
    assert [read(vault, name) for name in ("main", "other", "b")] == [b"new", b"one", b"one"]
    with pytest.raises(NotFound):
        vault.restore_branch("nobody")


def test_the_branch_that_was_deleted_last_is_restored(vault: Vault) -> None:
    """Not the one that was created last, of two that were deleted under one name."""
    vault.create_branch("older", "main~1")
    vault.create_branch("x", "main~0")
    vault.delete_branch("x")
    vault.rename_branch("older", "x")
    vault.delete_branch("x")
    vault.restore_branch("x")
    assert read(vault, "x") == b"one"
    vault.rename_branch("x", "older")
    vault.restore_branch("x")
    assert read(vault, "x") == b"two"


def test_a_branch_comes_back_beside_the_one_that_has_its_name(vault: Vault) -> None:
    vault.create_branch("vm", "main~1")
    vault.delete_branch("vm")
    vault.create_branch("vm", "main~0")
    for taken in (None, "main"):
        with pytest.raises(Conflict):
            vault.restore_branch("vm", taken)
    with pytest.raises(BadRequest):
        vault.restore_branch("vm", "a b")
    vault.restore_branch("vm", "old")
    assert [read(vault, name) for name in ("vm", "old")] == [b"two", b"one"]


@pytest.mark.parametrize("name", ["", "a b", "a..b", "a~1", "x:y", "HEAD", "-x", "a/", "@{x"])
def test_names_that_are_none(vault: Vault, name: str) -> None:
    seq = vault.branch().seq
    with pytest.raises(BadRequest):
        vault.create_branch(name)
    with pytest.raises(BadRequest):
        vault.tag(name)
    assert vault.branch().seq == seq
