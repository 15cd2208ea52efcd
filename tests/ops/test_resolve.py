"""Revisions: every event, every moment and every name of a history against an oracle."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import blockvault.folding
from blockvault import Vault
from blockvault.errors import BadRequest, NotFound, VaultError
from blockvault.model import events
from blockvault.ops.ingest import Image, import_images
from tests.oracle import BLOCK, noise

SIZE = 20 * BLOCK + 50
START = 1_700_000_000_000_000
Past = dict[int, bytes]


class History:
    """A vault with a known past: what volume ``v`` held after each event of each branch."""

    def __init__(self, vault: Vault, written: dict[int, bytes]) -> None:
        self.vault = vault
        self.written = written
        self.past: dict[int, Past] = {}
        self.points: dict[int, set[int]] = {}
        self.times: dict[int, list[tuple[int, int]]] = {}

    def replay(self) -> None:
        """The oracle: the log applied to bytes, one event after the other."""
        for logged in self.vault.events():
            event, seq = logged.event, logged.seq
            branch = seq if isinstance(event, events.BranchCreated) else getattr(event, "branch", 0)
            if isinstance(event, events.BranchCreated):
                source = self.past.get(event.source, {})
                self.past[seq] = {seq: _before(source, event.source_seq)}
            elif isinstance(event, events.Wrote):
                self._change(branch, seq, event.offset, self.written[seq])
            elif isinstance(event, events.Zeroed | events.Trimmed):
                self._change(branch, seq, event.offset, bytes(event.length))
            elif isinstance(event, events.RolledBack):
                self.past[branch][seq] = _before(self.past[event.target_branch], event.target_seq)
            elif isinstance(event, events.VolumeChanged):
                self.past[branch][seq] = bytes(SIZE)
            elif isinstance(event, events.Barrier | events.Checkpointed | events.Snapshotted):
                self.past[branch][seq] = _before(self.past[branch], seq)
            else:
                continue
            if not isinstance(event, events.Wrote | events.Zeroed | events.Trimmed):
                self.points.setdefault(branch, set()).add(seq)
            self.times.setdefault(branch, []).append((logged.time_us, seq))

    def _change(self, branch: int, seq: int, offset: int, data: bytes) -> None:
        old = _before(self.past[branch], seq)
        self.past[branch][seq] = old[:offset] + data + old[offset + len(data) :]


def _before(past: Past, seq: int) -> bytes:
    """What was there after the last event at or before ``seq``."""
    return past[max(at for at in past if at <= seq)] if past else b""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """Two branches that write in turn, commits with and without barriers, a rollback."""
    with pytest.MonkeyPatch.context() as patch:
        clock = [START]
        patch.setattr(events, "now_us", lambda: clock.__setitem__(0, clock[0] + 1000) or clock[0])
        patch.setattr(blockvault.folding, "CHECKPOINT_BLOCKS", 12)
        with Vault.create(tmp_path_factory.mktemp("history")) as vault:
            made = History(vault, _live(vault, clock))
            made.replay()
            yield made


def _live(vault: Vault, clock: list[int]) -> dict[int, bytes]:
    """Do everything; return what was written by the event that recorded it."""
    writes: list[tuple[int, bytes]] = []

    def write(session: blockvault.session.Session, number: int) -> None:
        data = noise(number, 1 + number * 397 % (3 * BLOCK))
        offset = number * 3001 % (SIZE - len(data))
        session.device().write(offset, data)
        writes.append((session.branch.id, data))
        clock[0] += 5_000_000

    with vault.session() as session:
        session.create_volume("v", SIZE)
        for number in range(12):
            write(session, number)
            if number % 3 == 2:
                session.commit(barrier=number % 2 == 0)
            if number == 7:
                session.device().trim(2 * BLOCK, 4 * BLOCK)
                session.snapshot("seven")
    vault.create_branch("other", "main@{#9}")
    with vault.session() as main, vault.session("other") as other:
        for number in range(20, 32):
            write(main if number % 2 else other, number)
            if number % 4 == 3:
                (main if number % 8 == 3 else other).flush()
            if number % 5 == 4:
                main.commit(barrier=False)
        main.snapshot("two")
        other.snapshot("three")
    vault.rollback("main", "main~1")
    with vault.session() as session:
        for number in range(40, 46):
            write(session, number)
            session.commit(barrier=False)
            write(session, number + 10)
    written: dict[int, bytes] = {}
    queues = {branch: [data for at, data in writes if at == branch] for branch, _ in writes}
    for logged in vault.events():
        if isinstance(logged.event, events.Wrote):
            written[logged.seq] = queues[logged.event.branch].pop(0)
    assert not any(queues.values())
    return written


def read(vault: Vault, rev: str, *, exact: bool = False) -> bytes:
    position = vault.resolve(rev, exact=exact)
    return vault.device(rev, "v", exact=exact).read(0, SIZE) if position.volumes else b""


def test_every_event_is_a_state(history: History) -> None:
    """With ``exact`` each event's own; without, the last one that a disk could have shown."""
    vault, last = history.vault, max(logged.seq for logged in history.vault.events())
    for row in vault.branches():
        past, points = history.past[row.id], history.points[row.id]
        for seq in range(row.id, last + 1):
            rev = f"{row.name}@{{#{seq}}}"
            assert read(vault, rev, exact=True) == _before(past, seq), rev
            point = max(at for at in points if at <= seq)
            assert vault.resolve(rev).seq == point, rev
            assert read(vault, rev) == _before(past, point), rev


def test_a_branch_goes_on_in_what_it_came_from(history: History) -> None:
    vault = history.vault
    other, main = vault.branch("other"), vault.branch("main")
    for seq in range(main.id, 10):
        rev = f"other@{{#{seq}}}"
        assert read(vault, rev, exact=True) == _before(
            history.past[main.id], min(seq, other.source_seq)
        )
    assert read(vault, f"other@{{#{other.id - 1}}}", exact=True) == _before(
        history.past[main.id], other.source_seq
    )
    with pytest.raises(NotFound, match="began at event 2"):
        vault.resolve("other@{#1}")
    with pytest.raises(NotFound, match="ends at event"):
        vault.resolve("main@{#100000}")


def test_every_moment_is_a_state(history: History) -> None:
    vault = history.vault
    main = vault.branch("main").id
    times = history.times[main]
    for at, _ in times:
        for moment in (at - 1, at):
            before = [seq for when, seq in times if when <= moment]
            text = datetime.fromtimestamp(moment // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            rev = f"main@{{{text}.{moment % 1_000_000:06}Z}}"
            if not before:
                with pytest.raises(NotFound, match="began after"):
                    vault.resolve(rev)
                continue
            assert read(vault, rev, exact=True) == history.past[main][max(before)], rev
            point = max(seq for seq in history.points[main] if seq <= max(before))
            assert vault.resolve(rev).seq == point
    assert vault.resolve("main@{now}").seq == vault.branch("main").seq


def test_moments_after_a_clock_that_was_ahead(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times never go back, so nobody knows when what came later was recorded."""
    now = start = events.now_us()
    monkeypatch.setattr(events, "now_us", lambda: now)
    snapshot(vault, "one")
    vault.create_branch("idle", "main")
    now = start + 60_000_000
    snapshot(vault, "two")
    now = start + 3600_000_000
    ahead = vault.branch().seq + 1
    snapshot(vault, "ahead")
    now = start + 300_000_000
    snapshot(vault, "mended")
    assert vault.open_volume("main@{4 minutes 30 seconds ago}").read(3) == b"one"
    assert vault.open_volume("idle@{now}").read(3) == b"one"
    for text in ("main@{1 minute ago}", "main@{now}"):
        with pytest.raises(NotFound, match=f"clock was ahead when event {ahead} "):
            vault.resolve(text)
    now = start + 3600_000_000
    assert vault.open_volume("main@{now}").read(6) == b"mended"
    assert vault.open_volume("main@{1 minute ago}").read(3) == b"two"


@pytest.mark.parametrize("source", ["main", "young", ""])
def test_moments_of_a_branch_that_was_made_while_the_clock_was_ahead(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Whether it was there at a moment, or was to come from what was there, nobody knows."""
    now = start = events.now_us()
    monkeypatch.setattr(events, "now_us", lambda: now)
    snapshot(vault, "one")
    now = start + 60_000_000
    vault.create_branch("young", "main")
    now = start + 3600_000_000
    if source:
        vault.create_branch("test", source)
    else:
        import_images(vault, [Image(raw_image(vault), "v")], branch="test")
    now = start + 300_000_000
    with vault.session("test") as session:
        session.device("v").write(0, b"two")
        session.snapshot("two")
    vault.create_branch("grandchild", "test")
    for branch in ("test", "grandchild"):
        beginning = vault.branch(branch).id
        for text in ("1 minute ago", "now"):
            with pytest.raises(NotFound, match=f"clock was ahead when event {beginning} "):
                vault.resolve(f"{branch}@{{{text}}}")
    assert vault.open_volume("young@{now}").read(3) == b"one"
    now = start + 3600_000_000
    assert vault.open_volume("test@{now}").read(3) == b"two"
    if source:
        assert vault.open_volume("test@{59 minutes 30 seconds ago}").read(3) == b"one"


def raw_image(vault: Vault) -> Path:
    path = vault.path.with_name("disk.raw")
    path.write_bytes(noise(7, SIZE))
    return path


def test_a_clock_that_jumped_within_one_commit(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = start = events.now_us()
    monkeypatch.setattr(events, "now_us", lambda: now)
    snapshot(vault, "one")
    with vault.session() as session:
        session.device().write(0, b"two")
        now = start + 3600_000_000
        session.device().write(BLOCK, b"ahead")
        session.commit(barrier=False)
        now = start + 60_000_000
        ahead = vault.branch().seq
        with pytest.raises(NotFound, match=f"clock was ahead when event {ahead} "):
            vault.resolve("main@{now}")
        now = start + 3600_000_000
        assert vault.resolve("main@{now}", exact=True).seq == ahead


def test_snapshots_by_steps(history: History) -> None:
    vault = history.vault
    log = [made.message for made in vault.log("main")]
    assert log == ["seven"], "after the rollback"
    assert next(vault.log("other")).message == "three"
    first = vault.resolve("main~0")
    assert first.snapshot == first.tip
    assert read(vault, "main^0") == read(vault, "HEAD~0") == read(vault, "@~0")
    with pytest.raises(NotFound, match="not that long"):
        vault.resolve("main~5")
    with pytest.raises(NotFound):
        vault.resolve("main^2")


def snapshot(vault: Vault, message: str) -> str:
    with vault.session() as session:
        if not session.volumes:
            session.create_volume("v", SIZE)
        session.device("v").write(0, message.encode())
        return session.snapshot(message).id.hex()


def test_names_win_over_ids_and_must_be_clear(vault: Vault) -> None:
    first, second = snapshot(vault, "one"), snapshot(vault, "two")
    assert vault.resolve(second[:8]).snapshot == vault.resolve(second.upper()).snapshot
    vault.create_branch(second[:6], first)
    assert vault.open_volume(second[:6]).read(3) == b"one"
    vault.create_branch("same", first)
    vault.tag("same", second)
    with pytest.raises(NotFound, match="heads/same, tags/same") as refused:
        vault.resolve("same")
    assert refused.value.reason == "ambiguous"
    assert vault.open_volume("heads/same").read(3) == b"one"
    assert vault.open_volume("tags/same").read(3) == b"two"
    with pytest.raises(NotFound, match="no branch"):
        vault.resolve("tags/same@{now}")
    with pytest.raises(BadRequest):
        vault.resolve(second[:3] + "~x")


def test_a_moment_is_of_the_branch_though_a_tag_has_its_name(vault: Vault) -> None:
    """So a state can be named without a look at the tags, and what was named so stays that."""
    vault.tag("main", snapshot(vault, "one"))
    with vault.session() as session:
        session.device().write(0, b"two")
    head = vault.resolve("heads/main")
    assert head.canonical == f"main@{{#{head.seq}}}"
    assert vault.resolve(head.canonical).seq == vault.resolve("main@{now}").seq == head.seq
    assert vault.open_volume(head.canonical).read(3) == b"two"
    with pytest.raises(NotFound, match="heads/main, tags/main"):
        vault.resolve("main~0")


@pytest.mark.parametrize("moment", ["#{seq}", "{time}"])
def test_a_moment_of_a_branch_that_was_deleted_has_a_name_too(vault: Vault, moment: str) -> None:
    """It goes by that of the branch that came from there, by which it was reached."""
    snapshot(vault, "one")
    with vault.session() as session:
        session.device().write(0, b"two")
    (last,) = (logged for logged in vault.events() if logged.seq == vault.branch().seq)
    vault.create_branch("dev")
    vault.switch("dev")
    vault.delete_branch("main")
    time = datetime.fromtimestamp(last.time_us / 1e6, UTC).isoformat()
    found = vault.resolve(f"dev@{{{moment.format(seq=last.seq, time=time)}}}")
    assert (found.name, found.seq) == (None, last.seq)
    assert found.canonical == f"dev@{{#{last.seq}}}"
    assert vault.resolve(found.canonical).seq == last.seq


def test_ids_that_begin_alike(vault: Vault) -> None:
    seen: dict[str, str] = {}
    with vault.session() as session:
        session.create_volume("v", BLOCK)
        for number in range(2000):
            oid = session.snapshot(str(number)).id.hex()
            if oid[:4] in seen:
                break
            seen[oid[:4]] = oid
    other = seen[oid[:4]]
    with pytest.raises(NotFound) as refused:
        vault.resolve(oid[:4])
    assert refused.value.reason == "ambiguous"
    for full in (oid, other):
        length = next(n for n in range(5, 65) if oid[:n] != other[:n])
        assert vault.resolve(full[:length]).snapshot == bytes.fromhex(full)


@pytest.mark.parametrize("text", ["nobody", "dead", "main~1", "main^3", "main@{#0}", "main@{#999}",
                                  "main@{1999-01-01}", "", "main@{}", "main@{-1}", "main~~x",
                                  "a b", "main@{blue moon}", "nobody@{now}"])  # fmt: skip
def test_what_names_nothing(vault: Vault, text: str) -> None:
    snapshot(vault, "one")
    with pytest.raises(VaultError) as refused:
        vault.resolve(text)
    assert isinstance(refused.value, NotFound | BadRequest)


def test_a_volume_must_be_named_when_there_are_several(vault: Vault) -> None:
    snapshot(vault, "one")
    with vault.session() as session:
        session.create_volume("w", 5)
    with pytest.raises(BadRequest) as refused:
        vault.device("main")
    assert refused.value.reason == "which-volume"
    assert vault.device("main", "w").size == 5
    with pytest.raises(NotFound):
        vault.device("main", "x")


def test_a_checkpointed_snapshot_is_still_that_snapshot(vault: Vault) -> None:
    one = snapshot(vault, "one")
    vault.create_branch("again", one)
    assert vault.resolve("again").snapshot == bytes.fromhex(one)
    with vault.session() as session:
        session.device().write(0, b"x")
        session.flush()
        assert vault.resolve("main").snapshot is None
        session.device().write(0, b"o")
        session.checkpoint()
    assert vault.resolve("main").snapshot == bytes.fromhex(one), "the bytes are those again"
