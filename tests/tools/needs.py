"""What a test of a contender needs: its programs, and a system on which it runs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.conftest import find_tool, skip
from tools.bench.peers.base import Contender


def need(kind: type[Contender]) -> None:
    """Skip what a contender that is not here would do; why it is not is asked elsewhere.

    A kernel without btrfs is no fault, not even in CI.
    """
    reason = kind.missing()
    if reason and "kernel" in reason:
        pytest.skip(f"{kind.name}: {reason}")
    if reason:
        skip(f"{kind.name}: {reason}")


def need_programs(kinds: Iterable[type[Contender]]) -> None:
    """Skip the test if a program of one of these is not installed.

    A test of many asks at its end, when those that are here have been tried.
    """
    for kind in kinds:
        for program in kind.programs:
            find_tool(program)
