"""The log of a process that runs for months, on standard error: a time and a line for each thing.

What is told there quotes what clients say.  Like all that is printed, it steers no terminal, and it
begins no line that could be taken for one of the program.
"""

from __future__ import annotations

import logging
from typing import Any

from blockvault.cli.output import clean


def begin(level: int = logging.WARNING) -> None:
    """Log what is at least as grave as ``level``."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class Lines(logging.Formatter):
    """One line for each message; the lines of a traceback are behind it, set in."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return clean(" ".join(super().formatMessage(record).splitlines()))

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join("  " + clean(line) for line in lines)
