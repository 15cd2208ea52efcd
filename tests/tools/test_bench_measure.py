"""The stopwatch itself: a benchmark that measures wrong is worse than none."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.bench import commands, host
from tools.bench.commands import Command, CommandFailed, command, environment, run, shown
from tools.bench.peers.base import find_program
from tools.bench.servers import serving

MIB = 1 << 20


def python(code: str, *words: str) -> Command:
    return command(sys.executable, "-I", "-c", code, *words)


def test_wall_time_is_the_programs_own() -> None:
    cost = run([python("import time; time.sleep(0.3)")])
    assert 0.3 <= cost.wall < 1.5
    assert cost.cpu < 0.25


def test_cpu_of_children_is_counted() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    assert run([python(parent)]).cpu >= 0.4


def test_peak_is_that_of_the_program_and_its_children() -> None:
    eat = "bytearray(b'x') * (96 << 20)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {eat!r}])"
    assert 96 * MIB <= run([python(eat)]).peak < 160 * MIB
    assert 96 * MIB <= run([python(parent)]).peak < 160 * MIB


def test_peak_is_not_that_of_the_harness() -> None:
    ballast = bytearray(b"x") * (128 * MIB)  # without the launcher this would be in the figure
    assert run([command("true")]).peak < 32 * MIB
    assert len(ballast) == 128 * MIB


def test_free_memory_is_filled_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 40 * MIB
    sizes = {"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": free + host.LEFT_FREE}
    monkeypatch.setattr(host.os, "sysconf", sizes.__getitem__)
    filled = host.fill_memory(tmp_path)
    assert free <= filled < free + 17 * MIB
    assert (tmp_path / "memory").stat().st_size == filled
    sizes["SC_AVPHYS_PAGES"] = host.LEFT_FREE // 2
    assert host.fill_memory(tmp_path) == 0


def test_commands_add_up() -> None:
    sleep = python("import time; time.sleep(0.1)")
    cost = run([sleep, sleep, sleep])
    assert cost.wall >= 0.3
    assert cost.commands == 3


def test_failure_names_the_program_and_its_last_words() -> None:
    with pytest.raises(CommandFailed, match="the disk is on fire"):
        run([python("import sys; sys.exit('first line\\nthe disk is on fire')")])


def test_missing_program_fails_and_is_named() -> None:
    with pytest.raises(CommandFailed, match="no-such-program"):
        run([command("no-such-program")])


def test_a_status_that_is_said_to_be_fine_is_no_failure() -> None:
    run([command("sh", "-c", "exit 3", fine=(3,))])
    with pytest.raises(CommandFailed):
        run([command("sh", "-c", "exit 3", fine=(0, 1))])


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    """A pipe that only the child has open for writing tells when it ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    parent = f"(echo here; sleep 60) >{pipe} & wait"  # shells, which have begun long before that
    start = time.monotonic()
    with pytest.raises(CommandFailed, match="not done after"):
        run([command("sh", "-c", parent)], limit=2.0)
    os.set_blocking(reading, True)
    assert os.read(reading, 100) == b"here\n"
    assert os.read(reading, 100) == b""
    assert time.monotonic() - start < 30
    os.close(reading)


def test_a_program_that_is_ended_may_clean_up_what_would_outlive_it(tmp_path: Path) -> None:
    ready, gone = tmp_path / "ready", tmp_path / "gone"
    os.mkfifo(ready)

    def interrupt() -> None:
        with ready.open() as words:
            words.readline()
        os.kill(os.getpid(), signal.SIGINT)

    tidy = "trap 'echo >\"$0\"; exit' TERM; echo; sleep 60"
    with ThreadPoolExecutor(1) as beside:
        beside.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run([command("sh", "-c", tidy, gone, stdout=ready)])
    assert gone.exists()


def test_a_program_that_does_not_clean_up_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "END_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(CommandFailed, match="not done after"):
        run([command("sh", "-c", "trap '' TERM; sleep 60")], limit=0.4)
    assert time.monotonic() - start < 30


def test_output_goes_to_the_named_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run([command("echo", "hello", stdout=target)])
    assert target.read_text() == "hello\n"


def test_environment_drops_what_would_slow_a_program_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("KEPT", "yes")
    found = environment({"EXTRA": "1"})
    assert "PYTHONDONTWRITEBYTECODE" not in found
    assert (found["KEPT"], found["EXTRA"]) == ("yes", "1")


@pytest.mark.parametrize("bare", [True, False], ids=["no PATH", "a user's PATH"])
def test_what_is_found_is_also_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    if bare:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
    sbin = tmp_path / "sbin"
    sbin.mkdir()
    monkeypatch.setattr(commands, "SBIN", (str(sbin),))
    assert find_program("a-tool-of-root") is None
    (sbin / "a-tool-of-root").symlink_to("/bin/true")
    assert find_program("a-tool-of-root") == str(sbin / "a-tool-of-root")
    run([command("a-tool-of-root")])


def test_shown_commands_name_long_paths_once() -> None:
    work = Path("/var/tmp/work")
    each = command("tool", work / "store" / "a b", stdout=work / "out")
    names = {work: "WORK", work / "store": "STORE"}
    assert shown([each], names) == ["tool 'STORE/a b' > WORK/out"]


def test_shown_commands_have_the_environment_that_they_need() -> None:
    each = command("tool", "run", env={"TOOL_STORE": "/var/tmp/work/store", "TOOL_SAY": "a b"})
    names = {Path("/var/tmp/work"): "WORK"}
    assert shown([each], names) == ["TOOL_STORE=WORK/store TOOL_SAY='a b' tool run"]


SERVER = """
import signal, socket, sys
def stop(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
ballast = bytearray(b'x') * (64 << 20)
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
while True:
    listening.accept()
"""


def test_a_server_is_ended_and_its_cost_told(tmp_path: Path) -> None:
    listening = tmp_path / "s"
    with serving(python(SERVER, str(listening)), listening) as server:
        assert server.cost is None
    assert server.cost is not None
    assert server.cost.peak >= 64 * MIB
    assert not listening.exists()


def test_a_server_that_dies_is_a_failure_with_its_words(tmp_path: Path) -> None:
    broken = python("import sys; sys.exit('no such export')")
    with pytest.raises(CommandFailed, match="no such export"), serving(broken, tmp_path / "s"):
        pytest.fail("it does not listen")
