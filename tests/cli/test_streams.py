"""Pipes, terminals and signals: what a user's shell does to the program."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "blockvault.cli.main"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "BLOCKVAULT_VAULT")}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}


def on_terminal(words: list[str], cwd: Path, **extra: str) -> bytes:
    """What the program writes when all its streams are a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=cwd,
        env=ENVIRONMENT | extra,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    output = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        output += part
    os.close(leader)
    assert process.wait(60) == 0, output
    return output


def test_colours_on_a_terminal_only(finished) -> None:
    assert b"\x1b[33m" in on_terminal(["log", "--oneline"], finished.path)
    assert b"\x1b" not in on_terminal(["log", "--oneline"], finished.path, NO_COLOR="1")
    assert "\x1b" not in finished("log", "--oneline").out


@pytest.mark.parametrize("words", [["main", "-n", "0"], ["@", "-n", "0"], ["--since", "now"]])
def test_following_begins_with_what_is_new(world, words) -> None:
    """Also where nothing is asked for of what there is."""
    before = world("events", "--json").lines[-1]["seq"]
    command = [*COMMAND, "events", *words, "--follow", "--json"]
    process = subprocess.Popen(command, cwd=world.path, env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for _ in range(100):
            world("snapshot", "-m", "again")
            if select.select([process.stdout], [], [], 0.5)[0]:
                break
        assert json.loads(process.stdout.readline())["seq"] > before
    finally:
        process.kill()
        process.communicate()


def test_progress_only_when_it_takes_long(finished, tmp_path) -> None:
    quick = on_terminal(["export", "main:vda", str(tmp_path / "a.img")], finished.path)
    assert b"Exporting" not in quick
    assert b"Exported vda" in quick


def test_progress_is_drawn_on_a_terminal(capfd, monkeypatch) -> None:
    from blockvault.cli import progress

    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.progress("Working") as report:
        for done in range(0, 100, 10):
            report(done << 20, 100 << 20)
    assert "Working" in capfd.readouterr().err
    with progress.progress("Working", quiet=True) as report:
        report(1, 2)
    assert capfd.readouterr().err == ""


def test_progress_draws_nothing_into_a_pipe(capfd) -> None:
    from blockvault.cli import progress

    with progress.progress("Working") as report:
        report(1, 2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("words", [["cat", "main:vda"], ["events"], ["log", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(finished, words) -> None:
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=finished.path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_a_full_disk_behind_standard_output(finished) -> None:
    with open("/dev/full", "wb") as full:
        result = finished("cat", "main:vda", stdout=full, code=7)
        assert result.err.startswith("blockvault: ")
        assert result.err.count("\n") == 1
        assert finished("log", stdout=full, code=7).err.count("\n") == 1


def follow(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "events", "--follow", "-n", "1"],
        cwd=path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_follow_shows_new_events_and_ends_with_ctrl_c(world) -> None:
    with follow(world.path) as process:
        assert b"branch-created" in process.stdout.readline()
        world("tag", "now")
        assert b"tagged now" in process.stdout.readline()
        world("branch", "later")
        assert b" later branch-created later" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b"blockvault: interrupted; what was acknowledged is safe\n"


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_ctrl_c_at_any_moment_of_an_import(world, make_image, delay) -> None:
    blocks = {number: number for number in range(0, 9000, 3)}
    big = make_image("big.img", blocks, count=9000)
    before = world("events").out
    process = subprocess.Popen(
        [*COMMAND, "import", str(big), "--volume", "big", "-m", "big"],
        cwd=world.path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 1:  # Python itself was still at its start
        assert err.rstrip().endswith(b"KeyboardInterrupt")
    else:
        assert process.returncode in (0, 130, -signal.SIGINT)
    after = world("events").out
    if after != before:  # it came just after the last commit: then all of it is there
        assert " imported " in after.removeprefix(before)
        assert world("diff", "main", big, "--volume", "big", "--exit-code").out == ""
    if process.returncode == 130:
        assert err.count(b"\n") == 1
    world("import", big, "--volume", "big", "-m", "big")
    assert world("diff", "main", big, "--volume", "big", "--exit-code").out == ""


def test_standard_output_that_is_closed(finished) -> None:
    for closed, code in ((">&-", 0), ("<&- >&- 2>&-", 0), ("2>&- nosuch", 2)):
        done = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m blockvault.cli.main refs {closed}"],
            cwd=finished.path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (code, "")
