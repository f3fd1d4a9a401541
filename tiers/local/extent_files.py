"""Extent files: an object above 1 MiB as two files, its bytes and the map of which of them are there.

    extents/ab/cdef....data    sparse; every byte at the offset it has in the object
    extents/ab/cdef....map     header (who this is), then 8 bytes per grain: its checksum, 0 if it is absent

A grain is 4 KiB, so that a random read of 4 KiB reads and verifies no more than that. Chunks of 32 KiB come and go as a
whole: one is present when all of its grains are. Maps of format 1 have one checksum per chunk; they are read and added to
as they are, as maps whose grains are as large as chunks.

Same offsets, so that a complete data file can be handed to the kernel as it is. The map is read and written with
pread and pwrite, never mapped: a file that somebody truncates must be a miss, and through a mapping it would be a
SIGBUS. An entry is read from the page cache in half a microsecond.

The files of one folder (first byte of the digest) share a lock: whoever changes a file holds it. Readers do not.
"""

import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..understore import Buffer
from ..version import BLOCK_BYTES, CHUNK_BYTES, DIGEST_BYTES, GRAIN_BYTES, ObjectVersion
from . import identity
from .checksum import header_sum, piece_sums, seed_of
from .files import BLOCK_UNIT_BYTES, OpenCache, OpenFile, Recent, remove
from .space import Space

BLOCK_CHUNKS = BLOCK_BYTES // CHUNK_BYTES
MAP_MAGIC = b"FBEXTMAP"
MAP_VERSION = 2
# Bytes per entry of the data, by the version of the map.
GRAIN_BYTES_OF = {1: CHUNK_BYTES, MAP_VERSION: GRAIN_BYTES}
HEADER_UNIT_BYTES = 4096
ENTRY_BYTES = 8
MAP_PAGE_BYTES = 4096
# What is read of a map at once when it is not in the page cache: the entries of 32 MiB, in little more time than those of 2 MiB.
MAP_AHEAD_BYTES = 64 * 1024
# What the entries of one block take in a map of the present version; whole pages, all of which are written at once.
BLOCK_ENTRIES_BYTES = BLOCK_BYTES // GRAIN_BYTES * ENTRY_BYTES
# magic, format version, reserved, bytes of the header, bytes per grain, bytes of the identity, object size, digest;
# then the checksum of these and of the identity, which follows it.
_HEADER = struct.Struct("<8sHHIIIQ16s")
_CHECKSUM = struct.Struct("<Q")
_IDENTITY_OFFSET = _HEADER.size + _CHECKSUM.size


def chunks_in_block(size: int, block: int) -> int:
    """How many chunks block `block` of an object of `size` bytes has."""
    return min(-(-size // CHUNK_BYTES) - block * BLOCK_CHUNKS, BLOCK_CHUNKS)


def pack_header(version: ObjectVersion) -> bytes:
    """The header of a map, padded to a multiple of 4 KiB."""
    who = identity.encode(version)
    size = -(-(_IDENTITY_OFFSET + len(who)) // HEADER_UNIT_BYTES) * HEADER_UNIT_BYTES
    fixed = _HEADER.pack(MAP_MAGIC, MAP_VERSION, 0, size, GRAIN_BYTES, len(who), version.size, version.digest)
    return (fixed + _CHECKSUM.pack(header_sum(fixed + who)) + who).ljust(size, b"\0")


class Extent(Recent):
    """The two open files of one object version. `first_entry` is the offset of the map's first entry, and each entry
    stands for `grain_bytes` of the data.

    `direct` is the data file once more, for reads around the page cache, opened when the first large read comes;
    `reads_are_large` says whether the last read was one.
    """

    __slots__ = (
        "_asks_if_cached",
        "data",
        "digest",
        "direct",
        "first_entry",
        "grain_bytes",
        "map",
        "reads_are_large",
        "seed",
        "version",
    )

    def __init__(
        self, version: ObjectVersion, data: OpenFile, map_file: OpenFile, first_entry: int, grain_bytes: int
    ) -> None:
        super().__init__()
        self.version = version
        self.digest = version.digest
        self.seed = seed_of(self.digest)
        self.data = data
        self.map = map_file
        self.first_entry = first_entry
        self.grain_bytes = grain_bytes
        self.direct: OpenFile | None = None
        self.reads_are_large = False
        # Until the file system says that it cannot tell (RWF_NOWAIT).
        self._asks_if_cached = True
        # What to read ahead is decided by the cache, which knows the readers. Of random reads only what is asked for.
        os.posix_fadvise(data.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def sums(self, first: int, count: int) -> bytes:
        """The map's entries of `count` grains; shorter if the map is (then the rest is absent)."""
        size, offset = ENTRY_BYTES * count, self.first_entry + ENTRY_BYTES * first
        if self._asks_if_cached:
            entries = bytearray(size)
            try:
                if os.preadv(self.map.fd, (entries,), offset, os.RWF_NOWAIT) == size:
                    return bytes(entries)
            except OSError as error:
                self._asks_if_cached = error.errno == errno.EAGAIN
            # A random reader would wait for the disk at each new page of the map, on top of its waits for data.
            os.posix_fadvise(
                self.map.fd, offset // MAP_AHEAD_BYTES * MAP_AHEAD_BYTES, MAP_AHEAD_BYTES, os.POSIX_FADV_WILLNEED
            )
        return os.pread(self.map.fd, size, offset)

    def sums_of(self, first: int, data: Buffer) -> bytes:
        """What the entries of the grains in `data`, which starts at grain `first`, must be."""
        return piece_sums(self.seed, first, data, self.grain_bytes)

    def begin(self, block: int) -> None:
        """Allocate what the entries of a block take in the map, none of them present: an account needs no more than that
        the block is here. Raises OSError."""
        span = self._entries_bytes
        self.map.write_at([bytes(span)], self.first_entry + span * block)

    def add(self, first_chunk: int, data: Buffer) -> None:
        """Chunks that have been written are present from now on. Raises OSError."""
        first = first_chunk * (CHUNK_BYTES // self.grain_bytes)
        self.map.write_at([self.sums_of(first, data)], self.first_entry + ENTRY_BYTES * first)

    def take_out(self, first_chunk: int, count: int) -> None:
        """Chunks are absent from now on. Raises OSError."""
        first, grains = self._grains(first_chunk, count)
        self.map.write_at([bytes(ENTRY_BYTES * grains)], self.first_entry + ENTRY_BYTES * first)

    def present(self, first_chunk: int, count: int) -> NDArray[np.bool_]:
        """Which of `count` chunks are here as a whole."""
        first, grains = self._grains(first_chunk, count)
        entries = np.frombuffer(self.sums(first, grains).ljust(ENTRY_BYTES * grains, b"\0"), np.uint64)
        per_chunk = CHUNK_BYTES // self.grain_bytes
        return np.logical_and.reduceat(entries != 0, np.arange(0, grains, per_chunk))

    def count(self, block: int) -> int:
        """How many chunks of a block its map says to be present."""
        return int(np.count_nonzero(self._block_present(block)))

    def clear(self, block: int) -> None:
        """All chunks of a block absent, and its bytes given back. Raises OSError."""
        first, count = block * BLOCK_CHUNKS, chunks_in_block(self.version.size, block)
        if any(self.sums(*self._grains(first, count))):
            self.take_out(first, count)
        self.data.punch(block * BLOCK_BYTES, BLOCK_BYTES)

    def trim(self, block: int) -> None:
        """Give back the bytes of a block that its map does not say to be present. Raises OSError."""
        for chunk in np.flatnonzero(~self._block_present(block)).tolist():
            self.data.punch((block * BLOCK_CHUNKS + chunk) * CHUNK_BYTES, CHUNK_BYTES)

    def map_pages(self, block: int) -> tuple[int, int, range]:
        """The pages of the map with the entries of a block: their offset, their size, and the blocks with entries in them."""
        span = self._entries_bytes
        blocks = max(MAP_PAGE_BYTES // span, 1)
        first = block // blocks * blocks
        last = min(first + blocks, self.version.block_count)
        return self.first_entry + span * first, span * blocks, range(first, last)

    @property
    def _entries_bytes(self) -> int:
        """What the entries of one block take in the map."""
        return BLOCK_BYTES // self.grain_bytes * ENTRY_BYTES

    def _grains(self, first_chunk: int, count: int) -> tuple[int, int]:
        """The first grain of a range of chunks that ends in the object, and how many there are."""
        per_chunk = CHUNK_BYTES // self.grain_bytes
        first = first_chunk * per_chunk
        return first, min(count * per_chunk, -(-self.version.size // self.grain_bytes) - first)

    def _block_present(self, block: int) -> NDArray[np.bool_]:
        return self.present(block * BLOCK_CHUNKS, chunks_in_block(self.version.size, block))

    def allocated(self) -> int:
        return self.data.allocated() + self.map.allocated()


class ExtentFiles:
    """The folder of extent files: opens, makes and removes them, and keeps a bounded number open."""

    def __init__(self, folder: Path, space: Space, max_open: int) -> None:
        self.folder = folder
        self._space = space
        self._open: OpenCache[bytes, Extent] = OpenCache(max_open)
        self._locks = [threading.Lock() for _ in range(256)]
        self.get = self._open.get

    def lock(self, digest: bytes) -> threading.Lock:
        """Hold it to change the files of this object version, or to open them."""
        return self._locks[digest[0]]

    def open_locked(self, digest: bytes) -> Extent | None:
        """The open files; None if they are not there or their header is damaged. Raises OSError for other trouble."""
        extent = self._open.get(digest)
        if extent is not None:
            return extent
        data_path, map_path = self._paths(digest)
        try:
            map_file = OpenFile(map_path)
            data = OpenFile(data_path)
        except FileNotFoundError:
            return None
        read = read_header(map_file, digest)
        if read is None:
            return None
        extent = Extent(read.version, data, map_file, read.size_bytes, read.grain_bytes)
        self._open.put(digest, extent)
        return extent

    def create_locked(self, version: ObjectVersion) -> Extent:
        """New files, with nothing present. Their folder's growth is accounted for here, they themselves are not.

        Raises OSError, and leaves nothing then."""
        data_path, map_path = self._paths(version.digest)
        folder = data_path.parent
        before = _allocated(folder)
        try:
            folder.mkdir(exist_ok=True)
            data = OpenFile(data_path, os.O_CREAT | os.O_TRUNC)
            map_file = OpenFile(map_path, os.O_CREAT | os.O_TRUNC)
            os.ftruncate(data.fd, version.size)
            header = pack_header(version)
            map_file.write_at([header], 0)
        except OSError:
            self.remove_locked(version.digest)
            raise
        finally:
            self._space.settle(0, _allocated(folder) - before)
        extent = Extent(version, data, map_file, len(header), GRAIN_BYTES)
        self._open.put(version.digest, extent)
        return extent

    def remove_locked(self, digest: bytes) -> int:
        """Unlink the files; the bytes that they had allocated."""
        self._open.pop(digest)
        data_path, map_path = self._paths(digest)
        return remove(map_path) + remove(data_path)  # the map first: without it the data means nothing

    def digests(self) -> Iterator[bytes]:
        """The digests of all files in the folder, maps or data, by looking at the names."""
        for sub in sorted(self.folder.iterdir()):
            stems = {name.partition(".")[0] for name in os.listdir(sub)} if sub.is_dir() else set()
            for stem in sorted(stems):
                try:
                    digest = bytes.fromhex(sub.name + stem)
                except ValueError:
                    continue
                if len(digest) == DIGEST_BYTES:
                    yield digest

    def is_unfinished(self, digest: bytes) -> bool:
        """Whether only one of the files is there, or an empty map: they were being made, or removed, when we stopped."""
        data_path, map_path = self._paths(digest)
        return not data_path.exists() or not map_path.exists() or map_path.stat().st_size == 0

    def data_allocated(self, digest: bytes) -> int:
        """What the data file allocates, without opening it; 0 if there is none."""
        return _allocated(self._paths(digest)[0])

    def folders_allocated(self) -> int:
        """Bytes that the folders of the files (not the files) allocate."""
        return sum(_allocated(sub) for sub in self.folder.iterdir() if sub.is_dir())

    def close(self) -> None:
        self._open.clear()

    def _paths(self, digest: bytes) -> tuple[Path, Path]:
        name = digest.hex()
        folder = self.folder / name[:2]
        return folder / f"{name[2:]}.data", folder / f"{name[2:]}.map"


class Header(NamedTuple):
    """What the header of a map says. `size_bytes` is its own size: there the entries begin."""

    version: ObjectVersion
    size_bytes: int
    grain_bytes: int


def read_header(map_file: OpenFile, digest: bytes) -> Header | None:
    """The header if it is whole and of this digest, else None."""
    head = os.pread(map_file.fd, HEADER_UNIT_BYTES, 0)
    if len(head) < HEADER_UNIT_BYTES:
        return None
    magic, version, _, size, grain_bytes, identity_bytes, _, named = _HEADER.unpack_from(head)
    if magic != MAP_MAGIC or grain_bytes != GRAIN_BYTES_OF.get(version) or named != digest:
        return None
    if len(head) < _IDENTITY_OFFSET + identity_bytes <= size:
        head = os.pread(map_file.fd, size, 0)
    who = head[_IDENTITY_OFFSET : _IDENTITY_OFFSET + identity_bytes]
    if _CHECKSUM.unpack_from(head, _HEADER.size)[0] != header_sum(head[: _HEADER.size] + who):
        return None
    decoded = identity.decode(who, digest)
    return Header(decoded, size, grain_bytes) if decoded is not None else None


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * BLOCK_UNIT_BYTES
    except FileNotFoundError:
        return 0
