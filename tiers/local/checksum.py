"""Checksums of what a tier holds.

A chunk's checksum is XXH3-64 of its bytes, seeded with the digest of the object version and the chunk's index.
The seed makes a chunk prove where it belongs: bytes of another version, or of another place in the same object,
do not verify, whatever mix-up put them there (a reused descriptor, a swapped file, a stale index).

0 means "absent" in a map, so a checksum that comes out as 0 is stored as 1.
"""

import struct

import xxhash

from ..understore import Buffer
from ..version import CHUNK_BYTES

MASK64 = (1 << 64) - 1
# Odd constant of the golden ratio: consecutive indexes give seeds that differ in about half of their bits.
STEP = 0x9E3779B97F4A7C15

chunk_hash = xxhash.xxh3_64_intdigest


def seed_of(digest: bytes) -> int:
    """The seed of chunk 0 of the object version with this digest; chunk i has `(seed + i * STEP) & MASK64`."""
    return int.from_bytes(digest[:8], "little")


def chunk_sums(seed: int, first: int, data: Buffer) -> list[int]:
    """Checksums of the chunks in `data`, which starts at chunk `first`; the last one may be short."""
    view = memoryview(data)
    size = len(view)
    if size <= CHUNK_BYTES:
        return [chunk_hash(view, (seed + first * STEP) & MASK64) or 1] if size else []
    return [
        chunk_hash(view[start : start + CHUNK_BYTES], (seed + (first + i) * STEP) & MASK64) or 1
        for i, start in enumerate(range(0, size, CHUNK_BYTES))
    ]


def pack_sums(sums: list[int]) -> bytes:
    """As they stand in a map or a frame: 8 bytes each, little-endian."""
    return struct.pack(f"<{len(sums)}Q", *sums)


def header_sum(data: Buffer) -> int:
    """XXH3-64 of a header or an identity."""
    return xxhash.xxh3_64_intdigest(data)
