"""The NBD protocol as numbers: magics, flags, structs, limits and error values.

Source: ``doc/proto.md`` of the reference implementation (github.com/NetworkBlockDevice/nbd).  All
integers are big-endian.  Names are the specification's without their ``NBD_`` prefix.  Nothing in
this module decides anything; ``negotiation`` and ``connection`` do.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

from blockvault.errors import BadRequest, NoSpace

# -- limits: every length that a peer states is compared with one of these before memory is taken --
MAX_STRING = 4096
MAX_OPTION = 64 * 1024
MAX_PAYLOAD = 32 * 1024 * 1024
MAX_QUERIES = 64
MAX_EXTENTS = 64 * 1024

# -- handshake -------------------------------------------------------------------------------------
INIT_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
REPLY_MAGIC = 0x0003E889045565A9

GREETING = Struct(">QQH")  # INIT_MAGIC, OPTION_MAGIC, HandshakeFlag
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # OPTION_MAGIC, option, length of its data
OPTION_REPLY = Struct(">QIII")  # REPLY_MAGIC, option, reply type, length of its data
EXPORT_REPLY = Struct(">QH")  # answer to EXPORT_NAME: size, TransmissionFlag
EXPORT_PADDING = bytes(124)
LENGTH = Struct(">I")  # before every string inside an option
COUNT = Struct(">H")
INFO_EXPORT = Struct(">HQH")  # Info.EXPORT, size, TransmissionFlag
INFO_BLOCK_SIZE = Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum payload


class HandshakeFlag(IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


# -- transmission ----------------------------------------------------------------------------------
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF

# Magic, command flags and command make one number, so that the common request is one comparison.
REQUEST = Struct(">Q8sQI")  # head, cookie, offset, length
SIMPLE_REPLY = Struct(">II8s")  # SIMPLE_REPLY_MAGIC, Errno, cookie
CHUNK = Struct(">IHH8sI")  # CHUNK_MAGIC, ChunkFlag, Chunk, cookie, length of payload
DATA_CHUNK = Struct(">IHH8sIQ")  # the same, and the offset of the data that follow
ERROR_CHUNK = Struct(">IHH8sIIH")  # the same, Errno, length of the message that follows
CONTEXT_ID = Struct(">I")
DESCRIPTOR = Struct(">II")  # length, status


class TransmissionFlag(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class ChunkFlag(IntFlag):
    DONE = 1


class Chunk(IntEnum):
    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001


class State(IntFlag):
    """Status bits of ``base:allocation``."""

    HOLE = 1
    ZERO = 2


class Errno(IntEnum):
    """The only error values that a reply may carry; they are the protocol's, not the platform's."""

    OK = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


def errno_of(error: BaseException) -> Errno:
    """The value that tells a client what an exception of the device means for its request."""
    if isinstance(error, NoSpace):
        return Errno.ENOSPC
    if isinstance(error, BadRequest):
        return Errno.EINVAL
    if isinstance(error, MemoryError):
        return Errno.ENOMEM
    return Errno.EIO


def request_head(command: int, flags: int = 0) -> int:
    """First field of ``REQUEST`` for a command with these flags."""
    return REQUEST_MAGIC << 32 | flags << 16 | command
