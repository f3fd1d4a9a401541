"""Extent files: an object above 1 MiB as two files, its bytes and the map of which of them are there.

    extents/ab/cdef....data    sparse; every byte at the offset it has in the object
    extents/ab/cdef....map     header (who this is), then 8 bytes per chunk: its checksum, 0 if it is absent

Same offsets, so that a complete data file can be handed to the kernel as it is. The map is read and written with
pread and pwrite, never mapped: a file that somebody truncates must be a miss, and through a mapping it would be a
SIGBUS. An entry is read from the page cache in half a microsecond.

The files of one folder (first byte of the digest) share a lock: whoever changes a file holds it. Readers do not.
"""

import itertools
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from ..version import BLOCK_BYTES, CHUNK_BYTES, DIGEST_BYTES, ObjectVersion
from . import identity
from .checksum import header_sum, seed_of
from .files import BLOCK_UNIT_BYTES, OpenCache, OpenFile, Recent, remove
from .space import Space

BLOCK_CHUNKS = BLOCK_BYTES // CHUNK_BYTES
MAP_MAGIC = b"FBEXTMAP"
MAP_VERSION = 1
HEADER_UNIT_BYTES = 4096
ENTRY_BYTES = 8
MAP_PAGE_BYTES = 4096
BLOCKS_PER_MAP_PAGE = MAP_PAGE_BYTES // (ENTRY_BYTES * BLOCK_CHUNKS)
# magic, format version, reserved, bytes of the header, bytes per chunk, bytes of the identity, object size, digest;
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
    fixed = _HEADER.pack(MAP_MAGIC, MAP_VERSION, 0, size, CHUNK_BYTES, len(who), version.size, version.digest)
    return (fixed + _CHECKSUM.pack(header_sum(fixed + who)) + who).ljust(size, b"\0")


class Extent(Recent):
    """The two open files of one object version. `first_entry` is the offset of the map's first entry.

    `direct` is the data file once more, for reads around the page cache, opened when the first large read comes;
    `reads_are_large` says whether the last read was one.
    """

    __slots__ = ("data", "digest", "direct", "first_entry", "map", "reads_are_large", "seed", "version")

    def __init__(self, version: ObjectVersion, data: OpenFile, map_file: OpenFile, first_entry: int) -> None:
        super().__init__()
        self.version = version
        self.digest = version.digest
        self.seed = seed_of(self.digest)
        self.data = data
        self.map = map_file
        self.first_entry = first_entry
        self.direct: OpenFile | None = None
        self.reads_are_large = False
        # What to read ahead is decided by the cache, which knows the readers. Of random reads only what is asked for.
        os.posix_fadvise(data.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def sums(self, first: int, count: int) -> bytes:
        """The map's entries of `count` chunks; shorter if the map is (then the rest is absent)."""
        return os.pread(self.map.fd, ENTRY_BYTES * count, self.first_entry + ENTRY_BYTES * first)

    def set_sums(self, first: int, packed: bytes) -> None:
        self.map.write_at([packed], self.first_entry + ENTRY_BYTES * first)

    def count(self, block: int) -> int:
        """How many chunks of a block its map says to be present."""
        return sum(value != 0 for value in memoryview(self._block_sums(block)).cast("Q"))

    def clear(self, block: int) -> None:
        """All chunks of a block absent, and its bytes given back. Raises OSError."""
        if any(self._block_sums(block)):
            self.set_sums(block * BLOCK_CHUNKS, bytes(ENTRY_BYTES * chunks_in_block(self.version.size, block)))
        self.data.punch(block * BLOCK_BYTES, BLOCK_BYTES)

    def trim(self, block: int) -> None:
        """Give back the bytes of a block that its map does not say to be present. Raises OSError."""
        chunk = block * BLOCK_CHUNKS
        for is_present, run in itertools.groupby(memoryview(self._block_sums(block)).cast("Q"), bool):
            count = sum(1 for _ in run)
            if not is_present:
                self.data.punch(chunk * CHUNK_BYTES, count * CHUNK_BYTES)
            chunk += count

    def map_page(self, block: int) -> tuple[int, range]:
        """The page of the map with the entries of a block: its offset, and the blocks whose entries are in it."""
        first = block // BLOCKS_PER_MAP_PAGE * BLOCKS_PER_MAP_PAGE
        last = min(first + BLOCKS_PER_MAP_PAGE, self.version.block_count)
        return self.first_entry + ENTRY_BYTES * BLOCK_CHUNKS * first, range(first, last)

    def _block_sums(self, block: int) -> bytes:
        count = chunks_in_block(self.version.size, block)
        return self.sums(block * BLOCK_CHUNKS, count).ljust(ENTRY_BYTES * count, b"\0")

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
        version, first_entry = read
        extent = Extent(version, data, map_file, first_entry)
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
        extent = Extent(version, data, map_file, len(header))
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


def read_header(map_file: OpenFile, digest: bytes) -> tuple[ObjectVersion, int] | None:
    """(version, offset of the first entry) if the header is whole and of this digest, else None."""
    head = os.pread(map_file.fd, HEADER_UNIT_BYTES, 0)
    if len(head) < HEADER_UNIT_BYTES:
        return None
    magic, version, _, size, chunk_bytes, identity_bytes, _, named = _HEADER.unpack_from(head)
    if magic != MAP_MAGIC or version != MAP_VERSION or chunk_bytes != CHUNK_BYTES or named != digest:
        return None
    if len(head) < _IDENTITY_OFFSET + identity_bytes <= size:
        head = os.pread(map_file.fd, size, 0)
    who = head[_IDENTITY_OFFSET : _IDENTITY_OFFSET + identity_bytes]
    if _CHECKSUM.unpack_from(head, _HEADER.size)[0] != header_sum(head[: _HEADER.size] + who):
        return None
    decoded = identity.decode(who, digest)
    return (decoded, size) if decoded is not None else None


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * BLOCK_UNIT_BYTES
    except FileNotFoundError:
        return 0
