"""The process's threads for compression and decompression, which run outside of Python's lock."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

WORKERS = max(2, min(4, os.cpu_count() or 1))

_executor: ThreadPoolExecutor | None = None
_executor_guard = threading.Lock()


def pool() -> ThreadPoolExecutor:
    """The process's threads for compressing and decoding, started when first needed."""
    from concurrent.futures import ThreadPoolExecutor  # dear to import, and often not needed

    global _executor
    with _executor_guard:
        if _executor is None:
            _executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="vault-codec")
        return _executor


def _after_fork() -> None:
    global _executor, _executor_guard
    _executor, _executor_guard = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
