"""The revision syntax: how people name a state.

    revision = base [ at ] step*          base = branch | tag | id prefix | "HEAD" | "@"
    at       = "@{#SEQ}" | "@{TIME}"      step = "~" [N] | "^" [N]

    main          the head of a branch, as it is now      main@{#12345}           after event 12345
    main~0        its newest snapshot, main~2 the one     main@{10 minutes ago}   at a time
    HEAD^2        before the one before; ^N a parent      @{yesterday}            HEAD's branch
    3f2a9c        a snapshot by the start of its id       v1.0~1                  from a tag

Parsing knows nothing of the vault: whether ``cafe`` is a branch or an id, and whether it is
ambiguous, is for the resolver.  No name can hold ``~ ^ :`` or ``@{``, so nothing needs quotes.
"""

from __future__ import annotations

import re
from datetime import tzinfo
from typing import NamedTuple

from blockvault.errors import BadRequest
from blockvault.ids import ID_SIZE, MIN_PREFIX_HEX
from blockvault.model.names import check_ref_name
from blockvault.model.times import parse_time

HEAD = "HEAD"
SHORT_HEAD = "@"


class AtSeq(NamedTuple):
    """The state just after event ``seq``."""

    seq: int


class AtTime(NamedTuple):
    """The state at a time, in microseconds since 1970 UTC."""

    time_us: int


class Step(NamedTuple):
    """``~n``: n first parents back.  ``^n``: the n-th parent, 0 the snapshot itself."""

    kind: str
    number: int


class Revision(NamedTuple):
    """A parsed revision; ``text`` is what was written, for messages."""

    text: str
    base: str
    at: AtSeq | AtTime | None
    steps: tuple[Step, ...]

    @property
    def hex_prefix(self) -> str | None:
        """The base as the start of a snapshot id, in lower case, if it can be one."""
        return self.base.lower() if _HEX.fullmatch(self.base) else None


_REVISION = re.compile(r"([^~^:]*?)(?:@\{([^{}]*)\})?((?:[~^][0-9]*)*)")
_STEP = re.compile(r"([~^])([0-9]*)")
_SEQ = re.compile(r"#([0-9]{1,18})")
_HEX = re.compile(rf"[0-9a-fA-F]{{{MIN_PREFIX_HEX},{2 * ID_SIZE}}}")
_MAX_DIGITS = 9


def parse(text: str, now_us: int, zone: tzinfo | None = None) -> Revision:
    """Parse a revision; ``BadRequest`` says what is wrong with it.

    Relative times count from ``now_us``; times without a zone are in ``zone`` (None: local).
    """
    found = _REVISION.fullmatch(text.strip())
    if found is None:
        raise _bad(text, "it does not read as NAME, NAME~N, NAME^N or NAME@{...}")
    base, at, steps = found.groups()
    if base == SHORT_HEAD or (not base and at is not None):
        base = HEAD
    if not base:
        raise _bad(text, "it names nothing")
    if base != HEAD:
        check_ref_name(base)
    point = None if at is None else _point(text, at.strip(), now_us, zone)
    return Revision(text, base, point, _steps(text, steps))


def split_volume(text: str) -> tuple[str, str | None]:
    """Split ``REV:VOLUME`` at its first colon outside of braces; no colon, no volume."""
    inside = False
    for at, char in enumerate(text):
        if char == ":" and not inside:
            if not text[at + 1 :]:
                raise _bad(text, "there is no volume behind the colon")
            return text[:at] or HEAD, text[at + 1 :]
        inside = text[max(0, at - 1) : at + 1] == "@{" or (inside and char != "}")
    return text, None


def _point(text: str, at: str, now_us: int, zone: tzinfo | None) -> AtSeq | AtTime:
    found = _SEQ.fullmatch(at)
    if found:
        return AtSeq(int(found[1]))
    if re.fullmatch(r"[#-]?[0-9]*", at):
        raise _bad(text, "inside @{} write #SEQ for an event, or a time; use ~N to count snapshots")
    return AtTime(parse_time(at, now_us, zone))


def _steps(text: str, steps: str) -> tuple[Step, ...]:
    if any(len(digits) > _MAX_DIGITS for _, digits in _STEP.findall(steps)):
        raise _bad(text, "no history is that long")
    return tuple(Step(kind, int(digits or 1)) for kind, digits in _STEP.findall(steps))


def _bad(text: str, why: str) -> BadRequest:
    return BadRequest(f"'{text}' is not a revision: {why}", kind="bad-revision")
