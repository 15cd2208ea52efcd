"""Compression, and decompression that a hostile header cannot turn into a memory bomb.

zstd's one-shot decoder believes the size in the frame header, whatever limit it is given: 32 KB of
input became 1 GiB.  So the caller always says how many bytes it expects, that number is bounded,
and the header must state exactly it before anything is decoded.

zstd's own checksum is left out: it would take a fifth of the time to decode, and finds nothing that
hashes do not.  So what comes out is of the right length, and may be wrong: most bit flips decode
without a word.  Whoever asks proves it, objects by their ids and records by the chain.
"""

from __future__ import annotations

import re
import threading

import zstandard

from blockvault.errors import BadRequest, Damaged

RAW = 0
ZSTD = 1

WORTH_IT = 0.97
"""A payload that does not get smaller than this stays raw, so that reads can slice it as it is."""

HARDLY = 0.875
"""The same for who is sparing: an eighth, as in ZFS.  Who reads 4 KiB decodes 256 KiB for it."""
SAMPLED_FROM = 64 << 10
"""Bytes from which on a sample costs little beside the whole."""
_SAMPLES, _SAMPLE_BYTES = 4, 4 << 10
_QUICK, _QUICKEST = -1, -20
"""Levels to find out what would be gained: where that is little, 2 and 10 times as fast as 3."""

_SPEC = re.compile(r"none|zstd:([1-9]|1[0-9]|2[0-2])")
_local = threading.local()


class Codec:
    """A compression setting: ``zstd:1`` to ``zstd:22``, or ``none``.  Used from any thread.

    ``sparing``: what hardly shrinks is kept raw, since somebody waits for it to be written, and
    will wait when it is read.
    """

    def __init__(self, spec: str, *, sparing: bool = False) -> None:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise BadRequest(f"unknown compression {spec!r}: use zstd:1 … zstd:22, or none")
        self.spec = spec
        self.level = int(match[1]) if match[1] else None
        self._sparing = sparing

    def compress(self, raw: bytes | memoryview) -> tuple[int, bytes | memoryview]:
        """Return (codec number, payload); the payload is ``raw`` itself if nothing is gained."""
        if self.level is None or not raw:
            return RAW, raw
        if self._sparing and _hardly_shrinks(raw):
            return RAW, raw
        packed = _compressor(self.level).compress(raw)
        if len(packed) >= (HARDLY if self._sparing else WORTH_IT) * len(raw):
            return RAW, raw
        return ZSTD, packed


def _hardly_shrinks(raw: bytes | memoryview) -> bool:
    """Whether that can be told with little effort: False as well if ``raw`` is small."""
    if len(raw) < SAMPLED_FROM:
        return False
    step = len(raw) // _SAMPLES
    starts = range(step // 2, len(raw), step)
    sample = b"".join([raw[start : start + _SAMPLE_BYTES] for start in starts])
    # A few blocks may mislead, so the whole has to agree.
    return all(
        len(_compressor(level).compress(part)) >= HARDLY * len(part)
        for level, part in ((_QUICK, sample), (_QUICKEST, raw))
    )


def decompress(
    codec: int, payload: bytes | memoryview, raw_size: int, limit: int, what: str
) -> bytes | memoryview:
    """Undo ``compress``: exactly ``raw_size`` (at most ``limit``) bytes, or ``Damaged``.

    A raw payload is returned as it is, not copied.
    """
    if raw_size > limit:
        raise _damaged(what, f"it claims {raw_size:,} bytes, more than {limit:,}")
    if codec == RAW:
        if len(payload) != raw_size:
            raise _damaged(what, f"{len(payload)} bytes where {raw_size} were written")
        return payload
    if codec != ZSTD:
        raise _damaged(what, f"unknown codec {codec}")
    return _unzstd(payload, raw_size, what)


def _unzstd(payload: bytes | memoryview, raw_size: int, what: str) -> bytes:
    try:
        if zstandard.frame_content_size(payload) != raw_size:
            raise _damaged(what, "its two statements of its size disagree")
        raw = _decompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _damaged(what, str(error)) from None
    if len(raw) != raw_size:
        raise _damaged(what, "it decodes to another size")
    return raw


def _damaged(what: str, why: str) -> Damaged:
    return Damaged(f"{what} is damaged: {why}", kind="bad-encoding")


def _compressor(level: int) -> zstandard.ZstdCompressor:
    # One context per thread and level: contexts are costly to make and not safe to share.
    contexts: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in contexts:
        contexts[level] = zstandard.ZstdCompressor(level=level)
    return contexts[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    context: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if context is None:
        context = _local.decompressor = zstandard.ZstdDecompressor()
    return context
