"""Chunks that another process hashes, and those that it does not."""

from __future__ import annotations

import itertools
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.ids import ZERO_ID, object_id
from blockvault.ops import hasher, hashing
from blockvault.ops.hasher import Hasher
from blockvault.ops.hashing import SAME, ZEROS, Other

BLOCK = 64
BLOCKS = 4
LEAF = BLOCK * BLOCKS
SLOTS = 3
CHUNK = 8 * LEAF

MATTERS = st.lists(st.sampled_from([0, 1, 2]), min_size=BLOCKS, max_size=BLOCKS)


def leaf_of(blocks: Sequence[int]) -> bytes:
    return b"".join(bytes([what]) * BLOCK for what in blocks)


def plain(leaf: bytes, before: bytes | None) -> bytes | Other:
    """What ``hashing`` must say of one leaf."""
    if not any(leaf):
        return ZEROS
    if before is not None and object_id(leaf) == object_id(before):
        return SAME
    blocks = [leaf[at : at + BLOCK] for at in range(0, LEAF, BLOCK)]
    ids = [object_id(block) if any(block) else ZERO_ID for block in blocks]
    return Other(object_id(leaf), b"".join(ids))


@given(st.lists(MATTERS, max_size=5), st.lists(MATTERS, max_size=5) | st.none())
def test_of_each_leaf_it_is_said_what_it_is(
    contents: list[list[int]], earlier: list[list[int]] | None
) -> None:
    chunk = b"".join(map(leaf_of, contents))
    known = [leaf_of(blocks) for blocks in earlier or []]
    before = b"".join(map(object_id, known))
    said = hashing.hashed(memoryview(chunk), LEAF, BLOCK, before)
    pairs = itertools.zip_longest(map(leaf_of, contents), known[: len(contents)])
    assert list(hashing.leaves(said, BLOCKS)) == [plain(leaf, was) for leaf, was in pairs]


# -- the other process -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hasher, "_MUCH", 0)


@pytest.fixture
def under_test() -> Iterator[Hasher]:
    with Hasher(SLOTS, CHUNK, LEAF, BLOCK) as made:
        yield made


def chunk(number: int) -> bytes:
    """A chunk with leaves of all kinds: zeros, as before, and others."""
    return b"".join(leaf_of([(number + n) % 3, 0, n, n // 4]) for n in range(8))


def filled(under_test: Hasher, number: int) -> None:
    data = chunk(number)

    def read(into: memoryview) -> None:
        into[:] = data

    before = object_id(data[:LEAF]) + ZERO_ID
    under_test.fill(len(data), before, read)


def right(under_test: Hasher, number: int) -> bool:
    data, said = under_test.answer()
    before = object_id(chunk(number)[:LEAF])
    return data == chunk(number) and said == hashing.hashed(
        memoryview(chunk(number)), LEAF, BLOCK, before
    )


def until_it_helps(under_test: Hasher) -> int:
    """Fill and take until the process is there; return its id."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        filled(under_test, 1)
        _, elsewhere = under_test._asked[-1]
        assert right(under_test, 1)
        if elsewhere:
            assert under_test._helper is not None
            return under_test._helper._process.pid
        time.sleep(0.01)
    raise AssertionError("the process that hashes did not begin within a minute")


def test_the_other_process_says_the_same(under_test: Hasher) -> None:
    until_it_helps(under_test)
    for number in range(30):
        filled(under_test, number)
        if number >= SLOTS - 1:
            assert right(under_test, number - SLOTS + 1)
    assert all(right(under_test, number) for number in (28, 29))


def test_it_helps_who_has_many_files_open(under_test: Hasher) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, limit[1]), limit[1]))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        until_it_helps(under_test)
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_it_is_no_loss_when_it_is_killed(under_test: Hasher) -> None:
    pid = until_it_helps(under_test)
    filled(under_test, 1)
    os.kill(pid, signal.SIGSTOP)
    filled(under_test, 2)
    filled(under_test, 3)
    os.kill(pid, signal.SIGKILL)
    assert all(right(under_test, number) for number in (1, 2, 3))
    for number in range(5):
        filled(under_test, number)
        assert not under_test._asked[-1][1]
        assert right(under_test, number)


def test_what_it_answered_before_it_was_killed_is_no_answer_to_a_later_chunk(
    under_test: Hasher,
) -> None:
    pid = until_it_helps(under_test)
    helper = under_test._helper
    assert helper is not None
    filled(under_test, 1)
    assert select.select([helper._socket], [], [], 20)[0], "the first answer is there"
    os.kill(pid, signal.SIGSTOP)
    filled(under_test, 2)
    filled(under_test, 3)
    os.kill(pid, signal.SIGKILL)
    helper._process.wait()
    assert [right(under_test, number) for number in (1, 2, 3)] == [True, True, True]


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false", ""])
def test_without_an_interpreter_all_is_hashed_here(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with Hasher(SLOTS, CHUNK, LEAF, BLOCK) as alone:
        for number in range(10):
            filled(alone, number)
            assert not alone._asked[-1][1]
            assert right(alone, number)


def test_what_its_interpreter_prints_is_not_put_into_a_chunk(
    under_test: Hasher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(1, b'hello')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    helper = hasher._Helper(under_test._file.fileno())
    try:
        assert helper._socket.recv(hashing.LONGEST) == hashing.READY
    finally:
        helper.close()
    assert not any(under_test._view)


def test_it_ends_with_whom_it_helps() -> None:
    with Hasher(SLOTS, CHUNK, LEAF, BLOCK) as made:
        pid = until_it_helps(made)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


OWNER = """
import sys, time
from tests.ops import test_hasher
from blockvault.ops import hasher

hasher._MUCH = 0
with hasher.Hasher(test_hasher.SLOTS, test_hasher.CHUNK, test_hasher.LEAF, test_hasher.BLOCK) as h:
    print(test_hasher.until_it_helps(h), flush=True)
    time.sleep(600)
"""


def test_it_ends_when_whom_it_helps_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert runs(pid)
        owner.kill()
    end = time.monotonic() + 60
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not runs(pid)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be asked how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_read_that_fails_is_told(under_test: Hasher) -> None:
    until_it_helps(under_test)

    def fails(into: memoryview) -> None:
        raise OSError("no such sector")

    with pytest.raises(OSError, match="sector"):
        under_test.fill(LEAF, b"", fails)
    filled(under_test, 4)
    assert right(under_test, 4)
