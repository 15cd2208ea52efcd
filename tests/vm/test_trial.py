"""The trial of KVM: its guest runs, and who is slow, silent or complains is found out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockvault.vm import host, trial

SECONDS = 20.0


@pytest.fixture
def emulated(tmp_path: Path, need_tool: Callable[[str], str]) -> str:
    """A QEMU that emulates where it is told to use KVM, so that the trial's guest runs anywhere."""
    real = need_tool("qemu-system-x86_64")
    return script(
        tmp_path,
        f'for word; do shift; case "$word" in kvm) word=tcg;; host) word=max;; esac\n'
        f'set -- "$@" "$word"; done\nexec {shutil.which(real)} "$@"',
    )


def script(folder: Path, text: str) -> str:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_the_guest_of_the_trial_makes_its_rounds(emulated: str) -> None:
    assert trial.runs(emulated, SECONDS)


def test_a_guest_that_is_a_thousand_times_as_slow_does_not_pass(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (100_000).to_bytes(4, "little")
    assert trial._PROGRAM.count(turns) == 1
    slow = trial._PROGRAM.replace(turns, (1_000 * 100_000).to_bytes(4, "little"))
    monkeypatch.setattr(trial, "_PROGRAM", slow)
    assert not trial.runs(emulated, SECONDS)


@pytest.mark.parametrize(
    "text",
    [
        "echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60",
        "printf rrr; echo 'warning' >&2; exec sleep 60",
        "head -c 40 /dev/zero | tr '\\0' r",
        "exit 1",
    ],
)
def test_whoever_complains_or_ends_does_not_pass(tmp_path: Path, text: str) -> None:
    began = time.monotonic()
    assert not trial.runs(script(tmp_path, text), SECONDS)
    assert time.monotonic() - began < SECONDS


def test_silence_does_not_pass_and_is_not_waited_for(tmp_path: Path) -> None:
    assert not trial.runs(script(tmp_path, "exec sleep 60"), 0.1)
    assert not trial.runs(script(tmp_path, "printf rrr; exec sleep 60"), SECONDS)
    assert not trial.runs(str(tmp_path / "nothing"), SECONDS)


def test_enough_rounds_pass(tmp_path: Path) -> None:
    rounds = f"head -c {trial.ROUNDS} /dev/zero | tr '\\0' r; exec sleep 60"
    assert trial.runs(script(tmp_path, rounds), SECONDS)


@pytest.mark.parametrize(
    ("device", "passes", "expected"),
    [(True, True, "kvm"), (True, False, "tcg"), (False, True, "tcg")],
)
def test_kvm_is_used_where_it_runs_a_guest(
    monkeypatch: pytest.MonkeyPatch, device: bool, passes: bool, expected: str
) -> None:
    monkeypatch.setattr(host, "qemu", lambda: "/bin/true")
    monkeypatch.setattr(host.os, "access", lambda path, mode: device)
    monkeypatch.setattr(trial, "runs", lambda qemu, seconds: passes)
    assert host._accelerator() == expected
