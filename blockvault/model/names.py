"""What branches, tags, volumes and attachments may be called.

Names of branches and tags follow a subset of ``git check-ref-format``, so that every name can be
written in a revision without quotes; names of volumes become file names in a checkout, so they must
be safe there on any system.  Both rules hold for the log as well: a name in a damaged or foreign
vault is checked before it is used.
"""

from __future__ import annotations

import re
import unicodedata

from blockvault.errors import BadRequest

MAX_NAME_BYTES = 200

_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ufffd]|\.\.|@\{|//")
_PART_FORBIDDEN = re.compile(r"^\.|\.lock$|\.$")
_VOLUME_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ufffd]')
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
_KINDS = ("heads/", "tags/")
_RESERVED = frozenset({"HEAD", "@"})
_RESERVED_ON_DISK = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def check_ref_name(name: str) -> str:
    """Return ``name`` if a branch or tag may be called so; ``BadRequest`` says why not."""
    reason = _ref_fault(name)
    if reason:
        raise BadRequest(f"'{_shown(name)}' is not a valid name: {reason}", kind="bad-name")
    return name


def check_new_name(name: str) -> str:
    """Return ``name`` if a new branch or tag may be called so; ``BadRequest`` says why not.

    A log that exists may have names of more kinds: a revision takes them for others.
    """
    check_ref_name(name)
    for prefix in _KINDS:
        if name.startswith(prefix):
            raise BadRequest(
                f"'{_shown(name)}' is not a valid name: in a revision, '{prefix}' before a name "
                "says what is meant",
                kind="bad-name",
            )
    return name


def check_volume_name(name: str) -> str:
    """Return ``name`` if a volume or attachment may be called so; ``BadRequest`` says why not."""
    reason = _volume_fault(name)
    if reason:
        raise BadRequest(f"'{_shown(name)}' is not a valid volume name: {reason}", kind="bad-name")
    return name


def _ref_fault(name: str) -> str | None:
    fault = _common_fault(name)
    if fault:
        return fault
    if name in _RESERVED:
        return "it is reserved"
    if name.startswith(("-", "/")) or name.endswith("/"):
        return "it must not begin with '-' or '/' nor end with '/'"
    found = _REF_FORBIDDEN.search(name)
    if found:
        return f"it contains {found[0]!r}"
    if any(_PART_FORBIDDEN.search(part) for part in name.split("/")):
        return "no part of it may begin or end with '.' or end with '.lock'"
    return None


def _volume_fault(name: str) -> str | None:
    fault = _common_fault(name)
    if fault:
        return fault
    found = _VOLUME_FORBIDDEN.search(name)
    if found:
        return f"it contains {found[0]!r}"
    if name[0] in ".- " or name[-1] in ". ":
        return "it must not begin with '.', '-' or a space, nor end with '.' or a space"
    if _RESERVED_ON_DISK.search(name):
        return "some systems reserve it"
    return None


def _common_fault(name: str) -> str | None:
    if not isinstance(name, str) or not name:
        return "it is empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if any(unicodedata.category(char) in _INVISIBLE for char in name if char != " "):
        return "it contains an invisible character"
    return None


def _shown(name: object) -> str:
    """A name that may contain anything, safe to print on one line."""
    text = str(name)[:60]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
