"""The format of slabs: files that hold many small objects, so that a billion of them do not exhaust the inodes.

    0          header: magic, format version, number of the slab, checksum
    4 KiB      records: 32 bytes per object, appended as objects are added
    2 MiB      frames: one per object, appended

A *frame* describes itself: head (magic, digest, sizes, checksum), the checksums of the object's chunks, the object's
bytes, its identity. A *record* is the frame's line in the table of contents: digest, offset, sizes, checksum, and
a flag that says that the object is gone. It is written after the frame, so a crash leaves at most a frame that
nobody points to. The table stands before the frames instead of in a footer behind them: it is then always there, also
for the slab that was being filled when the process was killed, and a restart never has to scan frames.

The flag is the only thing that is ever changed in place. It is outside the record's checksum: if it is lost, the worst
is a record that points into a hole, and what is read there does not verify.
"""

import os
import struct

import numpy as np
from numpy.typing import NDArray

from ..version import CHUNK_BYTES, SMALL_BYTES, ObjectVersion
from . import identity
from .checksum import MASK64, header_sum, piece_sums, seed_of
from .files import OpenFile
from .index import SLAB_UNIT_BYTES, halves

SLAB_BYTES = 256 * 1024 * 1024
SLAB_MAGIC = b"FBSLAB\0\0"
SLAB_VERSION = 1
FRAME_MAGIC = 0x4D524642  # "BFRM", little-endian
RECORDS_OFFSET = 4096
FRAMES_OFFSET = 2 * 1024 * 1024
RECORD_BYTES = 32
MAX_RECORDS = (FRAMES_OFFSET - RECORDS_OFFSET) // RECORD_BYTES
PAGE_BYTES = 4096
# Frames from this size on begin at a page: their hole then frees all of them, for 2 KiB of padding on average.
PAGE_ALIGNED_FROM_BYTES = 32 * 1024
LIVE, DEAD = 0, 1

_HEADER = struct.Struct("<8sHHI")  # magic, format version, reserved, number
_CHECKSUM = struct.Struct("<Q")
_FRAME = struct.Struct("<IIQ16s")  # magic, bytes of the identity, object size, digest
FRAME_HEAD_BYTES = _FRAME.size + _CHECKSUM.size
_RECORD = struct.Struct("<QQIIHHI")  # digest (two halves), offset / 64, object size, identity bytes, flag, checksum
FLAG_OFFSET = 26
RECORD = np.dtype(
    [
        ("first", "<u8"), ("second", "<u8"), ("unit", "<u4"), ("size", "<u4"),
        ("identity", "<u2"), ("flag", "<u2"), ("checksum", "<u4"),
    ]
)  # fmt: skip
assert RECORD.itemsize == _RECORD.size == RECORD_BYTES

Records = NDArray[np.void]
# Odd constants of the record checksum, which is plain arithmetic so that a million of them are checked at once.
_P1, _P2, _P3, _P4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63


def pack_slab_header(number: int) -> bytes:
    fixed = _HEADER.pack(SLAB_MAGIC, SLAB_VERSION, 0, number)
    return fixed + _CHECKSUM.pack(header_sum(fixed))


def is_slab_header(data: bytes, number: int) -> bool:
    return data == pack_slab_header(number)


SLAB_HEADER_BYTES = _HEADER.size + _CHECKSUM.size


def sums_bytes(size: int) -> int:
    """Bytes of the checksums of an object's chunks."""
    return -(-size // CHUNK_BYTES) * 8


def align(offset: int) -> int:
    """Where the next frame may begin."""
    return -(-offset // SLAB_UNIT_BYTES) * SLAB_UNIT_BYTES


def frame_bytes(size: int, identity_bytes: int) -> int:
    return FRAME_HEAD_BYTES + sums_bytes(size) + size + identity_bytes


def data_offset(size: int) -> int:
    """Where the object's bytes begin in its frame."""
    return FRAME_HEAD_BYTES + sums_bytes(size)


def pack_frame(version: ObjectVersion, data: memoryview) -> tuple[bytes, bytes]:
    """What stands before and behind the object's bytes: head with checksums, and identity."""
    who = identity.encode(version)
    fixed = _FRAME.pack(FRAME_MAGIC, len(who), version.size, version.digest)
    head = fixed + _CHECKSUM.pack(header_sum(fixed + who))
    return head + piece_sums(seed_of(version.digest), 0, data), who


def unpack_frame(frame: bytes, digest: bytes) -> tuple[ObjectVersion, memoryview] | None:
    """(version, its bytes) of a whole frame, all of it verified; None if it is damaged or of something else."""
    if len(frame) < FRAME_HEAD_BYTES:
        return None
    magic, identity_bytes, size, named = _FRAME.unpack_from(frame)
    if magic != FRAME_MAGIC or named != digest or size > SMALL_BYTES:
        return None
    if len(frame) < frame_bytes(size, identity_bytes):
        return None
    start = data_offset(size)
    who = frame[start + size : start + size + identity_bytes]
    if _CHECKSUM.unpack_from(frame, _FRAME.size)[0] != header_sum(frame[: _FRAME.size] + who):
        return None
    version = identity.decode(who, digest)
    data = memoryview(frame)[start : start + size]
    if version is None or frame[FRAME_HEAD_BYTES:start] != piece_sums(seed_of(digest), 0, data):
        return None
    return version, data


def pack_record(digest: bytes, offset: int, size: int, identity_bytes: int) -> bytes:
    first, second = halves(digest)
    unit = offset // SLAB_UNIT_BYTES
    checksum = _record_sum(first, second, unit, size, identity_bytes)
    return _RECORD.pack(first, second, unit, size, identity_bytes, LIVE, checksum)


def _record_sum(first: int, second: int, unit: int, size: int, identity_bytes: int) -> int:
    mixed = (first ^ _P4) * _P1 + second * _P2 + (unit << 32 | size) * _P3 + (identity_bytes + 1) * _P4
    mixed &= MASK64
    return ((mixed ^ mixed >> 29) * _P3 & MASK64) >> 32


def verify_records(records: Records) -> NDArray[np.bool_]:
    """Which records are whole, whatever their flag says."""
    first, second = records["first"], records["second"]
    place = records["unit"].astype(np.uint64) << np.uint64(32) | records["size"].astype(np.uint64)
    mixed = (first ^ np.uint64(_P4)) * np.uint64(_P1) + second * np.uint64(_P2) + place * np.uint64(_P3)
    mixed += (records["identity"].astype(np.uint64) + np.uint64(1)) * np.uint64(_P4)
    checksum = ((mixed ^ mixed >> np.uint64(29)) * np.uint64(_P3)) >> np.uint64(32)
    offset = records["unit"].astype(np.int64) * SLAB_UNIT_BYTES
    end = offset + frame_sizes(records)
    inside = (offset >= FRAMES_OFFSET) & (end <= SLAB_BYTES) & (records["size"] <= SMALL_BYTES)
    whole: NDArray[np.bool_] = (checksum == records["checksum"]) & inside
    return whole


def frame_sizes(records: Records) -> NDArray[np.int64]:
    """Bytes of each record's frame."""
    size = records["size"].astype(np.int64)
    frames: NDArray[np.int64] = FRAME_HEAD_BYTES + -(-size // CHUNK_BYTES) * 8 + size + records["identity"]
    return frames


def read_records(file: OpenFile) -> Records:
    """The table of contents, as far as it was ever written (with gaps where a write failed)."""
    try:
        end = min(os.lseek(file.fd, RECORDS_OFFSET, os.SEEK_HOLE), FRAMES_OFFSET)
    except OSError:  # the file ends before its records
        return np.empty(0, RECORD)
    data = os.pread(file.fd, max(end - RECORDS_OFFSET, 0), RECORDS_OFFSET)
    records = np.frombuffer(data[: len(data) // RECORD_BYTES * RECORD_BYTES], RECORD)
    written = np.flatnonzero(records["unit"])
    return records[: written[-1] + 1] if len(written) else records[:0]
