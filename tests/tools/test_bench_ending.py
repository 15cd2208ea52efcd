"""Whatever ends a run: what it made is given back, and what was measured is kept."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tools.test_bench_figures import facts
from tools.bench import __main__ as cli
from tools.bench import beside, host, inputs
from tools.bench.bench import Bench
from tools.bench.commands import CommandFailed, command

INTERRUPTED = 130
HEEDING = ("env", "--default-signal=HUP")  # whatever these tests themselves were started with
RUN = """
import signal, sys
from tools.bench import __main__ as cli
from tools.bench import ending

def run(options, plan, work, out):
    try:
        print("measuring", flush=True)
        signal.pause()
    finally:
        print("giving back", flush=True)
        sys.stdin.read()
        out.write_text("all of it")

cli._run = run
ending.heed()
sys.exit(cli.main(sys.argv[1:]))
"""


def started(folder: Path, before: Sequence[str] = HEEDING) -> subprocess.Popen[str]:
    """The harness, which measures until a signal comes and gives back until it may end."""
    words = ["--work", str(folder), "--out", str(folder / "out.json")]
    process = subprocess.Popen(
        [*before, sys.executable, "-c", RUN, *words],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "measuring\n"
    return process


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGHUP),
    ],
)
def test_the_first_signal_ends_a_run_and_others_do_not_disturb_that(
    tmp_path: Path, first: signal.Signals, again: signal.Signals
) -> None:
    with started(tmp_path) as process:
        process.send_signal(first)
        assert process.stdout is not None
        assert process.stdout.readline() == "giving back\n"
        process.send_signal(again)
        process.communicate()
    assert process.returncode == INTERRUPTED
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"], "its folder is gone"


def test_a_run_that_is_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    with started(tmp_path, before=["nohup"]) as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
        process.communicate()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert ignored >> (signal.SIGHUP - 1) & 1
    assert process.returncode == INTERRUPTED


@pytest.mark.parametrize("wait", [Future.result, Future.done], ids=["meanwhile", "at its end"])
def test_what_goes_on_beside_does_not_hold_up_who_ends_a_run(
    tmp_path: Path, wait: Callable[[Future[None]], object]
) -> None:
    pipe, done = tmp_path / "pipe", tmp_path / "done"
    os.mkfifo(pipe)
    long = command("sh", "-c", f"echo >{pipe}; sleep 10; echo >{done}")

    def interrupt() -> None:
        with pipe.open() as begun:
            begun.readline()
        os.kill(os.getpid(), signal.SIGINT)

    with (
        ThreadPoolExecutor(1) as signalling,
        pytest.raises(KeyboardInterrupt),
        beside.repeated(lambda _: [long], 0) as taken,
    ):
        wait(signalling.submit(interrupt))
    assert taken == []
    assert not done.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CommandFailed("kernels: no room"), "kernels: no room"),
        (subprocess.CalledProcessError(1, "umount"), "'umount' returned non-zero exit status 1."),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: No space left on device"),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_where_one_scenario_cannot_go_on_the_next_ones_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: str,
) -> None:
    asked = []

    def scenario(name: str, _: Bench) -> None:
        asked.append(name)
        if name == "series":
            raise error

    monkeypatch.setattr(cli, "_scenario", scenario)
    monkeypatch.setattr(cli, "_facts", lambda *_, **__: facts())
    monkeypatch.setattr(inputs, "made_up", lambda *_: [])
    out = tmp_path / "out.json"
    request = ["--work", str(tmp_path), "--out", str(out), "--rows", "series", "start"]
    assert cli.main(request) == 1
    assert asked == ["series", "start"]
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("series: ")
    assert first.endswith(words)
    assert last == f"bench: not measured to the end: series; {out} has the rest"
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_even_begin_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise subprocess.CalledProcessError(1, "survey")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["--work", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().err
    assert said == "bench: Command 'survey' returned non-zero exit status 1.\n"


def test_without_git_the_commit_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.commit() == "unknown"
