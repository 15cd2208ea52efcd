"""Bisection of real histories, against going through every event one by one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, NotFound
from blockvault.model import events
from blockvault.model.bisect import Verdict, steps
from blockvault.model.retention import Policy
from blockvault.model.rows import to_row
from blockvault.ops import bisect, forget, points, prune
from blockvault.ops.bisect import Bisection, Found, Step
from blockvault.ops.snapshots import Logged
from blockvault.ops.statefile import StateFile

SIZE = 64 * 4096


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """main: 3 snapshots, 12 flushes between two, 1 to 5 writes between flushes; then test."""
    draw = random.Random(7)
    with Vault.create(tmp_path_factory.mktemp("vault")) as made:
        with made.session("main") as session:
            session.create_volume("vda", SIZE)
            session.snapshot("empty")
            _work(session, draw)
            session.snapshot("one")
            _work(session, draw)
        made.create_branch("test", "main")
        with made.session("main") as session:
            session.device().write(0, b"not on the line")
            session.flush()
        # One record that holds several barriers, as flushes of several clients make it.
        with made.transaction() as transaction:
            number = made.branch("test").id
            for _ in range(6):
                transaction.add(events.Zeroed(branch=number, volume="vda", offset=0, length=4096))
                transaction.add(events.Barrier(branch=number))
        with made.session("test") as session:
            _work(session, draw)
            session.snapshot("two")
            _work(session, draw)
        yield made


def _work(session, draw: random.Random) -> None:
    for _ in range(12):
        for _ in range(draw.randint(1, 5)):
            session.device().write(draw.randrange(60) * 4096, draw.randbytes(4096))
        session.flush()


def judged(vault: Vault, search: Bisection, judge: Callable[[int], Verdict]) -> tuple[Found, int]:
    """The answer, and how many states were looked at."""
    count = 0
    while isinstance(now := bisect.step(vault, search), Step):
        assert bisect.position(vault, search, now.seq).seq == now.seq
        search, count = bisect.mark(vault, search, now.seq, judge(now.seq)), count + 1
    return now, count


def from_on(first_bad: int) -> Callable[[int], Verdict]:
    return lambda seq: Verdict.BAD if seq >= first_bad else Verdict.GOOD


def code(logged: Logged) -> int:
    return to_row(logged.event, 0)[0]


def on_the_line(vault: Vault, good: int, bad: int) -> list[Logged]:
    """The events that made what 'test' is, the plain way: all of them, then a choice."""
    test, main = vault.branch("test").id, vault.branch("main").id
    wanted = events.DATA_CODES | events.WAYPOINT_CODES
    found = []
    for logged in vault.events(since=good + 1, until=bad):
        owner = getattr(logged.event, "branch", logged.seq)
        if code(logged) in wanted and owner == (main if logged.seq < test else test):
            found.append(logged)
    return found


def test_every_event_can_be_found(vault: Vault, nightly: bool) -> None:
    search = bisect.start(vault, "main~1", "test", exact=True)
    line = [logged.seq for logged in on_the_line(vault, search.good, search.bad)]
    assert len(line) > 100
    for first_bad in line if nightly else line[::5]:
        found, count = judged(vault, search, from_on(first_bad))
        before = [search.good, *line][line.index(first_bad)]
        assert found == Found("event", before, first_bad, ())
        assert count <= steps(len(line)) + 6  # each level may round up once


def test_every_flush_can_be_found(vault: Vault, nightly: bool) -> None:
    search = bisect.start(vault, "main~1", "test")
    consistent = events.WAYPOINT_CODES | {events.BARRIER}
    line = on_the_line(vault, search.good, search.bad)
    flushes = [logged.seq for logged in line if code(logged) in consistent]
    for first_bad in [logged.seq for logged in (line if nightly else line[::7])]:
        found, _ = judged(vault, search, from_on(first_bad))
        want = min((seq for seq in flushes if seq >= first_bad), default=search.bad)
        assert found.bad == want
        assert found.good == max((s for s in flushes if s < want), default=search.good)


def test_snapshots_come_first_and_few_records_are_read(vault: Vault, monkeypatch) -> None:
    search = bisect.start(vault, "main~1", "test", exact=True)
    read: list[int] = []
    real = points._in_record
    monkeypatch.setattr(
        points,
        "_in_record",
        lambda v, b, first, codes: read.append(first) or real(v, b, first, codes),
    )
    levels = []
    while isinstance(now := bisect.step(vault, search), Step):
        levels.append(now.level)
        search = bisect.mark(vault, search, now.seq, from_on(search.bad - 9)(now.seq))
    order = ["snapshot", "barrier", "event"]
    assert levels == sorted(levels, key=order.index)
    assert set(levels) == set(order)
    assert len(set(read)) <= 4


def test_what_was_skipped_is_suspected(vault: Vault) -> None:
    search = bisect.start(vault, "main~1", "test", exact=True)
    line = [logged.seq for logged in on_the_line(vault, search.good, search.bad)]
    hidden = line[40:45]

    def judge(seq: int) -> Verdict:
        return Verdict.SKIP if seq in hidden else from_on(hidden[2])(seq)

    found, _ = judged(vault, search, judge)
    assert found == Found("event", line[39], line[45], tuple(hidden))


def test_what_was_skipped_before_a_cut_is_suspected(tmp_path: Path) -> None:
    """Of what is before it only states of snapshots are left, and only some levels list them."""
    with Vault.create(tmp_path) as vault:
        with vault.session("main") as session:
            session.create_volume("vda", SIZE)
            made = [session.snapshot(str(number)) for number in range(4)]
        seqs = [vault.resolve(each.id.hex()).seq for each in made]
        forget.execute(vault, prune.plan(vault, Policy(last=4, events=0)))
        search = bisect.start(vault, f"main@{{#{seqs[0]}}}", f"main@{{#{seqs[2]}}}")
        found, _ = judged(vault, search, lambda _: Verdict.SKIP)
        assert found == Found("barrier", seqs[0], seqs[2], (seqs[1],))


def test_a_tag_with_the_name_of_the_branch(vault: Vault) -> None:
    vault.tag("test", "main~0")
    try:
        search = bisect.start(vault, "main~1", "heads/test", exact=True)
        line = [logged.seq for logged in on_the_line(vault, search.good, search.bad)]
        found, _ = judged(vault, search, from_on(line[50]))
        assert (found.good, found.bad) == (line[49], line[50])
    finally:
        vault.delete_tag("test")


def test_it_goes_on_from_its_file(vault: Vault) -> None:
    search = bisect.start(vault, "main~1", "test", exact=True)
    for verdict in Verdict:
        now = bisect.step(vault, search)
        search = bisect.mark(vault, search, now.seq, verdict)
    assert bisect.load(vault) == search
    bisect.reset(vault.path)
    bisect.reset(vault.path)
    with pytest.raises(NotFound) as caught:
        bisect.load(vault)
    assert caught.value.reason == "no-bisection"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"version": 2}', '{"version": 1, "marks": 3}',
     pytest.param("[" * 100_000, id="deep")],
)  # fmt: skip
def test_a_file_that_cannot_be_read(vault: Vault, text: str) -> None:
    (vault.path / bisect.FILE_NAME).write_text(text)
    with pytest.raises(BadRequest, match="reset"):
        bisect.load(vault)


@pytest.mark.parametrize(("good", "bad"), [("main", "main~0"), ("main", "main"), ("main", "test")])
def test_ends_that_make_no_sense(vault: Vault, good: str, bad: str) -> None:
    """Later than the bad end, the same, or on another line: main went on after test began."""
    bisect.reset(vault.path)
    with pytest.raises(BadRequest):
        bisect.start(vault, good, bad)
    with pytest.raises(NotFound):
        bisect.load(vault)


def test_a_state_file_is_every_state_and_writes_what_differs(vault: Vault, tmp_path: Path) -> None:
    search = bisect.start(vault, "main~1", "test", exact=True)
    file = StateFile(vault, tmp_path / "state")
    seqs = [logged.seq for logged in on_the_line(vault, search.good, search.bad)]
    draw = random.Random(3)
    for turn, seq in enumerate(draw.sample(seqs, 40)):
        device = vault.device(f"test@{{#{seq}}}", exact=True)
        file.show(device)
        assert file.path.read_bytes() == device.read(0, SIZE)
        if turn % 5 == 0:
            with open(file.path, "r+b") as spoiled:  # as a repair does, of the same length
                spoiled.seek(4096)
                spoiled.write(os.urandom(100))
        if turn == 13:
            file.path.unlink()
    before = file.written
    file.show(device)
    last = vault.device(f"test@{{#{seqs[-1]}}}")
    file.show(last)
    file.show(last)
    at = file.written
    one = next(s.seq for s in reversed(on_the_line(vault, 0, seqs[-1])) if code(s) == events.WROTE)
    file.show(vault.device(f"test@{{#{one - 1}}}", exact=True))
    file.written = 0
    file.show(vault.device(f"test@{{#{one}}}", exact=True))
    assert file.written == 4096
    assert at >= before
