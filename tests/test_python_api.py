"""docs/python-api.md: its examples run as they stand, and it names all that is public."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

import blockvault
from blockvault.device import Device
from blockvault.ops import (
    attachments,
    check,
    checkin,
    checkout,
    compare,
    export,
    forget,
    gc,
    ingest,
    policy,
    prune,
    rebuild,
    stats,
)
from blockvault.ops.reading import StateDevice
from blockvault.session import Session
from blockvault.vault import Vault

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python-api.md"
TEXT = PAGE.read_text()

OWNERS = {
    **{"vault": Vault, "Vault": Vault, "session": Session, "device": StateDevice},
    **{"ingest": ingest, "export": export, "compare": compare},
    **{"checkout": checkout, "checkin": checkin},
    **{"policy": policy, "prune": prune, "forget": forget, "gc": gc},
    **{"check": check, "rebuild": rebuild, "stats": stats, "attachments": attachments},
}

INTERNAL = {
    # What the program's own parts use: objects and transactions, which the page leaves out.
    Vault: {"transaction", "read", "new_objects", "objects", "store"},
    Session: {"commit", "make_room", "took", "kept", "keep"},
    Device: set(),
}


def test_the_examples_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```pycon\n(.*?)^```", TEXT, re.M | re.S)
    assert len(blocks) > 5
    parser = doctest.DocTestParser()
    test = parser.get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    failed, attempted = runner.run(test)
    assert failed == 0, capsys.readouterr().out
    assert attempted > 40


@pytest.mark.parametrize(
    ("kind", "prefix"), [(Vault, "[Vv]ault"), (Session, "session"), (Device, "device")]
)
def test_the_page_names_all_that_is_public(kind: type, prefix: str) -> None:
    public = {
        name for name in (*vars(kind), *getattr(kind, "__annotations__", {})) if name[0] != "_"
    }
    named = set(re.findall(rf"\b{prefix}\.(\w+)", TEXT))
    assert public - INTERNAL[kind] - named == set()


def test_signatures_are_those_of_the_program() -> None:
    """``vault.log(rev="HEAD")`` on the page means that the method has just these parameters."""
    calls = re.findall(r"`(\w+)\.(\w+)\(([^`\[]*)\)`", TEXT)
    checked = [call for call in calls if call[0] in OWNERS]
    assert len(checked) > 40
    for owner, name, listed in checked:
        parameters = inspect.signature(getattr(OWNERS[owner], name)).parameters
        found = [parameter for parameter in parameters if parameter != "self"]
        shown = [part.split("=")[0].strip() for part in listed.replace("()", "").split(",")]
        assert [part for part in shown if part and part != "*"] == found, f"{owner}.{name}"


def test_everything_at_the_top_is_named() -> None:
    assert {name for name in blockvault.__all__ if not name.startswith("_")} == {"Vault", "open"}
    assert "blockvault.open(" in TEXT
