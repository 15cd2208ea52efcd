"""Completion, asked for as each shell asks; bash itself runs its script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockvault import Vault

ROOT = Path(__file__).resolve().parents[2]
BREAKS = " \t\n\"'@><=;|&(:"  # what bash splits words at


def complete(cwd: Path, shell: str, **variables: str) -> list[str]:
    """Ask for candidates; those of plain type, as the shell would insert them."""
    env = (
        os.environ
        | variables
        | {
            "PYTHONPATH": str(ROOT),
            "_BLOCKVAULT_COMPLETE": f"{shell}_complete",
        }
    )
    words = [sys.executable, "-m", "blockvault.cli.main"]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def bash(cwd: Path, line: str, breaks: str = BREAKS) -> list[str]:
    lines = complete(cwd, "bash", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_WORDBREAKS=breaks)
    return [item.partition(",")[2] for item in lines if item]


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("blockvault comm", ["commit"]),
        ("blockvault re", ["reflog", "refs", "repair", "rebuild"]),
        ("blockvault switch ", ["main", "test"]),
        ("blockvault switch t", ["test"]),
        ("blockvault log ", ["HEAD", "main", "test", "v1"]),
        ("blockvault -V . log v", ["v1"]),
        ("blockvault tag -d ", ["v1"]),
        ("blockvault export t", ["test:"]),
        ("blockvault cat main:", ["vda", "vdb"]),
        ("blockvault cat main:vdb", ["vdb"]),
        ("blockvault cat main~1:", ["vda"]),
        ("blockvault import --format q", ["qcow2"]),
        ("blockvault diff --ext", ["--extents"]),
        ("blockvault log nosuch", []),
    ],
)
def test_bash_candidates(finished, line, candidates) -> None:
    assert bash(finished.path, line) == candidates


def test_bash_without_colon_as_a_word_break(finished) -> None:
    breaks = BREAKS.replace(":", "")
    assert bash(finished.path, "blockvault cat main:", breaks) == ["main:vda", "main:vdb"]


def test_no_vault_no_candidates_no_complaint(tmp_path) -> None:
    assert bash(tmp_path, "blockvault switch ") == []


def test_zsh_and_fish_candidates(finished) -> None:
    zsh = complete(finished.path, "zsh", COMP_WORDS="blockvault switch ", COMP_CWORD="2")
    assert zsh[1::3] == ["main", "test"]
    fish = complete(finished.path, "fish", COMP_WORDS="blockvault switch t", COMP_CWORD="t")
    assert fish == ["plain,test"]


NAMES = ["#a", "a b", "c$(id)", "d$HOME", "e'f", "g`id`", "h;i&j", "k!m", "p[q]~", "{n,o}", "über"]


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_bash_takes_names_as_they_are(tmp_path, need_tool, quote) -> None:
    with Vault.create(tmp_path) as vault, vault.session("main") as session:
        for name in NAMES:
            session.create_volume(name, 4096)
    words = bash(tmp_path, f"blockvault cat {quote}main:")
    line = " ".join(f"{quote}{word}{quote}" for word in words)
    done = subprocess.run(
        [need_tool("bash"), "--norc", "-c", f"printf '%s\\n' {line}"],
        capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    whole = "main:" if quote else ""  # what stands in quotes is one word for bash
    assert done.stdout.splitlines() == [whole + name for name in NAMES]


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("blockvault cat main:a", [r"a\ b"]),
        (r"blockvault cat main:a\ ", [r"a\ b"]),
        ('blockvault cat main:"a ', ["a b"]),
        ('blockvault cat "main:a ', ["main:a b"]),
        ("blockvault cat 'main:a ", ["main:a b"]),
        ('blockvault cat "main:a" ', []),
        (r'blockvault cat main:"d\$', [r"d\$HOME"]),
        (r'blockvault cat "main:d\$H', [r"main:d\$HOME"]),
        (r'blockvault cat main:"g\`', [r"g\`id\`"]),
        (r"blockvault cat main:'d$", ["d$HOME"]),
        ('blockvault -V "." switch m', ["main"]),
    ],
)
def test_bash_goes_on_in_a_word_with_spaces(tmp_path, line, candidates) -> None:
    with Vault.create(tmp_path) as vault, vault.session("main") as session:
        for name in ("a b", "d$HOME", "g`id`"):
            session.create_volume(name, 4096)
    assert bash(tmp_path, line) == candidates


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(cli, shell) -> None:
    script = cli("completion", shell).out
    assert f"_BLOCKVAULT_COMPLETE={shell}_complete" in script


def test_bash_runs_the_script(cli, finished, need_tool, tmp_path) -> None:
    (tmp_path / "blockvault").write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m blockvault.cli.main "$@"\n'
    )
    (tmp_path / "blockvault").chmod(0o755)
    (tmp_path / "script").write_text(cli("completion", "bash").out)
    program = f"""
    shopt -s progcomp
    PATH={tmp_path}:$PATH
    . {tmp_path}/script
    complete -p blockvault
    COMP_LINE='blockvault cat main:v' COMP_POINT=21
    compopt() {{ :; }}
    _blockvault_completion blockvault
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [need_tool("bash"), "--norc", "-c", program],
        cwd=finished.path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    first, *candidates = done.stdout.splitlines()
    assert first.endswith("-F _blockvault_completion blockvault")
    assert candidates == ["vda", "vdb"]
