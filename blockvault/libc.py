"""The C library itself, for the few of its functions that Python does not offer.

It is loaded by who calls it: most commands never do, and loading takes them a millisecond.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


@cache
def libc() -> ctypes.CDLL:
    """What ``errno`` was after a call, ``ctypes.get_errno`` tells.  Not every C library has every
    function: ``hasattr`` first where one is missing outside of glibc.
    """
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Make a range of a file a hole; False where the file system cannot."""
    import ctypes

    if not hasattr(libc(), "fallocate"):
        return False
    arguments = (ctypes.c_int(fd), _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset))
    if libc().fallocate(*arguments, ctypes.c_long(length)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code))
