"""Pruning what is long: every step takes time in proportion to the snapshots or the records."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from blockvault.errors import NotFound
from blockvault.ids import short
from blockvault.model import events, projections
from blockvault.model.retention import Policy
from blockvault.model.snapshot import Snapshot
from blockvault.ops import attachments, base, check, forget, gc, policy, prune, rebuild, refs
from blockvault.ops.compose import Source, compose
from blockvault.ops.positions import Position
from blockvault.ops.turns import Turns
from blockvault.store.eventlog import Record
from blockvault.vault import Vault


def add_line(vault: Vault, count: int) -> list[bytes]:
    """Snapshots that follow each other on the current branch, recorded in one commit."""
    made: list[bytes] = []
    branch = vault.branch()
    with vault.guard(), vault.transaction() as transaction:
        objects = vault.new_objects()
        for number in range(count):
            snapshot = Snapshot(
                parents=tuple(made[-1:]),
                volumes=(),
                message=f"{number}",
                time_us=transaction.time_us,
                seq=branch.seq + number,
            )
            objects.add_node(snapshot.encode())
            transaction.add(events.Snapshotted(branch=branch.id, volumes=(), snapshot=snapshot.id))
            made.append(snapshot.id)
        transaction.add_frames(objects.finish())
    return made


def write(vault: Vault, branch: str, data: bytes, *, snapshot: bool = True) -> int:
    """Write to volume ``v``; return the event after which it holds that."""
    with vault.session(branch) as session:
        if not session.volumes:
            session.create_volume("v", 10)
        session.device("v").write(0, data)
        if snapshot:
            session.snapshot(data.decode())
        else:
            session.flush()
    return vault.branch(branch).seq


def test_a_long_line_is_forgotten(vault: Vault) -> None:
    """There are more snapshots in a row than calls can be nested."""
    made = add_line(vault, 1500)
    vault.tag("first", made[0].hex())
    done = forget.execute(vault, prune.plan(vault, Policy(last=3, events=0)))
    assert set(done.snapshots) == set(made[1:-3])
    gc.collect(vault)
    assert [snapshot.id for snapshot in vault.log()] == [*made[:-4:-1], made[0]]
    assert not check.verify(vault).problems
    assert rebuild.rebuild(vault).changed_rows == 0


CONFIGURED = {"machine.json": b"{}"}


def configured(vault: Vault) -> bytes:
    """A machine's branch, and snapshots of its disks alone behind its configuration."""
    made = compose(vault, "web", [Source("v", size=1 << 20)], CONFIGURED)
    for text in (b"one", b"two", b"three"):
        write(vault, "web", text)
    return made.id


def config(vault: Vault) -> bytes | None:
    found = attachments.inherited(vault, vault.resolve("web"), "machine.json")
    return found and attachments.content(vault, found.attachments, "machine.json")


def test_what_a_machine_is_stays_with_its_newest_disks(vault: Vault) -> None:
    made = configured(vault)
    plan = prune.plan(vault, Policy(last=1, events=0))
    (why,) = [each.reasons for each in plan.verdicts if each.snapshot.id == made]
    assert why == (f"files of {short(vault.resolve('web~0').snapshot or b'')}",)
    assert len(forget.execute(vault, plan).snapshots) == 2
    gc.collect(vault)
    assert config(vault) == b"{}"
    assert not check.verify(vault).problems


def test_files_stay_for_what_got_a_name_since_the_plan(vault: Vault) -> None:
    made = configured(vault)
    with vault.session("web") as session:
        session.snapshot("files of its own", attachments=vault.get_snapshot(made).attachments)
    plan = prune.plan(vault, Policy(last=1, events=0))
    assert made in plan.forgotten
    vault.create_branch("other", "web~1")
    forget.execute(vault, plan)
    gc.collect(vault)
    found = attachments.inherited(vault, vault.resolve("other"), "machine.json")
    assert found is not None
    assert not check.verify(vault).problems


def test_files_of_each_name_stay(vault: Vault) -> None:
    configured(vault)
    with vault.session("web") as session, vault.guard():
        session.snapshot("notes", attachments=attachments.keep(vault, {"notes": b"n"}))
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    gc.collect(vault)
    assert config(vault) == b"{}"


def test_files_stay_for_what_was_recorded_since_the_plan(vault: Vault) -> None:
    made = configured(vault)
    at = write(vault, "web", b"unnamed", snapshot=False)
    with vault.session("web") as session:
        session.device("v").write(0, b"own")
        session.snapshot("own", attachments=vault.get_snapshot(made).attachments)
    plan = prune.plan(vault, Policy(last=1, events=0))
    assert made in plan.forgotten
    vault.rollback("web", f"web@{{#{at}}}")
    write(vault, "web", b"new")
    forget.execute(vault, plan)
    gc.collect(vault)
    assert config(vault) == b"{}"


def test_what_is_held_since_the_plan_may_stand_on_what_is_gone(tmp_path: Path) -> None:
    """Nothing is read of what an earlier prune took."""
    keep = Policy(last=1, events=0)
    with Vault.create(tmp_path / "gone") as vault:
        write(vault, "main", b"zero")
        write(vault, "main", b"one")
        forget.execute(vault, prune.plan(vault, keep))
        gc.collect(vault)
    with Vault.open(tmp_path / "gone") as vault:
        one = vault.resolve("main~0").snapshot
        assert one is not None
        write(vault, "main", b"two")
        plan = prune.plan(vault, keep)
        policy.hold(vault, one.hex())
        assert not forget.execute(vault, plan).snapshots


def test_what_stood_on_a_snapshot_that_goes(vault: Vault) -> None:
    made = add_line(vault, 5)
    vault.tag("kept", made[3].hex())
    vault.create_branch("b", made[2].hex())
    with vault.session("b") as session:
        session.create_volume("v", 10)
        tip = session.snapshot().id
    plan = prune.plan(vault, Policy(last=1, events=0))
    found = {each.snapshot.id: set(each.dependents) for each in plan.verdicts if not each.kept}
    stand_on_it = {"branch b", f"snapshot {short(made[3])}", f"snapshot {short(tip)}"}
    assert found == {made[0]: set(), made[1]: set(), made[2]: stand_on_it}


def test_forgotten_records_become_gaps_many_in_a_transaction(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two writes to another branch lies a gap: so many commits would take long."""
    write(vault, "main", b"first")
    vault.create_branch("other", "main")
    for number in range(30):
        write(vault, "main", b"%d" % number, snapshot=False)
        write(vault, "other", b"%d" % number, snapshot=False)
    write(vault, "main", b"last")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0), "main"))
    found = base.find(vault)
    assert found is not None
    assert len(found.forgotten) >= 30
    commits = []
    turn = Turns.write
    monkeypatch.setattr(Turns, "write", lambda turns: commits.append(1) or turn(turns))
    collection = gc.Collection(vault)
    collection.forget_records()
    assert len(commits) == 1
    with vault.read() as reader:
        gaps = [(r.first_seq, r.last_seq + 1) for r in reader.records() if r.pruned]
    assert gaps == found.forgotten, "each is one gap, and what was kept lies between them"
    assert collection.forget_records() == 0
    assert len(commits) == 2
    assert not check.verify(vault).problems


def test_long_runs_of_forgotten_records_take_several_transactions(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "_RECORDS_A_COMMIT", 4)
    for number in range(12):
        write(vault, "main", b"%d" % number, snapshot=False)
    write(vault, "main", b"last")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    found = base.find(vault)
    assert found is not None
    assert gc.Collection(vault).forget_records() >= 12
    with vault.read() as reader:
        gaps = [(r.first_seq, r.last_seq + 1) for r in reader.records() if r.pruned]
    assert gaps == found.forgotten


def test_a_plan_that_another_prune_has_overtaken_takes_no_cut_back(vault: Vault) -> None:
    write(vault, "main", b"one")
    write(vault, "main", b"two")
    early = prune.plan(vault, Policy(last=1, events=0))
    write(vault, "main", b"three")
    late = prune.plan(vault, Policy(last=1, events=0))
    assert set(forget.execute(vault, late).snapshots) > set(early.forgotten)
    with vault.read() as reader:
        before = projections.cut(reader, vault.branch().id)
    assert before is not None
    assert before.seq > early.cuts[0].seq
    logged = list(vault.events())
    for overtaken in (early, late):
        assert forget.execute(vault, overtaken) == (0, (), (), (), ())
    assert list(vault.events()) == logged
    with vault.read() as reader:
        assert projections.cut(reader, vault.branch().id) == before
    gc.collect(vault)
    assert not check.verify(vault).problems


def plan_with(vault: Vault, **policies: Policy) -> prune.Plan:
    """What a prune by these policies would do; ``all`` is that of all other branches."""
    for name, chosen in policies.items():
        policy.set_policy(vault, None if name == "all" else name, chosen)
    return prune.plan(vault)


ANY_TAG, NO_TAG = Policy(last=1, events=0), Policy(last=1, events=0, tags=("none",))


def test_a_tag_goes_by_the_policy_of_its_branch(vault: Vault) -> None:
    made = add_line(vault, 4)
    vault.tag("golden", made[1].hex())
    plan = plan_with(vault, all=NO_TAG, main=ANY_TAG)
    assert plan.tags == ()
    assert set(forget.execute(vault, plan).snapshots) == {made[0], made[2]}
    assert vault.resolve("golden").snapshot == made[1]
    plan = plan_with(vault, all=ANY_TAG, main=NO_TAG)
    assert (plan.forgotten, plan.tags) == ({made[1]}, ("golden",))
    assert forget.execute(vault, plan).tags == ("golden",)


def test_the_tag_rule_that_is_given_for_a_branch(vault: Vault) -> None:
    made = add_line(vault, 4)
    vault.tag("golden", made[1].hex())
    policy.set_policy(vault, None, NO_TAG)
    assert prune.plan(vault, ANY_TAG, "main").tags == ()
    policy.set_policy(vault, None, ANY_TAG)
    assert prune.plan(vault, NO_TAG, "main").tags == ("golden",)


def test_a_tag_on_two_lines_stays_if_one_of_them_keeps_it(vault: Vault) -> None:
    made = add_line(vault, 4)
    vault.tag("golden", made[1].hex())
    vault.create_branch("b", made[2].hex())
    assert plan_with(vault, all=NO_TAG, b=ANY_TAG).tags == ()
    assert plan_with(vault, all=NO_TAG, b=NO_TAG).tags == ("golden",)


@pytest.mark.parametrize("target", [0, 1])
def test_a_tag_that_was_set_since_the_plan_was_made(vault: Vault, target: int) -> None:
    """Its name was that of a tag that is to go; now it says something else."""
    made = add_line(vault, 4)
    vault.tag("golden", made[0].hex())
    plan = prune.plan(vault, NO_TAG)
    assert plan.tags == ("golden",)
    vault.tag("golden", made[target].hex(), force=True)
    done = forget.execute(vault, plan)
    assert (set(done.snapshots), done.tags) == ({*made[:3]} - {made[target]}, ())
    assert vault.resolve("golden").snapshot == made[target]


def test_a_branch_that_was_deleted_anew_since_the_plan_was_made(vault: Vault) -> None:
    add_line(vault, 4)
    vault.create_branch("b", "main~0")
    vault.delete_branch("b")
    plan = prune.plan(vault, ANY_TAG)
    assert [name for _, name in plan.dropped] == ["b"]
    vault.restore_branch("b")
    vault.delete_branch("b")
    assert forget.execute(vault, plan).branches == ()
    vault.restore_branch("b")


def test_one_branch_leaves_alone_what_is_on_no_line(vault: Vault) -> None:
    """A moment of another branch that a tag froze, and one that lost its tag."""
    vault.create_branch("b", "main")
    add_line(vault, 3)
    write(vault, "b", b"tagged", snapshot=False)
    frozen = {vault.tag("golden", "b").snapshot}
    write(vault, "b", b"loose", snapshot=False)
    frozen.add(vault.tag("gone", "b").snapshot)
    vault.delete_tag("gone")
    policy.set_policy(vault, None, NO_TAG)
    for chosen in (None, NO_TAG):
        plan = prune.plan(vault, chosen, "main")
        assert (len(plan.forgotten), plan.forgotten & frozen, plan.tags) == (2, set(), ())
    assert (prune.plan(vault).forgotten & frozen, prune.plan(vault).tags) == (frozen, ("golden",))


@pytest.mark.parametrize(
    "need",
    [
        lambda vault, rev: policy.hold(vault, rev),
        lambda vault, rev: vault.tag("wanted", rev),
        lambda vault, rev: vault.create_branch("wanted", rev),
    ],
    ids=["held", "tagged", "continued"],
)
def test_what_came_to_be_needed_after_the_plan_stays(
    vault: Vault, need: Callable[[Vault, str], object]
) -> None:
    for text in (b"one", b"two", b"end"):
        write(vault, "main", text)
    end, two, one = (snapshot.id for snapshot in vault.log())
    plan = prune.plan(vault, Policy(last=1, events=0))
    assert plan.forgotten == {one, two}
    need(vault, two.hex())
    assert forget.execute(vault, plan).snapshots == (one,)
    assert gc.collect(vault).complete
    assert [snapshot.id for snapshot in vault.log()] == [end, two]
    assert vault.open_volume(two.hex()).read(3) == b"two"
    assert not check.verify(vault).problems


def test_what_the_reflog_names_can_be_resolved(vault: Vault) -> None:
    """So can what the message about a pruned moment names."""
    seqs = [write(vault, "main", text) for text in (b"one", b"two", b"three")]
    flushed = write(vault, "main", b"four", snapshot=False)
    seqs.append(write(vault, "main", b"five"))
    vault.tag("kept", "main~2")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    assert [move.seq for move in vault.reflog()] == [seqs[3], seqs[1]]
    for seq, text in ((seqs[1], b"two"), (seqs[3], b"five")):
        assert vault.resolve(f"main@{{#{seq}}}").seq == seq
        assert vault.open_volume(f"main@{{#{seq}}}").read(len(text)) == text
    with pytest.raises(NotFound) as refused:
        vault.resolve(f"main@{{#{flushed}}}")
    named = refused.value.message.partition("were kept: ")[2].split(", ")
    assert [vault.resolve(name).seq for name in named] == [seqs[1], seqs[3]]


@pytest.mark.parametrize("exact", [False, True])
def test_a_branch_goes_back_to_what_was_pruned_of_its_source(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    """It came from main as that was before the cut, and was made after it."""
    second = events.now_us() // 1_000_000 + 60
    monkeypatch.setattr(events, "now_us", lambda: second * 1_000_000)
    old = write(vault, "main", b"old")
    vault.tag("old", "main~0")
    source = write(vault, "main", b"start", snapshot=False)
    second += 10
    write(vault, "main", b"cut")
    second += 10
    vault.create_branch("b", f"main@{{#{source}}}")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0), "main"))
    nearest = rf"were kept: b@\{{#{old}\}}, b@\{{#{vault.branch('b').id}\}}$"
    with pytest.raises(NotFound, match=nearest) as refused:
        vault.resolve(f"b@{{@{second - 5}}}", exact=exact)
    assert refused.value.reason == "pruned"
    assert vault.open_volume(f"b@{{@{second}}}").read(5) == b"start"
    assert vault.open_volume(f"main@{{@{second - 5}}}").read(3) == b"cut"


def test_a_moment_after_a_branch_left_what_was_pruned_of_its_source(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left main at a snapshot that is kept: what main became then is no part of its line."""
    second = events.now_us() // 1_000_000 + 60
    monkeypatch.setattr(events, "now_us", lambda: second * 1_000_000)
    write(vault, "main", b"golden")
    vault.tag("golden", "main~0")
    second += 10
    write(vault, "main", b"cut")
    second += 10
    vault.create_branch("b", "golden")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0), "main"))
    assert vault.open_volume(f"b@{{@{second - 15}}}").read(6) == b"golden"
    assert vault.open_volume(f"b@{{@{second - 5}}}").read(6) == b"golden"
    with pytest.raises(NotFound, match="was pruned"):
        vault.resolve(f"main@{{@{second - 15}}}")


@pytest.mark.parametrize(
    "use",
    [
        lambda vault, position: refs.create(vault, "b", position),
        lambda vault, position: refs.tag(vault, "t", position),
        lambda vault, position: refs.rollback(vault, "main", position),
    ],
)
def test_a_state_that_is_pruned_before_it_is_used(
    vault: Vault, use: Callable[[Vault, Position], object]
) -> None:
    """It is refused, not taken for the older one that is left of it."""
    write(vault, "main", b"old")
    moment = write(vault, "main", b"new", snapshot=False)
    write(vault, "main", b"last")
    vault.tag("old", "main~1")
    position = vault.resolve(f"main@{{#{moment}}}")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    before = vault.branch("main").seq
    with pytest.raises(NotFound, match="pruned meanwhile"):
        use(vault, position)
    assert (vault.branch("main").seq, len(vault.branches()), len(vault.tags())) == (before, 1, 1)


@pytest.mark.parametrize("collected", [False, True])
def test_a_moment_before_a_pruned_branch_is_one_of_its_source(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, collected: bool
) -> None:
    start = now = events.now_us() // 1_000_000 + 60
    monkeypatch.setattr(events, "now_us", lambda: now * 1_000_000)
    write(vault, "main", b"old")
    now = start + 10
    write(vault, "main", b"more")
    now = start + 20
    vault.create_branch("b", "main")
    now = start + 30
    write(vault, "b", b"pruned")
    now = start + 40
    write(vault, "b", b"cut")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0), "b"))
    if collected:
        assert gc.collect(vault).records
    assert vault.open_volume(f"b@{{@{start + 5}}}").read(3) == b"old"
    assert vault.open_volume(f"b@{{@{start + 45}}}").read(3) == b"cut"
    # When the branch began, no record tells after a collection.
    for second in (15, 25, 35) if collected else (25, 35):
        with pytest.raises(NotFound) as refused:
            vault.resolve(f"b@{{@{start + second}}}")
        assert refused.value.reason == "pruned"
    if not collected:
        assert vault.open_volume(f"b@{{@{start + 15}}}").read(4) == b"more"
    with pytest.raises(NotFound, match="'main' began after"):
        vault.resolve(f"b@{{@{start - 3600}}}")


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("through", ["b", "c"])
def test_what_was_kept_beside_a_pruned_state_goes_by_the_name_that_was_asked_for(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, through: str, kept: bool, deleted: bool
) -> None:
    """What it came from may have gone on, or be deleted, and another may be called so by now."""
    second = events.now_us() // 1_000_000 + 60
    monkeypatch.setattr(events, "now_us", lambda: second * 1_000_000)
    one = write(vault, "main", b"one")
    second += 10
    pruned, moment = write(vault, "main", b"two", snapshot=False), second
    second += 10
    left = write(vault, "main", b"left", snapshot=kept)
    beginning = vault.create_branch("b", "main").id
    vault.create_branch("c", "b")
    write(vault, "main", b"not of b")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0), "main"))
    if deleted:
        vault.switch("b")
        vault.delete_branch("main")
        vault.create_branch("main", "b~0")
        write(vault, "main", b"another")
    for text in (f"#{pruned}", f"@{moment + 5}"):
        with pytest.raises(NotFound, match="was pruned") as refused:
            vault.resolve(f"{through}@{{{text}}}")
        before, after = (f"{through}@{{#{seq}}}" for seq in (one, left if kept else beginning))
        assert refused.value.message.endswith(f"kept: {before}, {after}")
        assert vault.open_volume(before).read(3) == b"one"
        assert vault.open_volume(after).read(4) == b"left"


def test_a_clock_that_was_ahead_throws_nothing_away(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded in the meantime, and what came after it, has times that are to come."""
    day, start = 86400 * 1_000_000, events.now_us()
    now = start
    monkeypatch.setattr(events, "now_us", lambda: now)
    write(vault, "main", b"old")
    vault.create_branch("gone", "main")
    vault.delete_branch("gone")
    now = start + 60 * 1_000_000
    write(vault, "main", b"young")
    now = start + 365 * day
    write(vault, "main", b"ahead")
    now = start + 120 * 1_000_000
    write(vault, "main", b"mended")
    chosen = Policy(last=1, within=30 * day)
    assert prune.plan(vault, chosen).empty
    now = start + 40 * day
    plan = prune.plan(vault, chosen)
    forgotten = [each.snapshot.message for each in plan.verdicts if not each.kept]
    assert (forgotten, [name for _, name in plan.dropped]) == (["old"], ["gone"])


def gap(start: int, end: int, chain: bytes = b"") -> Record:
    return Record(start, end - start, 0, b"", chain, pruned=True)


def pruned(seq: int, kept: list[tuple[int, int, bytes]]) -> base.Account:
    return base.Account(base.Base(Record(seq, 1, 0, b"", b""), (events.PRUNED, 0, tuple(kept), ())))


def test_gaps_that_a_prune_accounts_for() -> None:
    """Those that hold nothing it kept, and end where it says that the log goes on, and as it says.

    The runs that a damaged log names may overlap.
    """
    rng = random.Random(4)
    answers = set()
    for _ in range(2000):
        starts = sorted(rng.sample(range(1, 30), rng.randrange(6)))
        kept = [(at, at + rng.randrange(1, 8), bytes([rng.randrange(2)])) for at in starts]
        start = rng.randrange(1, 28)
        end, chain = start + rng.randrange(1, 6), bytes([rng.randrange(2)])
        held = {seq for first, stop, _ in kept for seq in range(first, stop)}
        goes_on = all(said == chain for first, _, said in kept if first == end)
        expected = held.isdisjoint(range(start, end)) and goes_on and end <= 30
        assert pruned(30, kept).accounts_for(gap(start, end, chain)) is expected
        answers.add(expected)
    assert answers == {True, False}


def test_many_gaps_are_looked_up() -> None:
    count = 30_000
    account = pruned(3 * count, [(3 * at + 2, 3 * at + 3, b"c") for at in range(count)])
    assert all(account.accounts_for(gap(3 * at, 3 * at + 2, b"c")) for at in range(1, count))


def test_what_two_lists_of_runs_share() -> None:
    rng = random.Random(5)
    for _ in range(500):
        runs = []
        for _ in range(2):
            ends = sorted(rng.sample(range(40), 2 * rng.randrange(8)))
            runs.append(list(zip(ends[::2], ends[1::2], strict=True)))
        found = forget._common(*runs)
        a, b = ({seq for start, end in each for seq in range(start, end)} for each in runs)
        assert [seq for start, end in found for seq in range(start, end)] == sorted(a & b)
