"""Checksums of what a tier holds.

The checksum of a piece (a chunk in a slab, a grain in an extent file) is XXH3-64 of its bytes, seeded with the digest of
the object version and the index of the piece. The seed makes a piece prove where it belongs: bytes of another version, or
of another place in the same object, do not verify, whatever mix-up put them there (a reused descriptor, a swapped file, a
stale index).

0 means "absent" in a map, so a checksum that comes out as 0 is stored as 1.

Grains are small because of random reads: verifying 4 KiB by a checksum of 32 KiB means reading 32 KiB, which took a disk
114 µs instead of 57. Eight times as many checksums cost 40 µs more for a megabyte.
"""

import struct

import xxhash

from ..understore import Buffer
from ..version import CHUNK_BYTES

MASK64 = (1 << 64) - 1
# Odd constant of the golden ratio: consecutive indexes give seeds that differ in about half of their bits.
STEP = 0x9E3779B97F4A7C15

piece_hash = xxhash.xxh3_64_intdigest


def seed_of(digest: bytes) -> int:
    """The seed of piece 0 of the object version with this digest; piece i has `(seed + i * STEP) & MASK64`."""
    return int.from_bytes(digest[:8], "little")


def piece_sums(seed: int, first: int, data: Buffer, piece_bytes: int = CHUNK_BYTES) -> list[int]:
    """Checksums of the pieces in `data`, which starts at piece `first`; the last one may be short."""
    size = len(data)
    if size <= piece_bytes:
        return [piece_hash(data, (seed + first * STEP) & MASK64) or 1] if size else []
    view = memoryview(data)
    return [
        piece_hash(view[start : start + piece_bytes], (seed + (first + i) * STEP) & MASK64) or 1
        for i, start in enumerate(range(0, size, piece_bytes))
    ]


def pack_sums(sums: list[int]) -> bytes:
    """As they stand in a map or a frame: 8 bytes each, little-endian."""
    return struct.pack(f"<{len(sums)}Q", *sums)


def header_sum(data: Buffer) -> int:
    """XXH3-64 of a header or an identity."""
    return xxhash.xxh3_64_intdigest(data)
