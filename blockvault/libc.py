"""The C library itself, for the few of its functions that Python does not offer.

It is loaded by who calls it: most commands never do, and loading takes them a millisecond.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes


@cache
def libc() -> ctypes.CDLL:
    """What ``errno`` was after a call, ``ctypes.get_errno`` tells.  Not every C library has every
    function: ``hasattr`` first where one is missing outside of glibc.
    """
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
