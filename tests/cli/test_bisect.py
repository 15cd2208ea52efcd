"""``bisect``: the write that broke a real file system, and how the command's ways to end count."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.cli.bisect_cmd import SHAPE, run_command
from tests.cli.conftest import COMMAND, environment
from tests.cli.test_json import paths

SIZE = 16 << 20


@pytest.fixture
def broken(tmp_path: Path, need_tool) -> tuple[Path, int, int]:
    """A directory with a vault whose ext4 one write breaks; its event, and the flush after it."""
    image = tmp_path / "made.img"
    image.touch()
    os.truncate(image, SIZE)
    mkfs = [need_tool("mkfs.ext4"), "-q", "-F", "-b", "4096", "-O", "^has_journal", str(image)]
    subprocess.run(mkfs, check=True)
    with Vault.create(tmp_path) as vault, vault.session("main") as session:
        disk = session.create_volume("vda", SIZE)
        disk.write(0, image.read_bytes())
        session.snapshot("a sound file system")
        for number in range(240):
            if number == 133:
                disk.write(4096, bytes(4096))  # the group descriptors
            disk.write(SIZE - 4096 * (1 + number), b"%4096d" % number)
            if number % 4 == 3:
                session.flush()
            if number % 60 == 59:
                session.snapshot(f"after {number}")
        session.flush()
        log = list(vault.events("main"))
    culprit = next(
        each.seq for each in log if getattr(each.event, "offset", None) == 4096 and each.seq > 20
    )
    flush = next(e.seq for e in log if e.seq > culprit and type(e.event).__name__ == "Barrier")
    return tmp_path, culprit, flush


def test_the_write_that_broke_a_file_system(broken, cli, need_tool) -> None:
    home, culprit, flush = broken
    e2fsck = need_tool("e2fsck")
    cli("bisect", "start", "main~4", "main", cwd=home)
    found = cli("bisect", "run", e2fsck, "-fn", "{file}", cwd=home)
    assert f"main@{{#{flush}}} is the first bad barrier\n" in found.out
    assert f"  #{culprit} " in found.out

    cli("bisect", "start", "main~4", "main", "--exact", cwd=home)
    found = cli("bisect", "run", e2fsck, "-fn", "{file}", cwd=home)
    assert f"main@{{#{culprit}}} is the first bad event\n" in found.out
    judged = [line for line in found.out.splitlines() if line.startswith(("good", "bad"))]
    assert len(judged) < 16
    assert sorted(p.name for p in (home / ".blockvault").glob("bisect*")) == ["bisect.json"]
    again = cli("bisect", "log", cwd=home)
    assert f"main@{{#{culprit}}} is the first bad event\n" in again.out
    cli("bisect", "reset", cwd=home)
    assert cli("bisect", "log", cwd=home, code=3).err.count("\n") == 1


def test_the_same_over_nbd(broken, cli, need_tool) -> None:
    home, culprit, _ = broken
    need_tool("nbdcopy")
    copy, check = f"nbdcopy '{{nbd}}' {home}/copy", f"{need_tool('e2fsck')} -fn {home}/copy"
    cli("bisect", "start", "main~4", "main", "--exact", cwd=home)
    found = cli("bisect", "run", "sh", "-c", f"{copy} || exit 255; {check}", cwd=home)
    assert f"main@{{#{culprit}}} is the first bad event\n" in found.out


BLOCK = 4096


def made(tools: dict[str, str], image: Path, *commands: str) -> bytes:
    """The file system after these commands of debugfs."""
    asked = image.with_suffix(".commands")
    asked.write_text("".join(f"{each}\n" for each in commands))
    subprocess.run(
        [tools["debugfs"], "-w", "-f", asked, image], check=True, capture_output=True, cwd="/"
    )
    return image.read_bytes()


@pytest.fixture
def journaled(tmp_path: Path, need_tool) -> tuple[Path, int, int]:
    """A directory with a vault whose ext4 is mounted: the flush in the middle of a transaction's
    way home, at which all is in the journal and one block where it belongs, and the one that
    breaks it.
    """
    tools = {name: need_tool(name) for name in ("mkfs.ext4", "debugfs")}
    image, word = tmp_path / "made.img", tmp_path / "word"
    image.touch()
    os.truncate(image, SIZE)
    subprocess.run([tools["mkfs.ext4"], "-q", "-F", "-b", str(BLOCK), image], check=True)
    empty = image.read_bytes()
    word.write_text("hello")
    with_file = made(tools, image, f"write {word} word")
    places = range(0, SIZE, BLOCK)
    blocks = [at for at in places if with_file[at : at + BLOCK] != empty[at : at + BLOCK]]
    *metadata, content = blocks
    image.write_bytes(empty)
    piece = tmp_path / "piece"
    piece.write_bytes(b"".join(with_file[at : at + BLOCK] for at in metadata))
    numbers = ",".join(str(at // BLOCK) for at in metadata)
    write = f"journal_write -b {numbers} {piece}"
    written = made(tools, image, "journal_open", write, "journal_close")
    home_already = {content: with_file, metadata[-2]: with_file}
    with Vault.create(tmp_path) as vault, vault.session("main") as session:
        disk = session.create_volume("vda", SIZE)
        disk.write(0, empty)
        session.snapshot("a sound file system")
        disk.write(0, written)
        for at, data in home_already.items():
            disk.write(at, data[at : at + BLOCK])
        session.flush()
        between = vault.resolve("main").seq
        disk.write(0, with_file)
        disk.write(BLOCK, bytes(BLOCK))  # the group descriptors
        session.flush()
        broken = vault.resolve("main").seq
    return tmp_path, between, broken


def test_a_journal_under_way_is_no_damage(journaled, cli, need_tool) -> None:
    """The words of the help find the write; a check without the journal blames a sound flush."""
    home, between, broken = journaled
    need_tool("e2fsck")
    words = shlex.split(next(iter(run_command.examples)))[3:]
    assert words[:2] == ["sh", "-c"]
    for command, blamed in ((words, broken), (["e2fsck", "-fn", "{file}"], between)):
        cli("bisect", "start", "main~0", "main", cwd=home)
        found = cli("bisect", "run", *command, cwd=home)
        assert f"main@{{#{blamed}}} is the first bad barrier\n" in found.out


def script(home: Path, text: str) -> str:
    """A command that runs a Python program on {file}."""
    path = home / "check.py"
    path.write_text(f"import sys\ndata = open(sys.argv[1], 'rb').read()\n{text}\n")
    return f"{shlex.quote(sys.executable)} {path} {{file}}"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Sixteen flushed writes of a counter into the first byte."""
    with Vault.create(tmp_path) as vault, vault.session("main") as session:
        disk = session.create_volume("vda", 8192)
        session.snapshot("empty")
        for number in range(1, 17):
            disk.write(0, bytes([number]))
            session.flush()
    return tmp_path


def test_how_a_command_may_end(small, cli) -> None:
    cli("bisect", "start", "main~0", "main", cwd=small)
    words = script(small, "sys.exit({5: 125, 9: 126, 10: 127}.get(data[0], data[0] > 8))").split()
    found = cli("bisect", "run", *words, cwd=small)
    seq = next(line for line in found.out.splitlines() if "is the first bad barrier" in line)
    with Vault.open(small) as vault:
        assert vault.device(seq.split()[0]).read(0, 1) == b"\x09"


@pytest.mark.parametrize(
    "ending", ["sys.exit(128)", "sys.exit(255)", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_command_that_stops_it_and_goes_on_later(small, cli, ending) -> None:
    cli("bisect", "start", "main~0", "main", cwd=small)
    words = script(small, f"if data[0] == 8: {ending}\nsys.exit(data[0] > 5)").split()
    stopped = cli("bisect", "run", *words, cwd=small, code=9)
    assert stopped.err.count("\n") == 1
    kept = cli("bisect", "log", cwd=small).out
    assert "next: barrier" in kept
    words = script(small, "sys.exit(data[0] > 5)").split()
    assert "is the first bad barrier" in cli("bisect", "run", *words, cwd=small).out


def check_json(shown: dict[str, Any], null: str) -> None:
    """It has the documented fields, but for those of ``null``."""
    assert shown.pop(null) is None
    found = {path.removesuffix("*") for path in paths(shown)}
    assert found == {path for path in SHAPE if not path.startswith(f"{null}.")}


def test_json(small, cli) -> None:
    begun = cli("bisect", "start", "main~0", "main", "--json", cwd=small).json
    assert (begun["judged"], begun["next"]["level"], begun["found"]) == ([], "barrier", None)
    assert begun["good"].startswith("main@{#")
    marked = cli("bisect", "skip", "--json", cwd=small).json
    assert marked["judged"] == [{"revision": begun["next"]["revision"], "verdict": "skip"}]
    check_json(marked, "found")
    words = script(small, "print('looked at')\nsys.exit(data[0] > 5)").split()
    ended = cli("bisect", "run", "--json", *words, cwd=small)
    assert "looked at" in ended.err
    assert cli("bisect", "log", "--json", cwd=small).json == ended.json
    with Vault.open(small) as vault:
        assert vault.device(ended.json["found"]["bad"]).read(0, 1) == b"\x06"
    check_json(ended.json, "next")


def folders(home: Path) -> int:
    """How many directories of ``bisect run`` there are, in the vault and for sockets."""
    found = [*(home / ".blockvault").glob("bisect-*"), *(home / "sockets").glob("*bisect-*")]
    return len(found)


@pytest.fixture
def judging(small, cli) -> Iterator[subprocess.Popen[bytes]]:
    """``bisect run`` while its command looks at a state, in a process group of its own."""
    (small / "sockets").mkdir()
    cli("bisect", "start", "main~0", "main", cwd=small)
    words = ["sh", "-c", "touch begun; exec sleep 60", "{file}", "{nbd}"]
    process = subprocess.Popen(
        [*COMMAND, "bisect", "run", *words], cwd=small, start_new_session=True,
        env=environment(TMPDIR=str(small / "sockets")),
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (small / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_ends_it_finds_nothing_left(small, judging, number) -> None:
    assert folders(small) == 2
    judging.send_signal(number)
    assert judging.wait(20) == 128 + number
    assert folders(small) == 0


@pytest.mark.parametrize("words", ["gc", "bisect reset", "bisect run sh -c true {nbd}{file}"])
def test_what_a_killed_run_left_goes_with_the_next_command(small, cli, judging, words) -> None:
    env = {"TMPDIR": str(small / "sockets")}
    cli("gc", cwd=small, env=env)
    assert folders(small) == 2, "it is in use"
    os.killpg(judging.pid, signal.SIGKILL)
    judging.wait(20)
    assert folders(small) == 2
    cli(*words.split(), cwd=small, env=env, code=None)
    assert folders(small) == 0


def test_ends_are_tried(small, cli) -> None:
    cli("bisect", "start", "main~0", "main", cwd=small)
    for code in ("0", "1", "125"):
        words = script(small, f"sys.exit({code})").split()
        assert "stated" in cli("bisect", "run", *words, cwd=small, code=4).err
    cli("bisect", "run", "/no/such/program", "{file}", cwd=small, code=9)
    cli("bisect", "run", "true", cwd=small, code=2)


def test_a_search_ends_with_its_branch(small, cli) -> None:
    """It does not go on in another one of that name, and one that was pruned is no damage."""
    cli("branch", "test", "main", cwd=small)
    cli("bisect", "start", "main~0", "test", cwd=small)
    cli("branch", "-d", "test", cwd=small)
    lines = ["bisect log", "bisect good", "bisect bad --json", "bisect run true {file}"]
    for change in ("refs", "branch test main", "prune --keep-last 1 --keep-events 0"):
        cli(*change.split(), cwd=small)
        for line in lines:
            assert "was deleted" in cli(*line.split(), cwd=small, code=3).err
    cli("bisect", "reset", cwd=small)
    assert "no bisection" in cli("bisect", "log", cwd=small, code=3).err


def test_by_hand(small, cli) -> None:
    shown = cli("bisect", "start", "main~0", "main", cwd=small).out
    cli("bisect", "skip", cwd=small)
    while "next: " in shown:
        revision = shown.split("next: ")[1].split()[1].rstrip(",")
        with Vault.open(small) as vault:
            verdict = "bad" if vault.device(revision).read(0, 1)[0] > 11 else "good"
        shown = cli("bisect", verdict, revision, cwd=small).out
    assert "is the first bad barrier" in shown
    assert cli("bisect", "good", cwd=small, code=2).err
    assert cli("bisect", "good", "main", cwd=small, code=2).err


def test_an_end_that_was_pruned_is_no_verdict_of_the_command(small, cli) -> None:
    with Vault.open(small) as vault:
        good = vault.resolve("main").seq - 4
    cli("bisect", "start", f"main@{{#{good}}}", "main", cwd=small)
    cli("snapshot", cwd=small)
    cli("prune", "--keep-last", "1", "--keep-events", "0", cwd=small)
    words = script(small, "sys.exit(0)").split()
    assert "was pruned" in cli("bisect", "run", *words, cwd=small, code=3).err
