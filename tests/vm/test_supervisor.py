"""A supervisor's steps one by one, with a process that only sleeps for QEMU."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from blockvault import Vault
from blockvault.cli.vm import common
from blockvault.errors import BadRequest, Busy, Conflict, Damaged, NotFound, ToolFailed, VaultError
from blockvault.ops import attachments
from blockvault.session import Session
from blockvault.vm import agent, command, disks, filling, hold, host, rundir
from blockvault.vm.hold import switch_off
from blockvault.vm.machine import CONFIG, Machine
from blockvault.vm.orders import Orders
from blockvault.vm.planning import How
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import Process, RunDir, State
from blockvault.vm.running import Running
from blockvault.vm.supervisor import Supervisor


class Disks:
    """Disks that nobody is served."""

    def __init__(self, session: Session, path: Path) -> None:
        pass

    def begin(self) -> None:
        pass

    def close(self) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {}


class World:
    """A vault with one machine, and supervisors of that."""

    def __init__(self, path: Path, vault: Vault) -> None:
        self.vault = vault
        self.base = path / "run"
        self.run = RunDir(self.base, vault.options.vault_id, vault.branch().id, vault.path)
        self.made: list[Supervisor] = []
        self.orphans: list[Qemu] = []

    def supervisor(self, how: How | None = None, branch: str = "main") -> Supervisor:
        orders = self.base / "1-1.sock"
        made = Supervisor(self.vault, branch, self.base, Disks, lambda it: orders, how or How())
        self.made.append(made)
        return made

    def orphan(self) -> Qemu:
        """A QEMU whose supervisor was killed."""
        self.run.make()
        with self.vault.session("main") as session, session.keep() as keep:
            qemu = Qemu.start(["sleep", "60"], self.run.qemu_log, keep)
        self.orphans.append(qemu)
        self.run.save(State(str(self.vault.path), "main", Process(0, 0), qemu=qemu.process))
        return qemu

    def left(self) -> State:
        state = self.run.load()
        assert state is not None
        return state

    def free(self) -> bool:
        """Whether anybody else may write the branch."""
        try:
            self.vault.session("main").close()
        except VaultError:
            return False
        return True


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(command, "command", lambda *_, **__: ["sleep", "60"])
    monkeypatch.setattr(host, "accelerator", lambda: "tcg")
    monkeypatch.setattr(host, "check_memory_place", lambda *_: None)
    monkeypatch.setattr(Running, "connect", lambda self: None)
    with Vault.create(tmp_path / "vault") as vault:
        machine = Machine(memory=16 << 20, disks=("vda",))
        with vault.session() as session, vault.guard():
            session.create_volume("vda", 1 << 20)
            kept = attachments.keep(vault, {CONFIG: machine.encode()})
            session.snapshot("a machine", attachments=kept)
        made = World(tmp_path, vault)
        yield made
        for each in made.made:
            each.end("the test is over")
        for qemu in made.orphans:
            qemu.kill()


Patch = Callable[[str, Callable[..., object]], None]


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Have something else done when a machine comes to a step."""
    return lambda name, act: monkeypatch.setattr(Running, name, act)


def test_a_qemu_is_known_before_it_is_up(world: World, patch: Patch) -> None:
    """Who comes after a death in the middle of a start finds the QEMU, and that it is no use."""
    found: list[State] = []
    patch("connect", lambda running: found.append(world.left()))
    supervisor = world.supervisor()
    assert supervisor.start() == "booted"
    (state,) = found
    assert state.beginning
    assert state.qemu is not None
    assert state.qemu.alive
    assert state.supervisor.alive
    up = world.left()
    assert (up.beginning, up.qemu, up.control) == (False, state.qemu, str(world.base / "1-1.sock"))
    supervisor.end("it was switched off")
    assert not state.qemu.alive


@pytest.mark.parametrize("adopted", [False, True])
def test_one_that_must_end_at_once_takes_its_qemu_along(
    world: World, patch: Patch, adopted: bool
) -> None:
    """Also while it starts, or while it gives back what it has.  A guest that somebody else left
    is not ours before it is taken over."""
    told: list[bool] = []

    def look(running: Running) -> None:
        supervisor.kill()
        told.append(running.qemu.wait(0 if adopted else 10))

    patch("connect", look)
    patch("_go_on", lambda running: "it ran on")
    if adopted:
        world.orphan()
    supervisor = world.supervisor()
    supervisor.kill()
    supervisor.start()
    assert told == [not adopted]
    assert supervisor.running is not None
    qemu, supervisor.running = supervisor.running.qemu, None
    supervisor.kill()
    assert qemu.ended


def test_what_cannot_be_stored_at_a_moment_ends_no_machine(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Be it that no thread can be had; the next look tries again."""
    supervisor = world.supervisor()
    supervisor.start()
    assert supervisor.running is not None
    busy, alone = Busy("another process writes"), RuntimeError("can't start new thread")
    failures: list[Exception] = [alone, alone, busy]

    def commit(*, barrier: bool) -> None:
        raise failures.pop()

    supervisor.running.session.unstored[0] = 1
    with monkeypatch.context() as patched:
        patched.setattr(supervisor.running.session, "commit", commit)
        for _ in range(3):
            supervisor._look()
    assert failures == []
    assert supervisor.wait(0) is None
    assert len([record for record in caplog.records if record.exc_info]) == 1, "said once"


def test_what_brought_the_memory_goes_when_all_is_there(world: World) -> None:
    supervisor = world.supervisor()
    supervisor.start()
    assert supervisor.running is not None
    closed: list[bool] = []
    coming: Any = SimpleNamespace(error=None, there=False, close=lambda: closed.append(True))
    supervisor.running.arriving = coming
    supervisor._look()
    assert (supervisor.running.arriving, closed) == (coming, [])
    coming.there = True
    supervisor._look()
    assert (supervisor.running.arriving, closed) == (None, [True])
    supervisor.running.wait_for_memory()


def test_orders_to_a_machine_that_is_being_started_are_refused(
    world: World, patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOCKVAULT_RUNTIME", str(world.base))
    monkeypatch.setattr(host, "cache_in", lambda folder: None)
    refused: list[str] = []

    def ask(running: Running) -> None:
        world.run.save(replace(world.left(), control=""))
        with pytest.raises(Busy) as caught:
            common.machine(world.vault, "main")
        refused.append(caught.value.reason)

    patch("connect", ask)
    world.supervisor().start()
    assert refused == ["machine-starting"]
    assert common.machine(world.vault, "main").pid == 1


@pytest.mark.parametrize("order", ["vm-snapshot", "snapshot"])
def test_words_that_no_snapshot_can_hold_are_refused_before_anything_is_taken(order: str) -> None:
    machine = MagicMock()
    with pytest.raises(BadRequest, match="message"):
        Orders(machine).handlers()[order]({"message": "caf\udce9"})
    assert not machine.ordered().__enter__().mock_calls


def test_a_start_that_fails_has_the_branch_until_its_qemu_has_ended(
    world: World, patch: Patch
) -> None:
    patch("connect", no_answer)
    kill = Running.kill
    free: list[bool] = []

    def look(running: Running) -> None:
        free.append(world.free())
        kill(running)
        free.append(world.free())

    patch("kill", look)
    with pytest.raises(ToolFailed):
        world.supervisor().start()
    assert free == [False, False]
    assert world.free()
    assert world.left().qemu is None
    assert "cannot be reached" in world.left().ended


@pytest.mark.parametrize(("where", "name"), [(filling, "write_boot_files"), (Running, "connect")])
def test_nobody_starts_a_machine_before_it_is_said_how_it_ended(
    world: World, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    """Else what the first one clears and says is the second one's."""
    monkeypatch.setattr(where, name, no_answer)
    first = world.supervisor()
    give_back = first._hold.give_back
    refused: list[str] = []

    def at_this_moment() -> None:
        give_back()
        assert world.free()
        with pytest.raises(Busy) as caught:
            world.supervisor().start()
        refused.append(caught.value.reason)
        assert not world.run.memory.exists()

    monkeypatch.setattr(first._hold, "give_back", at_this_moment)
    with pytest.raises(ToolFailed):
        first.start()
    assert refused == ["machine-running"]
    assert "cannot be reached" in world.left().ended


def no_disk(*_: object) -> None:
    raise NotFound("the branch lacks a disk", kind="no-volume")


def no_answer(*_: object) -> None:
    raise ToolFailed("QEMU's monitor cannot be reached", kind="qemu-stalled")


@pytest.mark.parametrize(
    ("where", "name", "failing"),
    [(disks, "check_there", no_disk), (Running, "connect", no_answer)],
)
def test_a_guest_that_cannot_be_taken_over_is_left_as_it_was(
    world: World,
    patch: Patch,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    failing: Callable[..., None],
) -> None:
    qemu = world.orphan()
    world.run.memory.write_bytes(b"memory")
    before = world.left()
    with monkeypatch.context() as broken:
        broken.setattr(where, name, failing)
        with pytest.raises(VaultError, match="left as it was"):
            world.supervisor().start()
    assert not qemu.ended
    assert world.left() == before
    assert world.run.memory.exists()
    assert not world.free()
    patch("_go_on", lambda running: "it ran on")
    assert world.supervisor().start() == "taken over: it ran on"
    assert world.left().qemu == qemu.process


def test_a_guest_that_ends_while_it_is_taken_over_has_died(world: World, patch: Patch) -> None:
    qemu = world.orphan()

    def end(running: Running) -> None:
        qemu.kill()
        raise ToolFailed("QEMU went away", kind="qemu-gone")

    world.run.memory.touch()
    patch("connect", end)
    with pytest.raises(ToolFailed):
        world.supervisor().start()
    assert rundir.status(world.left()) == "died"
    assert not world.run.memory.exists()
    assert world.free()


def test_a_guest_without_a_supervisor_can_be_switched_off(world: World) -> None:
    qemu = world.orphan()
    assert "switched off" in switch_off(world.vault, world.vault.branch(), world.run)
    assert qemu.ended
    assert rundir.status(world.left()) == "stopped"
    assert world.free()


def test_of_one_that_died_what_it_left_is_removed(world: World) -> None:
    world.run.make()
    world.run.memory.touch()
    world.run.save(State(str(world.vault.path), "main", Process(0, 0)))
    assert "died" in switch_off(world.vault, world.vault.branch(), world.run)
    assert not world.run.memory.exists()
    assert rundir.status(world.left()) == "stopped"
    assert world.free()


def test_what_one_left_that_died_and_was_deleted_goes_with_the_next_start(world: World) -> None:
    """No command would find it any more, and it is as much memory as the guest had."""
    vault = world.vault
    left = {}
    for name in ("gone", "kept", "lives"):
        vault.create_branch(name, "main")
        run = RunDir(world.base, vault.options.vault_id, vault.branch(name).id, vault.path)
        run.make()
        run.memory.touch()
        process = Process.of(os.getpid()) if name == "lives" else Process(0, 0)
        run.save(State(str(vault.path), name, process))
        left[name] = run
    other = RunDir(world.base, bytes(16), vault.branch("gone").id, vault.path)
    other.make()
    other.save(State("elsewhere", "gone", Process(0, 0)))
    vault.delete_branch("gone")
    vault.delete_branch("lives")
    world.supervisor().start()
    assert not left["gone"].path.exists()
    assert left["kept"].memory.exists()
    assert left["lives"].memory.exists()
    assert other.path.exists()


def test_it_can_be_switched_off_though_nobody_can_write_its_branch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the guest wrote may be damaged, or find no room."""

    def refuse(*_: object, **__: object) -> None:
        raise Damaged("the journal is damaged")

    qemu = world.orphan()
    monkeypatch.setattr(Session, "__init__", refuse)
    assert "switched off" in switch_off(world.vault, world.vault.branch(), world.run)
    assert qemu.ended


def test_one_that_was_to_be_thrown_away_goes_whoever_ends_it(world: World, patch: Patch) -> None:
    patch("_go_on", lambda running: "it ran on")
    for ends in ("switched off", "taken over"):
        world.vault.create_branch("guest", "main")
        branch = world.vault.branch("guest")
        run = RunDir(world.base, world.vault.options.vault_id, branch.id, world.vault.path)
        run.make()
        with world.vault.session("guest") as session, session.keep() as keep:
            qemu = Qemu.start(["sleep", "60"], run.qemu_log, keep)
        world.orphans.append(qemu)
        run.save(State("", "guest", Process(0, 0), qemu=qemu.process, throw_away=True))
        if ends == "switched off":
            switch_off(world.vault, branch, run)
        else:
            supervisor = world.supervisor(branch="guest")
            supervisor.start()
            supervisor.end("the guest was powered off")
        assert "guest" not in [each.name for each in world.vault.branches()]
        assert not run.path.exists()


def test_a_run_directory_that_is_gone_holds_up_no_end(world: World) -> None:
    world.vault.create_branch("guest", "main")
    supervisor = world.supervisor(How(throw_away=True), "guest")
    supervisor.start()
    shutil.rmtree(world.base)
    assert supervisor.end("the guest was powered off") == "the guest was powered off"
    assert "guest" not in [each.name for each in world.vault.branches()]


def test_an_adopted_guest_that_ends_by_itself_was_powered_off(world: World) -> None:
    found = Qemu.find(world.orphan().process, world.run.qemu_log)
    world.run.qemu_log.write_text("a warning of its start\n")
    with Session(world.vault, world.vault.branch(), "a test", successor=True) as session:
        running = Running(world.vault, session, world.run, Machine(memory=16 << 20), "tcg")
        running._heard("SHUTDOWN", {"guest": False, "reason": "host-signal"})
        assert not running.powered_off
        running._heard("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        assert found.reason(powered_off=running.powered_off) == "the guest was powered off"
        running.close()
    assert found.reason() == "QEMU ended: a warning of its start"
    found.close()


def test_the_memory_of_the_machine_before_makes_room(
    world: World, patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a death, and when a rollback starts another QEMU."""
    held: list[bool] = []
    monkeypatch.setattr(
        host, "check_memory_place", lambda *_: held.append(world.run.memory.exists())
    )
    patch("connect", lambda running: running.run.memory.touch())
    world.run.make()
    world.run.memory.touch()
    supervisor = world.supervisor()
    supervisor.start()
    assert world.run.memory.exists()
    assert supervisor.go_back("main~0") == "booted"
    assert held == [False, False]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("step", ["_roll_back", "take"])
def test_a_rollback_waits_for_who_takes_the_branch_in_between(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, inside: bool
) -> None:
    """When the branch was given back, and when it was moved.  That of a QEMU that goes back inside
    of itself is kept; but who finds that out has it for a moment."""
    supervisor = world.supervisor()
    supervisor.start()
    owner = supervisor if step == "_roll_back" else supervisor._hold
    do = getattr(owner, step)
    others: list[Session] = []
    waited: list[float] = []

    def come_first(*given: object) -> object:
        if not waited and not others:
            branch = world.vault.branch()
            others.append(Session(world.vault, branch, "a snapshot", successor=inside))
        return do(*given)

    def wait(seconds: float) -> None:
        waited.append(seconds)
        others.pop().close()

    monkeypatch.setattr(owner, step, come_first)
    monkeypatch.setattr(hold, "time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))
    before = world.vault.branch().seq
    if inside:
        assert supervisor.running is not None
        supervisor._move_branch(supervisor.running, "main~0")
    else:
        assert supervisor.go_back("main~0") == "booted"
    assert len(waited) == 1
    assert world.vault.branch().seq > before
    assert supervisor.running is not None
    assert supervisor.running.session is supervisor._hold.session
    assert not world.free()


def test_a_rollback_means_the_state_that_was_looked_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the guest writes until it has ended, and how long that takes, make no other of it."""
    supervisor = world.supervisor()
    supervisor.start()
    assert supervisor.running is not None
    session = supervisor.running.session
    device = session.device(session.volumes[0].name)
    device.write(0, b"then")
    session.flush()
    meant = world.vault.branch().seq
    close = supervisor._close

    def slow() -> None:
        device.write(0, b"last")
        session.flush()
        close()

    monkeypatch.setattr(supervisor, "_close", slow)
    supervisor.go_back("main")
    assert supervisor.before > meant
    assert world.vault.device("main").read(0, 4) == b"then"


def test_a_rollback_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = world.supervisor()
    supervisor.start()
    monkeypatch.setattr(hold, "PATIENCE", 0.0)
    give_back = supervisor._hold.give_back
    served: list[Session] = []

    def taken() -> None:
        give_back()
        if not served:
            served.append(world.vault.session("main", holder="a server"))

    monkeypatch.setattr(supervisor._hold, "give_back", taken)
    with pytest.raises(Busy, match="a server"):
        supervisor.go_back("main~0")
    assert "a rollback failed" in world.left().ended
    served[0].close()


def test_what_was_written_is_stored_whatever_order_is_under_way(world: World) -> None:
    """Every command asks for that first, and an order may take minutes."""
    supervisor = world.supervisor()
    supervisor.start()
    assert supervisor.running is not None
    session = supervisor.running.session
    session.device(session.volumes[0].name).write(0, b"now")
    flush = Orders(supervisor).handlers()["flush"]
    with ThreadPoolExecutor(1) as pool, supervisor.ordered():
        assert pool.submit(flush, {}).result(20) == {}
        assert world.vault.device("main").read(0, 3) == b"now"


def test_a_snapshot_after_which_nothing_thaws_is_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = world.supervisor()
    supervisor.start()

    @contextmanager
    def frozen(*_: object) -> Iterator[None]:
        yield
        raise ToolFailed("the guest's agent did not answer", kind="agent-silent")

    monkeypatch.setattr(agent, "frozen", frozen)
    with pytest.raises(ToolFailed, match="was recorded") as told:
        Orders(supervisor).handlers()["snapshot"]({"quiesce": True, "message": "quiet"})
    made = world.vault.get_snapshot(bytes.fromhex(str(told.value).split()[1]))
    assert made.message == "quiet"
    assert told.value.reason == "agent-silent"


def test_a_machine_whose_disks_are_not_served_yet_is_between_two_states(world: World) -> None:
    """As when a rollback starts another QEMU: who asks for all servers passes it over."""
    supervisor = world.supervisor()
    supervisor.start()
    assert supervisor.served is not None
    assert supervisor.served.status() == {}
    with pytest.raises(NotFound, match="between two states"):
        Orders(supervisor).handlers()["status"]({})


THROW_AWAY = How(throw_away=True)


def names(world: World) -> list[str]:
    return [each.name for each in world.vault.branches()]


def test_a_branch_is_thrown_away_when_its_machine_ends(world: World) -> None:
    world.vault.create_branch("other", "main")
    supervisor = world.supervisor(THROW_AWAY, "other")
    supervisor.start()
    supervisor.end("it was switched off")
    assert names(world) == ["main"]
    assert supervisor.run() == "it was switched off"
    assert not supervisor.run_dir.path.exists()


def test_the_current_branch_is_not_to_be_thrown_away(world: World) -> None:
    with pytest.raises(Conflict) as refused:
        world.supervisor(THROW_AWAY).start()
    assert refused.value.reason == "branch-current"
    assert world.free()
    assert not world.run.path.exists()


def test_a_machine_ends_even_if_its_branch_cannot_go(world: World) -> None:
    world.vault.create_branch("other", "main")
    supervisor = world.supervisor(THROW_AWAY, "other")
    supervisor.start()
    world.vault.switch("other")
    supervisor.end("it was switched off")
    assert supervisor.run() == "it was switched off"
    assert names(world) == ["main", "other"]


def test_a_branch_whose_machine_did_not_start_stays(world: World, patch: Patch) -> None:
    world.vault.create_branch("other", "main")
    patch("connect", no_answer)
    with pytest.raises(ToolFailed):
        world.supervisor(THROW_AWAY, "other").start()
    assert names(world) == ["main", "other"]
