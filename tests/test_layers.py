"""Who may import whom, held by reading the sources; the picture is in docs/design.md.

    0   vocabulary    ids errors encoding device files libc    stdlib, blake3, msgpack
    1a  model/        pure values and algorithms               0
    1b  store/        bytes on disk                            0, lmdb, zstandard, blake3
    2   application   vault session ops/ ...                   0, 1a, 1b, blake3
    3   edges         nbd/ vm/ ...                             0, public names of 2; not each other
    4   cli/          the command line                         everything
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "blockvault"
FILES = sorted(PACKAGE.rglob("*.py"))

VOCABULARY = {"ids", "errors", "encoding", "device", "files", "libc"}
EDGES = {"nbd", "vm", "guest", "remote", "web"}
APPLICATION = {path.stem for path in PACKAGE.glob("*.py")} - VOCABULARY - {"__init__"} | {"ops"}

THIRD_PARTY = {
    "vocabulary": {"blake3", "msgpack"},
    "model": set(),
    "store": {"lmdb", "zstandard", "blake3"},
    "application": {"blake3"},
    "edge": {"qemu"},
    "cli": {"click", "rich"},
    "root": set(),
}
LAYERS_BELOW = {
    "vocabulary": {"vocabulary"},
    "model": {"vocabulary", "model"},
    "store": {"vocabulary", "store"},
    "application": {"vocabulary", "model", "store", "application"},
    "edge": {"vocabulary", "application"},
    "cli": {"vocabulary", "model", "store", "application", "edge", "cli", "root"},
    "root": {"application"},
}


class Import(NamedTuple):
    """One imported module (``blockvault.store.env``) or name (``blockvault.store`` + ``env``)."""

    module: str
    name: str | None
    line: int


def part_of(module: str) -> str:
    """The first component below the package: ``blockvault.store.env`` → ``store``."""
    return module.split(".")[1] if "." in module else ""


def layer(part: str) -> str:
    if part == "":
        return "root"
    if part in VOCABULARY:
        return "vocabulary"
    if part in EDGES:
        return "edge"
    if part in APPLICATION:
        return "application"
    assert part in {"model", "store", "cli"}, f"blockvault/{part} belongs to no layer: add it here"
    return part


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> Iterator[Import]:
    """Every import, wherever it stands: at the top, in a function, under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the package in full"
            yield from (Import(node.module or "", a.name, node.lineno) for a in node.names)


def offences(module: str, source: str) -> list[str]:
    """What a module imports and may not."""
    part = part_of(module)
    own = layer(part)
    found = []
    for item in imports(source):
        top = item.module.partition(".")[0]
        if top == "blockvault":
            target = item.module
            if target == "blockvault" and item.name:
                target = f"blockvault.{item.name}"
            if not may_import(part, own, target, item.name):
                found.append(f"line {item.line}: {module} ({own}) may not import {target}")
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY[own]:
            found.append(f"line {item.line}: {module} ({own}) may not import {top}")
    return found


def may_import(part: str, own: str, target: str, name: str | None) -> bool:
    other = part_of(target)
    if own == "edge":
        if other == part:
            return True
        if layer(other) == "application" and (name or "").startswith("_"):
            return False
    if other == "__version__":
        return True
    return layer(other) in LAYERS_BELOW[own]


def test_the_page_about_the_design_says_the_same() -> None:
    page = (ROOT / "docs" / "design.md").read_text().partition("## Layers")[2].partition("##")[0]
    rows = [line.split("|")[1:4] for line in page.splitlines() if re.match(r"\| \d", line)]
    said = {name.split()[1]: (members, allowed) for name, members, allowed in rows}
    assert set(re.findall(r"`(\w+)`", said["vocabulary"][0])) == VOCABULARY
    layers = {"vocabulary", "model", "store", "application", "edges", "command"}
    assert set(said) == layers
    known = set().union(*THIRD_PARTY.values())
    for name, own in zip(said, THIRD_PARTY, strict=False):
        assert known & set(re.findall(r"\w+", said[name][1])) == THIRD_PARTY[own], name


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_layers(path: Path) -> None:
    assert offences(module_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("blockvault.model.tree", "from blockvault.store.env import LmdbStore"),
        ("blockvault.model.tree", "import lmdb"),
        ("blockvault.store.env", "def f():\n    from blockvault.model import tree"),
        ("blockvault.store.env", "import click"),
        ("blockvault.ids", "from blockvault.model import tree"),
        ("blockvault.vault", "from blockvault.cli import output"),
        ("blockvault.ops.check", "import blockvault.nbd.server"),
        ("blockvault.nbd.server", "from blockvault.store import env"),
        ("blockvault.nbd.server", "from blockvault.vm import qemu"),
        ("blockvault.nbd.server", "from blockvault.session import _secret"),
    ],
)
def test_an_offence_is_seen(module: str, source: str) -> None:
    assert len(offences(module, source)) == 1


PRINTS = {"print", "input", "exit", "quit"}
ENVIRONMENT = {("os", "environ"), ("os", "getenv"), ("sys", "exit"), ("sys", "argv")}
# Handing the environment on to a program that is started is not reading it.
STARTS_PROGRAMS = {"blockvault.ops.programs"}


def outspoken(source: str) -> Iterator[str]:
    """Places that print, read the environment or exit."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in PRINTS:
                yield f"line {node.lineno}: {node.func.id}()"
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in ENVIRONMENT
        ):
            yield f"line {node.lineno}: {node.value.id}.{node.attr}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if part_of(module_of(path)) != "cli"], ids=module_of
)
def test_only_the_command_line_speaks(path: Path) -> None:
    found = list(outspoken(path.read_text()))
    if module_of(path) in STARTS_PROGRAMS:
        found = [place for place in found if not place.endswith("os.environ")]
    assert found == []


def test_speaking_is_seen() -> None:
    source = "import os, sys\nprint(1)\nos.environ['A']\nsys.exit(1)\n"
    assert [place.partition(": ")[2] for place in outspoken(source)] == [
        "print()",
        "os.environ",
        "sys.exit",
    ]
