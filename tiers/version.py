"""The identity of content, and how it is cut: pure values and arithmetic, no I/O.

An *object version* is what a key held at one moment. Everything that is cached is cached under an object
version, never under a key or a path, so bytes of two versions cannot mix and switching dataset versions
fetches only what was never seen.

Sizes that are part of on-disk formats:

    BLOCK   4 MiB    unit of fill, eviction and placement
    CHUNK   32 KiB   unit of presence inside a block, and of checksum in a slab
    GRAIN   4 KiB    unit of checksum in an extent file; a random 4 KiB read costs one grain
    SMALL   1 MiB    objects up to this size live in slabs, larger ones in extent files
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

BLOCK_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 32 * 1024
GRAIN_BYTES = 4 * 1024
SMALL_BYTES = 1024 * 1024
DIGEST_BYTES = 16


@dataclass(frozen=True)
class ObjectVersion:
    """Identity of content: which bytes a key of a store held.

    `store` names the under store without credentials (`s3://bucket` plus `@endpoint` when it is not AWS's own).
    `key` is text; bytes that are no UTF-8 are held as surrogate escapes, as `os.fsdecode` does.
    `etag` is what the store calls the version (quotes stripped; for folders a synthetic one of inode, size and mtime).
    `version_id` is set only where the bucket keeps versions. `size` is in bytes.
    """

    store: str
    key: str
    etag: str
    size: int
    version_id: str | None = None

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for this version in every index: BLAKE2b over the length-prefixed fields."""
        hasher = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"forebay-objver")
        for field in (self.store, self.key, self.etag, str(self.size), self.version_id or ""):
            data = field.encode("utf-8", "surrogateescape")
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
        return hasher.digest()

    @property
    def is_small(self) -> bool:
        """Whether a tier keeps it in a slab (whole) rather than in an extent file (by chunks)."""
        return self.size <= SMALL_BYTES

    @property
    def block_count(self) -> int:
        return -(-self.size // BLOCK_BYTES)

    def block_range(self, index: int) -> tuple[int, int]:
        """(offset, length) in bytes of block `index`; the last block may be short."""
        start = index * BLOCK_BYTES
        if not 0 <= start < max(self.size, 1):
            raise IndexError(f"block {index} of an object of {self.size} bytes")
        return start, min(BLOCK_BYTES, self.size - start)


@dataclass(frozen=True, slots=True)
class BlockKey:
    """One block of one object version."""

    version: ObjectVersion
    index: int


def blocks_of_range(offset: int, size: int) -> range:
    """Indexes of the blocks that the byte range touches; empty for an empty range."""
    if size <= 0:
        return range(0)
    return range(offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES + 1)


def align_to_chunks(offset: int, size: int, limit: int) -> tuple[int, int]:
    """The smallest chunk-aligned (offset, size) that covers the range, cut at `limit` (the object's size)."""
    start = offset // CHUNK_BYTES * CHUNK_BYTES
    end = min(-(-(offset + size) // CHUNK_BYTES) * CHUNK_BYTES, limit)
    return start, max(end - start, 0)


def split_by_block(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(block index, offset in object, length) pieces of a byte range, in order."""
    end = offset + size
    while offset < end:
        index = offset // BLOCK_BYTES
        length = min(end, (index + 1) * BLOCK_BYTES) - offset
        yield index, offset, length
        offset += length
