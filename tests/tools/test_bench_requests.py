"""Bad requests and bad files: named in one line, before anything is measured."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.test_bench_figures import RATE, TIME, results
from tools.bench import __main__ as cli
from tools.bench import compare, inputs, report, saved
from tools.bench.results import Results


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("something was measured first")

    monkeypatch.setattr(cli, "_scenario", run)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    results().save(tmp_path / "good.json")
    return tmp_path / "good.json"


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the one line of complaint is."""
    assert cli.main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("bench: ")
    return line.removeprefix("bench: ")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--contenders", "nobody"], "no contender nobody; see --list"),
        (["--jobs", "nothing"], "no job nothing"),
        (["--images", "/no/such.img"], "no image at /no/such.img"),
        (["--load", "/no/such.json"], "/no/such.json: No such file or directory"),
        (["--compare", "/no/such.json"], "/no/such.json: No such file or directory"),
        (["--compare", "/"], "/: Is a directory"),
        (["--out", "/no/such/x.json"], "/no/such: no such folder"),
        (["--out", "/"], "/: a folder, not a file"),
        (["--out", "/dev/null"], "/dev/null: not a file that can be replaced"),
        (["--work", "/no/such"], "/no/such: no such folder"),
        (["--runs", "0"], "--runs 0: each row is measured once at least"),
        (["--runs", "3", "--part", "5/5"], "--part 5/5: no run of 3 is in it"),
        (["--runs", "-3"], "--runs -3: each row is measured once at least"),
    ],
)
def test_requests_that_make_no_sense(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said([*words, "--rows", "start"], capsys) == complaint
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_takes_no_file(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(dir: Path) -> None:  # noqa: A002 - the name that tempfile gives it
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr("tools.bench.beforehand.tempfile.TemporaryFile", refused)
    out = good.with_name("b.json")
    for words in (["--load", str(good)], ["--rows", "start"]):
        complaint = said([*words, "--out", str(out)], capsys)
        assert complaint == f"{good.parent}: not writable: Read-only file system"


def test_a_file_that_may_not_be_written(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.bench.beforehand.os.access", lambda *_: False)
    assert said(["--out", str(good)], capsys) == f"{good}: not writable"


def drop(*path: Any) -> Callable[[Any], None]:
    """Take something out of a document."""

    def change(document: Any) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return change


def put(*path: Any) -> Callable[[Any], None]:
    """Set something in it; the last word is the value."""

    def change(document: Any) -> None:
        for name in path[:-2]:
            document = document[name]
        document[path[-2]] = path[-1]

    return change


CELL = ("cells", TIME.key, "blockvault")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("format", 99), "holds no benchmark results of format 2"),
        (drop("rows"), "it has no 'rows'"),
        (put("rows", {}), "rows is not a list"),
        (drop("rows", 1, "group"), "rows[1] has no 'group'"),
        (put("rows", 0, "a row"), "rows[0] is not an object"),
        (put("rows", 0, "work", "much"), "rows[0].work is not a number"),
        (put("rows", 0, "work", True), "rows[0].work is not a number"),
        (drop("facts", "commit"), "facts has no 'commit'"),
        (drop("facts", "plan", "part"), "facts.plan has no 'part'"),
        (drop("facts", "contenders", "restic", "missing"), "restic has no 'missing'"),
        (drop(*CELL, "samples", 0, "value"), "blockvault.samples[0] has no 'value'"),
        (put(*CELL, "reason", None), "blockvault.reason is not a text"),
        (drop("cells", TIME.key), "row 'import/all' has no cells"),
        (put("cells", "lost", {}), "cells has 'lost', which is no row"),
        (put("commands", "lost", {}), "commands has 'lost', which is no row"),
        (put("origins", TIME.key, [["one"]]), "origins.import/all is not a list of runs"),
        (put("scopes", {TIME.key: {}}), "scopes.import/all has no 'mode'"),
    ],
)
def test_files_that_hold_no_results(
    good: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], None], complaint: str
) -> None:
    bad = good.with_name("bad.json")
    document = json.loads(good.read_text())
    change(document)
    bad.write_text(json.dumps(document))
    for words in (["--load", str(bad)], ["--load", str(good), "--compare", str(bad)]):
        line = said(words, capsys)
        assert line.startswith(f"{bad}: ")
        assert line.endswith(complaint)


NO_JSON = (b"", b"not JSON", b"\xff\xfe", b"[" * 100_000)
SOMETHING_ELSE = (b"[]", b"{}", b"3", b"null", b'{"format": 2}')


@pytest.mark.parametrize(
    ("content", "complaint"),
    [*((each, "not JSON") for each in NO_JSON), *((each, "") for each in SOMETHING_ELSE)],
)
def test_files_of_something_else(
    good: Path, capsys: pytest.CaptureFixture[str], content: bytes, complaint: str
) -> None:
    bad = good.with_name("bad.json")
    bad.write_bytes(content)
    assert said(["--compare", str(bad)], capsys).startswith(f"{bad}: {complaint}")


def test_what_a_later_version_adds_is_passed_over(good: Path) -> None:
    document = json.loads(good.read_text())
    document["rows"][0]["colour"] = document["cells"][TIME.key]["blockvault"]["colour"] = "red"
    document["cells"][TIME.key]["blockvault"]["samples"][0]["colour"] = "red"
    good.write_text(json.dumps(document))
    assert Results.load(good) == results()


def test_results_say_all_that_a_page_is_made_from(good: Path) -> None:
    """What a page reads and the check does not ask for would be a traceback."""
    document = json.loads(good.read_text())
    bare: dict[str, Any] = copy.deepcopy(document["facts"])
    for name in bare.keys() - saved.FACTS.keys():
        del document["facts"][name]
    document["facts"]["plan"] = {"part": [1, 1]}
    good.write_text(json.dumps(document))
    loaded = Results.load(good)
    assert report.page(loaded, plots=[], folder="f", raw="r", progress="")
    assert compare.page(loaded, loaded)


def test_results_that_were_put_together_are_kept(good: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.json", tmp_path / "b.json"
    newer = results(1.0)
    newer.facts["commit"] = "newer"
    del newer.rows[RATE.key], newer.cells[RATE.key]
    newer.save(other)
    assert cli.main(["--load", str(good), str(other), "--out", str(out)]) == 0
    kept = Results.load(out)
    assert [kept.origin(key)[0].commit for key in (TIME.key, RATE.key)] == ["newer", "0123456789"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("nonsense", "not JSON"),
        ("[]", "it is not an object"),
        ("{}", "it has no 'states'"),
        ('{"states": []}', "it names no image"),
        ('{"states": [{"name": "a", "machine": "main"}]}', "states[0] has no 'file'"),
        ('{"states": [{"name": "a", "file": 1, "machine": "main"}]}', "file is not a text"),
    ],
)
def test_a_manifest_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str
) -> None:
    (tmp_path / inputs.MANIFEST).write_text(content)
    line = said(["--images", str(tmp_path), "--out", str(tmp_path / "x.json")], capsys)
    assert line.startswith(f"{tmp_path / inputs.MANIFEST}: ")
    assert complaint in line


def test_an_image_of_a_manifest_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [{"name": "a", "file": "a.img", "machine": "main"}]
    (tmp_path / inputs.MANIFEST).write_text(json.dumps({"states": states}))
    line = said(["--images", str(tmp_path), "--out", str(tmp_path / "x.json")], capsys)
    assert line == f"no image at {tmp_path / 'a.img'}"


def test_words_that_are_no_number_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--runs", "many"])
    assert ended.value.code == 2
    assert "--runs" in capsys.readouterr().err
