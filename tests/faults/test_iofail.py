"""The nth write or sync of every command fails, for every n.

Afterwards the command has either done all of its work or nothing of it; it said so truthfully, in
one line and with the documented exit code; the vault is clean; and the same command, run again on
a disk that works, succeeds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blockvault.errors import Conflict, IOFailed, NotFound
from tests.faults import command_case
from tests.faults.command_case import COMMANDS, State
from tools.faults.children import Child, Outcome
from tools.faults.shim import Armed, Fault, Shim
from tools.faults.warm import Ran, Warm

KILLED = -9
MODES = [("eio", False), ("enospc", False), ("short", False), ("torn", False), ("kill", False),
         ("eio", True), ("enospc", True)]  # fmt: skip
IN_STEPS = {"checkout", "checkout over", "repair"}
"""Commands that write several files in place, or mend one thing after another: after a failure some
may be done, some not.
"""


class Rig(NamedTuple):
    """A warm command line under a shim, a folder to copy, and a child that looks at copies."""

    warm: Warm
    armed: Armed
    base: Path
    here: Path
    child: Child

    def fresh(self, name: str = "") -> None:
        """A new copy, with what the named command needs."""
        needless = set(command_case.SPARE).difference(COMMANDS.get(name, ()))
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.base, self.here, ignore=shutil.ignore_patterns(*needless))

    def run(self, name: str, fault: Fault | None = None) -> Ran:
        self.armed.order(fault or Fault(action="eio", nth=0, below=self.here))
        return self.warm.run(*COMMANDS[name], cwd=self.here)

    def look(self) -> Outcome:
        return self.child.ask(self.here)


@pytest.fixture(scope="module")
def rig(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    base = tmp_path_factory.mktemp("base")
    command_case.build(base)
    here = Path(f"/dev/shm/blockvault-iofail-{base.parent.name}")
    target, tools = "tests.faults.command_case:main", "blockvault.ops.ingest"
    with (
        shim.fault(Fault(action="eio", nth=0, below=here)) as armed,
        Warm(target, tools, env=armed.env) as warm,
        Child("tests.faults.command_case:inspector") as child,
    ):
        yield Rig(warm, armed, base, here, child)
    shutil.rmtree(here, ignore_errors=True)


def wanted(rig: Rig, name: str) -> tuple[State, State, int]:
    """The states before and after the command, and how many calls it makes."""
    rig.fresh(name)
    before = rig.look().value
    ran = rig.run(name)
    calls = rig.armed.count
    assert ran.code == 0, ran
    after = rig.look().value
    assert before[0] == after[0] == ""
    return before[1], after[1], calls


def fault_at(rig: Rig, name: str, fault: Fault, before: State, after: State) -> str:
    """Run into one fault; what is wrong then, in words."""
    rig.fresh(name)
    ran = rig.run(name, fault)
    hit = rig.armed.hit
    what = f"{name}, {fault} ({hit}): exit {ran.code} {ran.err!r}"
    if wrong := said_wrong(ran, fault):
        return f"{what}: {wrong}"
    seen = rig.look()
    if not seen.returned or seen.value[0]:
        return f"{what}: {seen.value or seen}"
    state = seen.value[1]
    if name in IN_STEPS and ran.code:
        state = state._replace(files=before.files)
    if state not in ((after,) if ran.code == 0 else (before, after)):
        return f"{what}: neither as before nor as after: {state}"
    return again(rig, name, after, state, what)


def said_wrong(ran: Ran, fault: Fault) -> str:
    deadly = fault.action in ("kill", "torn")
    if ran.code == (KILLED if deadly else IOFailed.exit_code) or ran.code == 0:
        lines = ran.err.splitlines()
        if ran.code > 0 and (len(lines) != 1 or not lines[0].startswith("blockvault: ")):
            return "not one clear line"
        return ""
    return "not an exit code for a failing disk"


def again(rig: Rig, name: str, after: State, state: State, what: str) -> str:
    """The same command on a disk that works."""
    second = rig.run(name)
    allowed = [0, Conflict.exit_code, NotFound.exit_code] if state == after else [0]
    if second.code not in allowed:
        return f"{what}; again: {second}"
    seen = rig.look()
    if not seen.returned or seen.value[0]:
        return f"{what}; again: {seen.value or seen}"
    if state != after and seen.value[1] != after:
        return f"{what}; again: not what it should be: {seen.value[1]}"
    return ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_call_of_a_command_may_fail(rig: Rig, name: str, seed: int, nightly: bool) -> None:
    before, after, calls = wanted(rig, name)
    wrong, tried = [], 0
    stride = 1 if nightly else 1 + calls // 40  # a collection makes many calls that are alike
    for nth in range(1 + seed % stride, calls + 1, stride):
        modes = MODES if nightly else [MODES[(seed + nth * 3) % len(MODES)]]
        for action, sticky in modes:
            fault = Fault(action=action, nth=nth, below=rig.here, sticky=sticky)
            tried += 1
            if problem := fault_at(rig, name, fault, before, after):
                wrong.append(problem)
    print(f"{name}: {calls} calls, {tried} faults")
    assert tried > 2
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong[:5])


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_commands_that_read_do_so_on_a_disk_that_refuses_writes(rig: Rig, action: str) -> None:
    rig.fresh()
    for command in command_case.READING:
        rig.armed.order(Fault(action=action, nth=1, below=rig.here, sticky=True))
        ran = rig.warm.run(*command, cwd=rig.here)
        assert ran.code == 0, f"{command}: {ran.err} ({rig.armed.hit})"


def test_a_program_that_hides_its_faults_is_caught(rig: Rig) -> None:
    """The control: a run that says it succeeded, when the state says otherwise."""
    before, after, calls = wanted(rig, "tag")
    hidden = [
        fault_at(
            rig, "tag", Fault(action="eio", nth=nth, below=rig.here, sticky=True), before, before
        )
        for nth in range(1, calls + 1)
    ]
    assert before != after
    assert any(hidden), "the harness cannot see that a command did not do its work"
