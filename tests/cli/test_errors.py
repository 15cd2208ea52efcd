"""Bad requests: one clear line on stderr, the documented exit code, and nothing changed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault.cli.failing import describe
from blockvault.errors import NoSpace, VaultError

BAD_REQUESTS = {
    # words of the command line → exit code, part of the message
    "nosuch": (2, "there is no command 'nosuch'"),
    "brnach": (2, "did you mean branch?"),
    "log --nosuch": (2, "see 'blockvault log --help'"),
    "log -n x": (2, "-n"),
    "log -n -1": (2, "-n"),
    "show a b": (2, "unexpected extra argument"),
    "import": (2, "missing argument"),
    "init . --block-size 4X": (2, "'4X' is not a size"),
    "init new --block-size 5000": (2, "block size of 5000"),
    "init new --compression lzma": (2, "lzma"),
    "init": (4, "exists already"),
    "-V nowhere refs": (3, "no vault"),
    "-V '' refs": (2, "the directory has no name"),
    "refs --vault=": (2, "the directory has no name"),
    "log nosuch": (3, "nosuch"),
    "log main~9": (3, "main~9"),
    "log main@{#999999}": (3, "999999"),
    "log main@{20": (2, "main@{20"),
    "log main^x": (2, "main^x"),
    "show main@{1999-01-01}": (3, "began after"),
    "diff main nosuch": (3, "nosuch"),
    "diff main v1 --volume nosuch": (3, "nosuch"),
    "diff main ./nosuch.img --volume vda": (3, "nosuch.img"),
    "diff main ./first.img": (2, "(vda, vdb); name one with --volume"),
    "bisect start main~1 main": (2, "(vda, vdb); name one with --volume"),
    "branch test": (4, "test"),
    "branch a..b": (2, "a..b"),
    "branch heads/x": (2, "'heads/' before a name"),
    "branch -m test tags/x": (2, "'tags/' before a name"),
    "switch -c heads/x": (2, "'heads/' before a name"),
    "branch -d nosuch": (3, "nosuch"),
    "branch -d main": (4, "main"),
    "branch -d": (2, "needs the name"),
    "branch -d test v1": (2, "takes one name"),
    "branch --deleted test": (2, "takes no name"),
    "branch -m nosuch other": (3, "nosuch"),
    "branch -m test main": (4, "main"),
    "branch --restore test": (4, "test"),
    "branch --restore nosuch": (3, "nosuch"),
    "branch new ''": (2, "it names nothing"),
    "branch -m test ''": (2, "it is empty"),
    "branch -d test ''": (2, "takes one name"),
    "switch nosuch": (3, "nosuch"),
    "switch -c new ''": (2, "it names nothing"),
    "switch main ''": (2, "--create"),
    "tag new ''": (2, "it names nothing"),
    "events ''": (2, "it names nothing"),
    "switch main v1": (2, "--create"),
    "tag v1": (4, "--force"),
    "tag tags/v1": (2, "'tags/' before a name"),
    "tag -d nosuch": (3, "nosuch"),
    "tag -d": (2, "needs the name"),
    "tag -d v1 v2": (2, "takes one name"),
    "hold -m why": (2, "--message goes with REV"),
    "rollback nosuch v1": (3, "nosuch"),
    "rollback main nosuch": (3, "nosuch"),
    "reflog nosuch": (3, "nosuch"),
    "switch \udcff": (2, "not valid Unicode"),
    "branch -d t\udce9st": (2, "not valid Unicode"),
    "branch -m \udcff x": (2, "not valid Unicode"),
    "reflog \udcff": (2, "not valid Unicode"),
    "rollback \udcff v1": (2, "not valid Unicode"),
    "snapshot -b \udcff": (2, "not valid Unicode"),
    "tag -d \udcff": (2, "not valid Unicode"),
    "prune -b \udcff --keep-last 1": (2, "not valid Unicode"),
    "policy set -b \udcff --keep-last 1": (2, "not valid Unicode"),
    f"switch {600 * 'x'}": (2, "longer than"),
    f"tag -d {600 * 'x'}": (2, "longer than"),
    "import nosuch.img": (3, "nosuch.img"),
    "import nosuch.img -m caf\udce9": (2, "the message holds characters"),
    "import nosuch.img --author \udce9": (2, "the author holds characters"),
    "import empty.img": (2, "empty"),
    "import folder": (2, "folder is neither a file nor a block device"),
    "import .": (2, ". is neither a file nor a block device"),
    "import ..": (2, ".. is neither a file nor a block device"),
    "import fifo": (2, "fifo"),
    "import text.xyz": (2, "--format"),
    "import first.img --format qcow2": (9, "first.img"),
    "import first.img second.img --volume vda": (2, "2 images but 1 volume name"),
    "import first.img second.img --volume a --volume a": (4, "a"),
    "import first.img --volume a/b": (2, "a/b"),
    "import first.img -b a..b": (2, "a..b"),
    "import first.img -b heads/main": (2, "'heads/' before a name"),
    "import backed.qcow2": (2, "--allow-backing"),
    "export main out.img": (2, "(vda, vdb); name one as main:VOLUME"),
    "export main:nosuch out.img": (3, "nosuch"),
    "export main:vda folder": (2, "folder"),
    "export main:vda first.img": (4, "--force"),
    "export main:vda nosuch/out.img": (3, "nosuch"),
    "export main:vda - --format qcow2": (2, "stream"),
    "export main:vda - --sync": (2, "stream"),
    "export main:vda .blockvault/data.mdb -f": (2, "inside the vault"),
    "export-metrics -o .blockvault/data.mdb": (2, "inside the vault"),
    "cat main:vda --offset 1T": (2, "beyond"),
    "cat main:vda --offset=-1": (2, "-1"),
    "checkout main first.img": (2, "first.img"),
    "checkout main out --volume nosuch": (3, "nosuch"),
    "snapshot --from nosuch": (3, "nosuch"),
    "snapshot --from nosuch -m caf\udce9": (2, "the message holds characters"),
    "snapshot --from folder": (3, "folder"),
    "snapshot --force": (2, "--from"),
    "snapshot -b nosuch": (3, "nosuch"),
    "events --since 'no such time'": (2, "no such time"),
    "events v1 --follow": (2, "--follow has no end"),
    "verify nosuch": (3, "nosuch"),
    "verify main~1 --rate 50M": (2, "the whole vault"),
    "verify --since main~1 --sample 5%": (2, "the whole vault"),
    "verify --fast --resume": (2, "the whole vault"),
    "gc --older 30d": (2, "'policy set --recompress'"),
    "gc --recompress 0 --older 30d": (2, "'policy set --recompress'"),
    "gc --dry-run --recompress 19": (2, "--dry-run packs nothing"),
    "gc --wait nan": (2, "'nan' is not a number of seconds"),
    "policy show -b nosuch": (3, "nosuch"),
    "completion tcsh": (2, "tcsh"),
    "export-metrics -o nosuch/metrics": (3, "blockvault: nosuch/metrics: no such file"),
    "export-metrics -o folder": (7, "blockvault: folder: is a directory"),
}


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory) -> Iterator[object]:
    """A copy of the vault beside files that cannot be imported; unchanged when all is done."""
    path = tmp_path_factory.mktemp("errors") / "world"
    shutil.copytree(finished.path, path)
    (path / "folder").mkdir()
    (path / "empty.img").touch()
    (path / "text.xyz").write_text("text")
    os.mkfifo(path / "fifo")
    world = type(finished)(path)
    before = world("events").out
    files = {file.name for file in path.iterdir()}
    yield world
    assert world("events").out == before
    assert {file.name for file in path.iterdir()} - {"backed.qcow2"} == files


@pytest.mark.parametrize("line", BAD_REQUESTS)
def test_bad_request(place, need_tool, line) -> None:
    code, part = BAD_REQUESTS[line]
    if "qcow2" in line:
        need_tool("qemu-img")
    if "backed" in line:
        make_backed(place.path, need_tool("qemu-img"))
    result = place(*shlex.split(line), code=code)
    assert result.err.startswith("blockvault: ")
    assert result.err.count("\n") == 1
    assert part in result.err
    assert result.raw == b""


def make_backed(path: Path, qemu_img: str) -> None:
    words = [qemu_img, "create", "-q", "-f", "qcow2", "-b", "first.img", "-F", "raw"]
    subprocess.run([*words, "backed.qcow2"], cwd=path, check=True)


@pytest.mark.parametrize("line", ["log nosuch --json", "log --json --nosuch", "--json"])
def test_errors_as_json(place, line) -> None:
    result = place(*shlex.split(line), code=None)
    assert result.code in (2, 3)
    error = json.loads(result.err)["error"]
    assert set(error) == {"kind", "message"}
    assert error["kind"] == ("no-revision" if result.code == 3 else "usage")
    assert result.raw == b""


def test_json_as_a_value_is_no_option(place) -> None:
    assert place("log", "--", "--json", code=2).err.startswith("blockvault: ")


def test_no_command_shows_the_help(place) -> None:
    result = place(code=2)
    assert "Usage: blockvault" in result.err


def test_ambiguous_names_say_what_matches(world) -> None:
    world("tag", "test", "main")
    result = world("log", "test", code=3)
    assert "heads/test" in result.err
    assert "tags/test" in result.err
    world("log", "tags/test")
    world("log", "heads/test")
    assert "heads/test" not in world("attach", "heads/test:vda", "--for", "uri").out


def test_what_names_a_branch_means_no_tag(world) -> None:
    world("tag", "test", "main")
    assert world("rollback", "test", "main", "--json").json["branch"] == "test"
    logged = world("log", "--all", "--oneline").out.splitlines()
    assert [line.rpartition(" ")[2] for line in logged] == ["second", "first"]


def test_not_a_vault(cli, tmp_path) -> None:
    (tmp_path / ".blockvault").mkdir()
    empty = cli("log", code=None)
    (tmp_path / ".blockvault" / "data.mdb").write_bytes(b"SQLite format 3\0" * 1024)
    foreign = cli("log", code=None)
    for result in (empty, foreign):
        assert result.code in (3, 6, 8)
        assert result.err.startswith("blockvault: ")
        assert result.err.count("\n") == 1


def test_damage_ends_in_one_line(world) -> None:
    data = next((world.path / ".blockvault").glob("data.mdb"))
    size = data.stat().st_size
    with open(data, "r+b") as file:
        file.seek(8192)
        file.write(os.urandom(size - 8192))
    for command in (["log"], ["verify"], ["export", "main:vda", "out.img"], ["events"]):
        result = world(*command, code=None)
        assert result.code in (6, 7), result
        assert result.err.startswith("blockvault: ")
        assert result.err.count("\n") == 1


def test_a_cut_image_is_refused_and_the_next_import_works(world) -> None:
    """Sizes that are no multiple of the block size, and a volume that shrinks and grows again."""
    for size in (1, 4095, 4097, 100):
        (world.path / "odd.img").write_bytes(b"x" * size)
        world("import", "odd.img", "--volume", "odd", "-m", str(size))
        assert world("cat", "main:odd").raw == b"x" * size
        assert world("diff", "main", "./odd.img", "--volume", "odd", "--exit-code").raw == b""


def test_an_error_that_a_library_makes_of_ctrl_c_is_ctrl_c() -> None:
    error = SystemError("a module did not begin")
    error.__cause__ = KeyboardInterrupt()
    assert describe(error) == describe(KeyboardInterrupt())


def test_unforeseen_errors() -> None:
    kind, message, code = describe(ZeroDivisionError("division by zero"))
    assert (kind, code) == ("internal", VaultError.exit_code)
    assert "ZeroDivisionError" in message
    assert "BLOCKVAULT_TRACEBACK" in message


def test_system_errors() -> None:
    assert describe(OSError(28, "No space left on device", "a.img")) == (
        NoSpace.kind,
        "a.img: no space left on device",
        7,
    )
    assert describe(FileNotFoundError(2, "No such file or directory", "a.img"))[2] == 3
    assert describe(PermissionError(13, "Permission denied", "a.img"))[2] == 7


def test_traceback_on_demand(finished) -> None:
    words = [sys.executable, "-m", "blockvault.cli.main", "log", "nosuch"]
    env = {"BLOCKVAULT_TRACEBACK": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, cwd=finished.path, env=env, capture_output=True, text=True)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("blockvault: ")
