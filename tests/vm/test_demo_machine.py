"""The demonstration of machines works from its first line to its last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo-machine"


@pytest.mark.nightly
def test_demo_of_machines(guest: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [DEMO, tmp_path], env=os.environ | {"BLOCKVAULT_VENV": sys.prefix},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    back = done.stdout[done.stdout.index("# Back:") :]
    assert "\nprecious\n" in back
    assert "\nclone\n" in back
    assert "OK:" in back
