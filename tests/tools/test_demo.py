"""The demonstration works: its own comparisons end it at the first difference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import skip

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo"


def test_demo(need_tool, tmp_path) -> None:
    for tool in ("mkfs.ext4", "debugfs", "e2fsck", "qemu-system-x86_64", "apt-get", "dpkg-deb"):
        need_tool(tool)
    if not (Path(sys.prefix) / ".blockvault-dev").exists():
        skip("needs the environment that tools/test makes")
    done = subprocess.run(
        [str(DEMO), str(tmp_path)],
        env=os.environ | {"BLOCKVAULT_VENV": sys.prefix},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("byte for byte the same") == 2
    assert "tidied up" in done.stdout
    assert "\n|/\n" in done.stdout
    back = done.stdout[done.stdout.index("# Back:") :]
    assert "\nprecious\n" in back
    assert "\ntwin\n" in back
    assert "OK:" in back
