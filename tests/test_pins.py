"""Guards and pins by themselves; what collections make of them is in ``ops/test_gc.py``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blockvault import pins
from blockvault.pins import Pin

TREE = (b"root" * 8, 2)


def names(vault: Path) -> list[str]:
    return [name for name, _ in pins.pinned(vault)]


def test_a_pin_keeps_until_it_is_released(tmp_path: Path) -> None:
    pin = Pin(tmp_path, [TREE], [b"object" * 5])
    assert [kept for _, kept in pins.pinned(tmp_path)] == [((TREE,), (b"object" * 5,))]
    pin.release()
    assert names(tmp_path) == []
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_forked_child_takes_no_pin_away(
    tmp_path: Path, forked: Callable[[Callable[[], None]], None]
) -> None:
    pin = Pin(tmp_path, [TREE])
    forked(pin.release)
    assert len(names(tmp_path)) == 1
    pin.release()
    assert names(tmp_path) == []


def test_what_was_forked_meanwhile_keeps_nobody_from_the_same(tmp_path: Path) -> None:
    with pins.sole(tmp_path, "gc"):
        copies = [os.dup(int(fd)) for fd in os.listdir("/proc/self/fd") if is_at(fd, "pins/gc")]
    assert copies
    with pins.sole(tmp_path, "gc"):
        pass
    for copy in copies:
        os.close(copy)


def is_at(fd: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").endswith(path)
    except FileNotFoundError:
        return False  # that of the listing itself
