"""The tools are not installed with the package: their tests find them in the working copy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

APT_CACHE = """#!/bin/sh
case $1 in
    policy) echo "500 http://deb.debian.org/debian stable/main amd64 Packages" ;;
    *) echo "E: No packages found" >&2 && exit 100 ;;
esac
"""


@pytest.fixture
def no_kernel_package(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system whose apt does not know the guest's kernel, and a user who has built no guest."""
    home = tmp_path_factory.mktemp("home")
    apt = home / "bin" / "apt-cache"
    apt.parent.mkdir()
    apt.write_text(APT_CACHE)
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HOME", str(home))
