"""A state of devices as an internal snapshot, judged by the programs whose format it is."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockvault.errors import BadRequest
from blockvault.vm import statefile


@pytest.mark.parametrize("size", [1, 65536, 1_000_001])
def test_the_image_is_sound(tmp_path: Path, need_tool: Callable[[str], str], size: int) -> None:
    qemu_img = need_tool("qemu-img")
    path = tmp_path / "state"
    state = random.Random(size).randbytes(size)
    path.write_bytes(statefile.around(state))

    def ask(*words: str) -> str:
        done = subprocess.run([qemu_img, *words, path], capture_output=True, text=True, check=True)
        return done.stdout

    (snapshot,) = json.loads(ask("info", "-f", "qcow2", "--output=json"))["snapshots"]
    assert snapshot["name"] == statefile.TAG
    assert snapshot["vm-state-size"] == size
    assert json.loads(ask("check", "-f", "qcow2", "--output=json"))["check-errors"] == 0
    ask("snapshot", "-a", statefile.TAG)  # what QEMU does before it reads the state
    found = json.loads(ask("check", "-f", "qcow2", "--output=json"))
    assert not found.keys() & {"corruptions", "leaks"}
    assert state in path.read_bytes()


def test_what_is_no_state_of_devices() -> None:
    for state in (b"", bytes((512 << 20) + 1)):
        with pytest.raises(BadRequest):
            statefile.around(state)
