"""``--json`` prints exactly what the reference says: every field, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest

from blockvault import Vault
from blockvault.cli import main
from blockvault.cli.common import FORMATS, Command
from blockvault.ops import formats

READING = {
    "log": "log --all",
    "show": "show main~0",
    "diff": "diff main~1",
    "events": "events",
    "reflog": "reflog",
    "refs": "refs",
    "branch": "branch --deleted",
    "tag": "tag",
    "stats": "stats",
    "verify": "verify",
    "checkout": "checkout main out",
    "export": "export main:vda out.img",
    "attach": "attach main:vda",
}
CHANGING = {
    "init": "init elsewhere",
    "import": "import first.img --volume vdc -m third",
    "snapshot": "snapshot -m again",
    "rollback": "rollback test v1",
    "rebuild": "rebuild --dry-run",
    "hold": "hold main -m important",
    "policy": "policy set --keep-last 1 --keep-tag v* --keep-events 0",
    "prune": "prune --dry-run",
    "gc": "gc",
    "compact": "compact",
    "repair": "repair --dry-run",
}
SERVING = {"serve", "status"}  # in test_serve, where a server runs
# Fields that are lists whose members have documented fields, or objects that vary.
OPEN = {"events": {"event"}, "show": {"snapshot"}}


def command(name: str) -> Command:
    found = main.program.get_command(click.Context(main.program), name)
    assert isinstance(found, Command)
    return found


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """``{"a": [{"b": 1}]}`` → ``a[].b``."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield from paths(inner, f"{prefix}[]")
            else:
                yield f"{prefix}[]"
        if not value:
            yield f"{prefix}[]*"
    else:
        yield prefix


def check(name: str, lines: list[dict[str, Any]]) -> None:
    shape = set(command(name).shape)
    open_fields = OPEN.get(name, set())
    assert lines, f"{name} printed nothing"
    for line in lines:
        found = set(paths({key: None if key in open_fields else v for key, v in line.items()}))
        empty = {path.removesuffix("[]*") for path in found if path.endswith("[]*")}
        found = {path for path in found if not path.endswith("[]*")}
        absent = {path for path in shape for e in empty if path.startswith(f"{e}[]")} - found
        wanted = shape - absent
        assert found == wanted


def test_every_command_with_json_is_tried() -> None:
    context = click.Context(main.program)
    names = set(main.SUMMARIES) - set(main.ALIASES)
    found = {name: main.program.get_command(context, name) for name in names}
    with_json = {name for name, made in found.items() if isinstance(made, Command) and made.shape}
    assert with_json == set(READING) | set(CHANGING) | SERVING


@pytest.mark.parametrize("name", READING)
def test_shape_of_what_reads(finished, tmp_path, name) -> None:
    words = [str(tmp_path / w) if w.startswith("out") else w for w in READING[name].split()]
    check(name, finished(*words, "--json").lines)


def test_shape_of_what_changes(world) -> None:
    with Vault.open(world.path) as vault, vault.session("main") as session:
        session.device("vda").write(0, b"written")
        session.flush()
    for name, line in CHANGING.items():
        check(name, world(*line.split(), "--json").lines)
    world("snapshot", "-m", "kept")
    for name in ("branch", "tag"):
        check(name, world(name, "made", "main~1", "--json").lines)
        check(name, world(name, "-d", "made", "--json").lines)


def test_ids_can_be_used_as_revisions(finished) -> None:
    for snapshot in finished("log", "--json").lines:
        again = finished("show", snapshot["id"], "--json").json
        assert again["snapshot"]["id"] == snapshot["id"]
        short = finished("show", snapshot["id"][:12], "--json").json
        assert short["snapshot"] == again["snapshot"]


def test_times_can_be_used_as_revisions(finished) -> None:
    for event in finished("events", "main", "--json").lines:
        if event["kind"] == "imported":
            at = f"main@{{{event['time']}}}"
            assert finished("show", at, "--json").json["seq"] == event["seq"]


def test_text_of_any_kind_survives(world) -> None:
    message = 'Grüße ☃ 😀 \x1b[31m "quoted" \\ \n\ttwo\x07'
    made = world("snapshot", "-m", message, "--author", "Ünal", "--json").json
    assert (made["message"], made["author"]) == (message, "Ünal")
    assert json.dumps(message) != message
    assert "\x1b" not in world("log").out

    def ascii_only(*words: str, code: int = 0) -> Any:
        return world(*words, code=code, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})

    assert "Gr\\xfc\\xdfe" in ascii_only("log", "-n", "1").out
    assert ascii_only("log", "-n", "1", "--json").json["message"] == message
    refused = json.loads(ascii_only("log", "nö😀", "--json", code=3).err)
    assert "nö😀" in refused["error"]["message"]


def test_formats_are_those_of_the_importer() -> None:
    assert FORMATS == formats.FORMATS
