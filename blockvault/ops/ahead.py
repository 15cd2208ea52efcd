"""Work that threads do ahead of the one who needs it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_READ_AHEAD = 4
_Part = TypeVar("_Part")
_Content = TypeVar("_Content")


def in_order(
    readers: ThreadPoolExecutor,
    read: Callable[[_Part], _Content],
    parts: Iterable[_Part],
    read_ahead: int = _READ_AHEAD,
) -> Iterator[tuple[_Part, _Content]]:
    """Each part and what was read of it; up to ``read_ahead`` of them are under way."""
    ahead: deque[tuple[_Part, Future[_Content]]] = deque()
    for each in parts:
        ahead.append((each, readers.submit(read, each)))
        if len(ahead) >= read_ahead:
            first, content = ahead.popleft()
            yield first, content.result()
    for first, content in ahead:
        yield first, content.result()
