"""Documents that cannot rot: what the program has is documented, what is documented is there."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from blockvault import committer, errors
from blockvault.cli import main
from blockvault.cli.common import Command
from blockvault.model import events
from blockvault.nbd import server
from blockvault.ops import gc, recompress
from blockvault.store import tables
from blockvault.vault import Vault

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REFERENCE = runpy.run_path(str(ROOT / "tools" / "reference"))
COMMANDS: dict[str, click.Command] = dict(REFERENCE["commands"]())
LEAVES = {name: made for name, made in COMMANDS.items() if not isinstance(made, click.Group)}


def _shown(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


# -- packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", sorted(ROOT.glob("blockvault/**/__init__.py")), ids=_shown)
def test_the_first_screen_of_a_package_names_its_modules(package: Path) -> None:
    """All but those that are one command each."""
    told = set(re.findall(r"\w+", ast.get_docstring(ast.parse(package.read_text())) or ""))
    modules = {module.stem for module in package.parent.glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in modules if not name.endswith("_cmd")} - told == set()


# -- commands ------------------------------------------------------------------------------------


def test_the_reference_is_what_the_program_says() -> None:
    stale = [page for page, text in REFERENCE["pages"]().items() if page.read_text() != text]
    assert stale == [], "run tools/reference"
    pages = {page.stem for page in (DOCS / "cli").glob("*.md")}
    assert pages == {*(name.replace(" ", "-") for name in COMMANDS), "README"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    made = COMMANDS[name]
    assert made.help
    assert made.name == name.split()[-1]
    if name in main.SUMMARIES:
        assert made.help.splitlines()[0] == main.SUMMARIES[name]
    for option in made.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts} says nothing"
    if name in LEAVES:
        assert isinstance(made, Command)
        assert any(f"blockvault {name}" in line for line in made.examples)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("gc", "wait", gc.WAIT),
        ("gc", "frame", recompress.PACKED_BYTES),
        ("serve", "cache", committer.PENDING_BYTES),
        ("serve", "max_connections", server.MAX_CONNECTIONS),
        *(
            ("init", option, inspect.signature(Vault.create).parameters[option].default)
            for option in ("block_size", "compression")
        ),
    ],
)
def test_the_help_states_the_defaults_that_others_get(
    name: str, option: str, value: object
) -> None:
    """Help is shown without what it speaks of being loaded, so its figures are copies."""
    assert COMMANDS[name].make_context(name, []).params[option] == value


def test_aliases_are_commands() -> None:
    context = click.Context(main.program)
    for alias, name in main.ALIASES.items():
        assert main.program.get_command(context, alias) is COMMANDS[name]


@pytest.mark.parametrize("name", LEAVES)
def test_examples_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example in the help holds a command line that the program takes."""
    monkeypatch.chdir(tmp_path)
    made = LEAVES[name]
    assert isinstance(made, Command)
    for line in made.examples:
        (found,) = re.findall(r"\bblockvault\b(?:'[^']*'|\$\(|[^'|>&)])*", line)
        words = shlex.split(found)
        for file in words:
            if re.fullmatch(r"\w+\.\w+", file):
                (tmp_path / file).touch()
        depth = 2 if isinstance(COMMANDS.get(words[1]), click.Group) else 1
        used = COMMANDS[main.ALIASES.get(words[1], " ".join(words[1 : depth + 1]))]
        used.make_context(words[depth], words[depth + 1 :]).close()


def test_global_options_and_variables_are_documented() -> None:
    text = (DOCS / "cli" / "README.md").read_text()
    for option in main.program.params:
        if not {"--help", "--version"} & set(option.opts):
            assert all(name in text for name in option.opts)
    sources = "".join(path.read_text() for path in (ROOT / "blockvault" / "cli").rglob("*.py"))
    for variable in set(re.findall(r"\b(?:BLOCKVAULT_[A-Z]+|NO_COLOR)\b", sources)):
        if variable != main.COMPLETE_VAR.strip("_"):
            assert f"`{variable}`" in text, variable


# -- errors --------------------------------------------------------------------------------------


def raised_kinds(source: str) -> Iterator[str]:
    """``kind="..."`` in any call, and the first argument of ``Problem("...")``."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        named = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
        if isinstance(node.func, ast.Name) and node.func.id == "Problem":
            named += node.args[:1]
        for value in named:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def test_every_error_kind_is_documented() -> None:
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VaultError)
    ]
    codes = {kind.__name__: str(kind.exit_code) for kind in classes}
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\w+) \| (\d+) \|", (DOCS / "errors.md").read_text(), re.M
    )
    documented = {kind for kind, _, _ in rows}
    assert len(rows) == len(set(rows)), "a kind is documented twice"
    assert all(codes[name] == code for _, name, code in rows)
    sources = [path.read_text() for path in (ROOT / "blockvault").rglob("*.py")]
    raised = {kind for source in sources for kind in raised_kinds(source)}
    raised |= {kind.kind for kind in classes if kind is not errors.VaultError}
    assert documented == raised


# -- the format ----------------------------------------------------------------------------------


def test_every_event_is_documented() -> None:
    text = (DOCS / "format.md").read_text()
    missing = [
        kind.__name__
        for code, kind in events.EVENTS.items()
        if not re.search(rf"\b{code}\b[^\n]*\b{kind.__name__}\b", text)
    ]
    assert missing == []


def test_every_table_is_documented() -> None:
    text = (DOCS / "format.md").read_text()
    assert [name for name in (*tables.KEYED, *tables.NUMBERED) if f"`{name}`" not in text] == []


# -- what a reader copies ------------------------------------------------------------------------


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    lines = [line for line in example.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(example)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"# prints (.*)", example)
    assert done.stdout.splitlines() == expected


def test_commands_in_documents_exist() -> None:
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for name in re.findall(r"^\$? {0,4}\$? ?blockvault ([a-z]+)\b", path.read_text(), re.M):
            assert name in main.SUMMARIES, f"{path}: blockvault {name}"


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"
